"""One device's socket: commands pushed ahead of the asking, and hints of the other instances acted on (section 6).

Hints may be lost or read late, so what they say is checked against Redis whenever there is doubt, and now and then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import UUID

import orjson
import structlog

from ..domain import views
from ..domain.errors import GatewayError, Unauthenticated, Unavailable
from ..domain.records import Command
from ..domain.values import DeviceCaller, Origin
from ..realtime.connection import CloseCode, Connection
from ..realtime.frames import frame
from ..realtime.tasks import whole
from ..storage.device_sessions import DeviceSessions, Ticket
from ..storage.presence import Presence, Standing
from .announcements import stop_payload
from .attendance import Attendance
from .claiming import Claiming
from .delivery import Delivery

# Seconds. What was pushed less than this before the end, and after which nothing came, was not taken.
_TAKEN_AFTER = 5.0
_RETRY = 1.0
# However sure the hints are, a socket looks anew this often.
_SURE_FOR = 60.0
_FORBIDDEN = frozenset({"suspended", "deleted"})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SocketParts:
    """The services that every device socket of an instance works with."""

    sessions: DeviceSessions
    presence: Presence
    attendance: Attendance
    claiming: Claiming
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """`prefetch` is how many commands are pushed ahead, `visibility_ms` their lease in milliseconds."""

    prefetch: int
    visibility_ms: int


@dataclass(frozen=True, slots=True)
class Pushed:
    """A command on its way: when it was sent, and until when it is leased (the loop's clock, seconds)."""

    command: Command
    sent_at: float
    leased_until: float


class DeviceSocket:
    """One device's socket. Handles the messages of the device's channel."""

    def __init__(
        self,
        parts: SocketParts,
        connection: Connection,
        token: str,
        ticket: Ticket,
        options: SocketOptions,
        origin: Origin,
    ) -> None:
        self.connection = connection
        self.token = token
        self.origin = origin
        self._parts = parts
        self._ticket = ticket
        self._options = options
        self._caller: DeviceCaller | None = None
        self._number: int | None = None
        self._pushed: dict[UUID, Pushed] = {}
        self._told: set[UUID] = set()
        self._look = asyncio.Event()
        # Until the first look nobody knows what was missed while the socket opened.
        self._sure_until = float("-inf")
        self._heard_text_at = float("-inf")
        self._session_ends = 0.0
        self._loop = asyncio.get_running_loop()
        # Set after the first look, or at the end: what the device says is done after it was announced.
        self.settled = asyncio.Event()
        for event in (self._look, self.settled):
            connection.when_ending(event.set)

    @property
    def caller(self) -> DeviceCaller:
        """The device, as it was when the socket opened."""
        assert self._caller is not None
        return self._caller

    async def take_over(self) -> None:
        """Become the device's socket. Raises `Unauthenticated`, `Unavailable`."""
        connected = await self._parts.presence.connect(self.token, self.connection.id)
        self._caller, self._number = connected.caller, connected.number
        self._session_ends = self._loop.time() + (connected.expires_ms - connected.caller.now_ms) / 1000

    def heard_text(self) -> None:
        """A text frame came: what was pushed before it has arrived."""
        self._heard_text_at = self._loop.time()

    def message(self, data: str) -> None:
        """A hint from whichever instance. Before the device is taken over, the first look tells all of it."""
        if self._number is None:
            return
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
            self._told.add(UUID(notice["payload"]["id"]))
            self.connection.send(frame("command_canceled", notice["payload"], notice["requestId"]))
            return
        if kind == "ended":
            self._pushed.pop(UUID(rest), None)
        elif rest and UUID(rest) in self._pushed:
            # It waits again; or it did, when this was sent, and has been pushed since.
            self._doubt()
        self._look.set()

    def gap(self) -> None:
        """Hints may have been missed: look at everything anew."""
        self._doubt()
        self._look.set()

    def _doubt(self) -> None:
        self._sure_until = float("-inf")

    def forget(self, command_id: UUID, claim_token: str) -> None:
        """The device is done with a command as it was pushed: there is room for another."""
        pushed = self._pushed.get(command_id)
        if pushed is not None and pushed.command.claim_token == claim_token:
            del self._pushed[command_id]
            self._look.set()

    async def run(self) -> None:
        """Push until the socket ends; cancelled by its owner."""
        while not self.connection.ending:
            self._look.clear()
            try:
                wait = await self._step()
            except Unavailable:
                wait = _RETRY * random.uniform(0.5, 1.5)
            except Unauthenticated:
                await self.signed_out()
                return
            finally:
                self.settled.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._look.wait()

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
        if now >= self._sure_until or any(pushed.leased_until <= now for pushed in self._pushed.values()):
            await whole(self._stand())
        wait = await whole(self._fill())
        left = self._session_ends - self._loop.time()
        if left <= 0:
            left = await self._parts.sessions.left_ms(self.caller) / 1000
            if left <= 0:
                raise Unauthenticated
            self._session_ends = self._loop.time() + left
        return min(left, wait, self._sure_until - self._loop.time())

    async def _stand(self) -> None:
        """Say that the socket is open, and learn all that hints may have failed to tell."""
        assert self._number is not None
        # A hint that comes meanwhile casts doubt anew.
        self._sure_until = self._loop.time() + _SURE_FOR * random.uniform(0.8, 1.2)
        try:
            new = not self.settled.is_set()
            stand = await self._parts.presence.reassert(self.caller, self.connection.id, self._number, new=new)
            if stand.standing is Standing.SUPERSEDED:
                self.connection.end(CloseCode.SUPERSEDED, "superseded")
                return
            if stand.standing is Standing.SIGNED_OUT:
                raise Unauthenticated
            if stand.change is not None:
                await self._parts.attendance.change(stand.change, self.origin)
            await self._agree(stand.leases)
        except BaseException:
            self._doubt()
            raise

    async def _agree(self, leases: Mapping[UUID, float]) -> None:
        """Make what counts as pushed agree with the leases that there are, and tell of cancels that were missed."""
        now = self._loop.time()
        asked = (leases.keys() | self._pushed.keys()) - self._told
        for command in await self._parts.delivery.to_stop(self.caller, list(asked)) if asked else ():
            self._told.add(command.id)
            self.connection.send(frame("command_canceled", stop_payload(command)))
        self._told.intersection_update(leases)
        self._pushed = {
            command_id: replace(pushed, leased_until=now + leases[command_id])
            for command_id, pushed in self._pushed.items()
            if command_id in leases
        }

    async def _fill(self) -> float:
        """Push up to what may be ahead; return the seconds until a lease ends, infinity when none does."""
        free = self._options.prefetch - len(self._pushed)
        if free > 0 and not self.connection.ending:
            claim = self._parts.claiming.begin(self.token, free, self._options.visibility_ms, self.origin, pushed=True)
            commands = await claim.attempt(counted=False)
            for command in commands:
                self._push(command, views.claimed_view(command, claim.now))
            if len(commands) < free:
                ends = claim.next_lease_end_s
                return float("inf") if ends is None else ends
        if not self._pushed:
            return float("inf")
        return max(0.0, min(pushed.leased_until for pushed in self._pushed.values()) - self._loop.time())

    def _push(self, command: Command, view: views.View) -> None:
        now = self._loop.time()
        self._pushed[command.id] = Pushed(command, now, now + view["leaseMs"] / 1000)
        self._told.discard(command.id)
        self.connection.send(frame("command", view, command.request_id))

    async def give_back(self) -> None:
        """The socket has ended: hand back what was pushed just before and cannot have been taken."""
        now = self._loop.time()
        for pushed in tuple(self._pushed.values()):
            if now - pushed.sent_at >= _TAKEN_AFTER or self._heard_text_at >= pushed.sent_at:
                continue
            try:
                await self._parts.delivery.hand_back(self.caller, pushed.command, self.origin)
            except GatewayError as error:
                _log.info("pushed command stays leased", command_id=str(pushed.command.id), error_code=error.code)
