"""One device's socket: commands pushed ahead of the asking, and hints of the other instances acted on (section 6).

Hints may be lost or read late, so what they say is checked against Redis whenever there is doubt, and now and then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import orjson
import structlog

from ..domain.errors import Unauthenticated, Unavailable
from ..domain.values import DeviceCaller, Origin
from ..realtime.close_codes import CloseCode
from ..realtime.connection import Connection
from ..realtime.later import Timers
from ..realtime.looks import Looks
from ..storage.device_sessions import DeviceSessions, Ticket
from ..storage.presence import Presence, PresenceChange, Standing
from .attendance import Attendance
from .claiming import Claiming
from .delivery import Delivery
from .prefetch import Prefetch, SocketOptions

# Seconds.
_RETRY = 1.0
# However sure the hints are, a socket looks anew this often.
_SURE_FOR = 60.0
_FORBIDDEN = frozenset({"suspended", "deleted"})
# Hints that are kept while the device is being taken over; when there are more, everything is looked at instead.
_MOST_EARLY = 16

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SocketParts:
    """The services that every device socket of an instance works with."""

    sessions: DeviceSessions
    presence: Presence
    attendance: Attendance
    claiming: Claiming
    delivery: Delivery
    timers: Timers


class DeviceSocket(Looks):
    """One device's socket. Handles the messages of the device's channel.

    It looks at what is due whenever a hint says so, and now and then.
    """

    __slots__ = (
        "_ahead",
        "_caller",
        "_change",
        "_early",
        "_ended_at",
        "_heard_text_at",
        "_leases",
        "_loop",
        "_nothing_waits",
        "_number",
        "_parts",
        "_session_ends",
        "_settled",
        "_settling",
        "_sure_until",
        "_ticket",
        "connection",
        "origin",
        "token",
    )

    def __init__(
        self,
        parts: SocketParts,
        connection: Connection,
        token: str,
        ticket: Ticket,
        options: SocketOptions,
        origin: Origin,
    ) -> None:
        super().__init__(parts.timers)
        self.connection = connection
        self.token = token
        self.origin = origin
        self._parts = parts
        self._ticket = ticket
        self._caller: DeviceCaller | None = None
        self._number: int | None = None
        self._ahead = Prefetch(parts.claiming, parts.delivery, connection, token, options, origin)
        # What is heard before the device is taken over, which may be about what the answer to that does not tell yet.
        self._early: list[str] | None = []
        self._sure_until = float("-inf")
        self._heard_text_at = float("-inf")
        self._ended_at = float("inf")
        self._session_ends = 0.0
        self._loop = asyncio.get_running_loop()
        # After the first look, or at the end: what the device says is done after it was announced.
        self._settled = False
        self._settling: asyncio.Event | None = None
        self._change: PresenceChange | None = None
        self._leases: Mapping[UUID, float] | None = None
        self._nothing_waits = False
        connection.when_ending(self._ended)

    @property
    def device_id(self) -> str:
        return self._ticket.device_id

    @property
    def channel(self) -> str:
        """Where hints for the device are published."""
        return self._ticket.keys.channel

    @property
    def caller(self) -> DeviceCaller:
        """The device, as it was when the socket opened."""
        assert self._caller is not None
        return self._caller

    async def take_over(self) -> None:
        """Become the device's socket. Raises `Unauthenticated`, `Unavailable`."""
        connected = await self._parts.presence.connect(self.token, self.connection.id)
        self._caller, self._number = connected.caller, connected.number
        now = self._loop.time()
        self._session_ends = now + (connected.expires_ms - connected.caller.now_ms) / 1000
        self._sure_until = now + _SURE_FOR * random.uniform(0.8, 1.2)
        self._change, self._leases = connected.change, connected.leases
        self._nothing_waits = connected.nothing_waits

    def heard_text(self) -> None:
        """A text frame came: what was pushed before it has arrived."""
        self._heard_text_at = self._loop.time()

    def message(self, data: str) -> None:
        """A hint from whichever instance."""
        if self._looking:
            self._hear(data)
        elif self._early is not None:
            self._early.append(data)
            if len(self._early) > _MOST_EARLY:
                self._early = None

    def _hear(self, data: str) -> None:
        assert self._number is not None
        kind, _, rest = data.partition(" ")
        match kind:
            case "wake" | "ended" | "canceled":
                self._hear_of_command(kind, rest)
            case "superseded":
                if int(rest) > self._number:
                    self.connection.end(CloseCode.SUPERSEDED, "superseded")
            case "revoked":
                why, _, moment = rest.partition(" ")
                # An earlier one was about earlier credentials, and has only been read late.
                if int(moment) >= self.caller.now_ms:
                    code = CloseCode.FORBIDDEN if why in _FORBIDDEN else CloseCode.UNAUTHENTICATED
                    self.connection.end(code, why)
            case "logout":
                if rest == self._ticket.token_hash:
                    self.connection.end(CloseCode.UNAUTHENTICATED, "logged out")

    def _hear_of_command(self, kind: str, rest: str) -> None:
        if kind == "canceled":
            notice = orjson.loads(rest)
            self._ahead.hear(UUID(notice["payload"]["id"]), (notice["payload"], notice["requestId"]))
            return
        self._nothing_waits = False
        if kind == "ended":
            self._ahead.hear(UUID(rest), None)
        elif rest and self._ahead.has(UUID(rest)):
            # It waits again; or it did, when this was sent, and has been pushed since.
            self._doubt()
        self._look_now()

    def gap(self) -> None:
        """Hints may have been missed: look at everything anew."""
        if not self._looking:
            self._early = None
            return
        self._doubt()
        self._look_now()

    def _doubt(self) -> None:
        self._sure_until = float("-inf")
        self._nothing_waits = False

    def forget(self, command_id: UUID, claim_token: str) -> None:
        """The device is done with a command as it was pushed: there is room for another."""
        if self._ahead.forget(command_id, claim_token):
            self._look_now()

    def begin(self) -> None:
        """The device has been greeted: begin to push, until the socket ends."""
        if self.connection.ending:
            return
        self._begin_looking()
        early, self._early = self._early, None
        if early is None:
            self._doubt()
        for hint in early or ():
            self._hear(hint)
        if self._due or not self._is_at_rest():
            self._look_now()
            return
        # As most devices that come back: for these a task would be half of the work.
        self._leases, self._nothing_waits = None, False
        self._settle()
        self._look_after(self._next_look() - self._loop.time())

    def _is_at_rest(self) -> bool:
        """Whether taking the device over has told that there is nothing to do but to wait."""
        told = self._change is None and self._leases is not None and not self._leases
        return told and self._nothing_waits and self._next_look() > self._loop.time()

    def _next_look(self) -> float:
        """When to look whatever happens, by the loop's clock."""
        return min(self._session_ends, self._sure_until)

    def _ended(self) -> None:
        self._ended_at = min(self._ended_at, self._loop.time())
        self._end_looking()
        self._settle()

    async def stopped(self) -> None:
        """Begin nothing more, and wait until what is under way is done."""
        self._ended()
        await self._looked()

    async def settled(self) -> None:
        """Wait until the device has been announced, or the socket ends."""
        if not self._settled:
            if self._settling is None:
                self._settling = asyncio.Event()
            await self._settling.wait()

    def _settle(self) -> None:
        self._settled = True
        if self._settling is not None:
            self._settling.set()
            self._settling = None

    async def _look(self) -> float:
        try:
            return await self._step()
        except Unavailable:
            # Its own failure may be heard as a hint: what could not be confirmed waits again.
            self._look_no_sooner()
            return _RETRY * random.uniform(0.5, 1.5)
        except Unauthenticated:
            await self.signed_out()
        except Exception:
            _log.exception("socket failed", connection_id=str(self.connection.id))
            self.connection.end(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            self._settle()
        return float("inf")

    async def signed_out(self) -> None:
        """The socket's session is gone: close, with the code that tells whether a new one can be had."""
        barred = False
        with suppress(Unavailable):
            barred = await self._parts.attendance.barred(self.caller.uid)
        if barred:
            self.connection.end(CloseCode.FORBIDDEN, "suspended or deleted")
        self.connection.end(CloseCode.UNAUTHENTICATED, "session ended")

    async def _step(self) -> float:
        """Do what is due; return the seconds after which something may be due again."""
        now = self._loop.time()
        if now >= self._sure_until or self._ahead.lapsed:
            await self._stand()
        elif self._leases is not None:
            await self._begin_with(self._leases)
        wait = await self._fill()
        if self._session_ends <= self._loop.time():
            left = await self._parts.sessions.left_ms(self.caller) / 1000
            if left <= 0:
                raise Unauthenticated
            self._session_ends = self._loop.time() + left
        return min(wait, self._next_look() - self._loop.time())

    async def _begin_with(self, leases: Mapping[UUID, float]) -> None:
        """Do what taking the device over has told: announce it, and tell it of cancels that it missed."""
        try:
            if self._change is not None:
                await self._parts.attendance.change(self._change, self.origin)
            await self._ahead.agree(self.caller, leases)
        except BaseException:
            self._doubt()
            raise
        finally:
            self._change = self._leases = None

    async def _stand(self) -> None:
        """Say that the socket is open, and learn all that hints may have failed to tell."""
        assert self._number is not None
        # A hint that comes meanwhile casts doubt anew.
        self._sure_until = self._loop.time() + _SURE_FOR * random.uniform(0.8, 1.2)
        self._change = self._leases = None
        try:
            stand = await self._parts.presence.reassert(self.caller, self.connection.id, self._number)
            if stand.standing is Standing.SUPERSEDED:
                self.connection.end(CloseCode.SUPERSEDED, "superseded")
                return
            if stand.standing is Standing.SIGNED_OUT:
                raise Unauthenticated
            if stand.change is not None:
                await self._parts.attendance.change(stand.change, self.origin)
            await self._ahead.agree(self.caller, stand.leases)
        except BaseException:
            self._doubt()
            raise

    async def _fill(self) -> float:
        """Push up to what may be ahead; return the seconds until a lease ends, infinity when none does."""
        if self._nothing_waits:
            # As taking the device over has told; what has come since is a hint.
            self._nothing_waits = False
            return float("inf")
        return await self._ahead.fill()

    def give_back(self) -> None:
        """The socket has ended: hand back what was pushed just before and cannot have been taken."""
        self._ahead.give_back(self._ended_at, self._heard_text_at)
