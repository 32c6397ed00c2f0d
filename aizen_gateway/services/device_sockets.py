"""A device's socket: commands pushed ahead of the asking, and one socket a device wherever it is (section 6).

The socket is only another way to the same services: what it pushes was claimed as any claim is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

import orjson
import structlog

from ..domain import views
from ..domain.errors import GatewayError, Unauthenticated, Unavailable
from ..domain.records import Command
from ..domain.values import Connection as Way
from ..domain.values import DeviceCaller, DeviceStatus, Origin
from ..realtime.bus import Bus
from ..realtime.connection import CloseCode, Connection
from ..realtime.frames import frame
from ..storage.device_sessions import DeviceSessions
from ..storage.presence import Presence, Standing
from .attendance import Attendance
from .claiming import Claiming
from .delivery import Delivery

# Seconds. What was pushed less than this before the end, and after which nothing came, was not taken.
_TAKEN_AFTER = 5.0
_RETRY = 1.0
_FORBIDDEN = frozenset({"suspended", "deleted"})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pushed:
    """A command on its way: when it was sent, and until when it is leased (the loop's clock, seconds)."""

    command: Command
    sent_at: float
    leased_until: float


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """`prefetch` is how many commands are pushed ahead, `visibility_ms` their lease in milliseconds."""

    prefetch: int
    visibility_ms: int


class DeviceSockets:
    """The device sockets of this instance."""

    def __init__(
        self,
        bus: Bus,
        sessions: DeviceSessions,
        presence: Presence,
        attendance: Attendance,
        claiming: Claiming,
        delivery: Delivery,
    ) -> None:
        self.bus = bus
        self.sessions = sessions
        self.presence = presence
        self.attendance = attendance
        self.claiming = claiming
        self.delivery = delivery
        self.open_sockets: set[DeviceSocket] = set()

    @asynccontextmanager
    async def open(
        self, connection: Connection, token: str, options: SocketOptions, origin: Origin
    ) -> AsyncIterator[DeviceSocket]:
        """Take the device over; the socket is the device's while the block lasts.

        Raises `Unauthenticated`, `RateLimited`, `Unavailable`.
        """
        ticket = self.sessions.ticket(token)
        channel = ticket.keys.channel
        socket = DeviceSocket(self, connection, token, options, origin)
        self.bus.attach(channel, socket)
        try:
            # Joined before the device is taken over, so that no newer socket can go unnoticed.
            await self.bus.confirmed(channel)
            try:
                await socket.take_over()
                self.open_sockets.add(socket)
                yield socket
            finally:
                self.open_sockets.discard(socket)
                with suppress(Unavailable):
                    await self.presence.disconnect(ticket.device_id, connection.id)
                await socket.give_back()
        finally:
            self.bus.detach(channel, socket)


class DeviceSocket:
    """One device's socket. Handles the messages of the device's channel."""

    def __init__(
        self, home: DeviceSockets, connection: Connection, token: str, options: SocketOptions, origin: Origin
    ) -> None:
        self.connection = connection
        self.token = token
        self.origin = origin
        self._home = home
        self._options = options
        self._caller: DeviceCaller | None = None
        self._number: int | None = None
        self._pushed: dict[UUID, Pushed] = {}
        self._look = asyncio.Event()
        self._doubtful = False
        self._heard_text_at = float("-inf")
        self._session_ends = 0.0
        self._loop = asyncio.get_running_loop()

    @property
    def caller(self) -> DeviceCaller:
        """The device, as it was when the socket opened."""
        assert self._caller is not None
        return self._caller

    async def take_over(self) -> None:
        """Become the device's socket. Raises `Unauthenticated`, `RateLimited`, `Unavailable`."""
        home = self._home
        connected = await home.presence.connect(self.token, self.connection.id)
        self._caller, self._number = connected.caller, connected.number
        self._session_ends = self._loop.time() + (connected.expires_ms - connected.caller.now_ms) / 1000
        if connected.changed_ms is not None:
            status = DeviceStatus(connected.shown)
            await home.attendance.change(connected.caller.uid, status, Way.WEBSOCKET, connected.changed_ms, self.origin)

    def heard_text(self) -> None:
        """A text frame came: what was pushed before it has arrived."""
        self._heard_text_at = self._loop.time()

    def message(self, data: str) -> None:
        """A hint from whichever instance."""
        kind, _, rest = data.partition(" ")
        match kind:
            case "wake" | "ended":
                with suppress(ValueError):
                    self._pushed.pop(UUID(rest), None)
                self._look.set()
            case "superseded":
                if self._number is not None and int(rest) > self._number:
                    self.connection.end(CloseCode.SUPERSEDED, "superseded")
            case "revoked":
                code = CloseCode.FORBIDDEN if rest in _FORBIDDEN else CloseCode.UNAUTHENTICATED
                self.connection.end(code, rest)
            case "logout":
                if self._caller is not None and rest == self._caller.token_hash:
                    self.connection.end(CloseCode.UNAUTHENTICATED, "logged out")
            case "canceled":
                notice = orjson.loads(rest)
                self.connection.send(frame("command_canceled", notice["payload"], notice["requestId"]))

    def gap(self) -> None:
        """Hints may have been missed: look at everything anew."""
        self._doubtful = True
        self._look.set()

    def reassert(self) -> None:
        """The instance was thought dead, or Redis has forgotten: say again that this socket is open."""
        self.gap()

    def forget(self, command_id: UUID) -> None:
        """The device is done with a command: there is room for another."""
        if self._pushed.pop(command_id, None) is not None:
            self._look.set()

    def extended(self, command_id: UUID, extension_ms: int) -> None:
        """The device keeps a command for longer."""
        pushed = self._pushed.get(command_id)
        if pushed is not None:
            until = self._loop.time() + extension_ms / 1000
            self._pushed[command_id] = Pushed(pushed.command, pushed.sent_at, until)

    async def run(self) -> None:
        """Push until the socket ends; cancelled by its owner."""
        while not self.connection.ending:
            self._look.clear()
            try:
                wait = await self._step()
            except Unavailable:
                wait = _RETRY * random.uniform(0.5, 1.5)
            except Unauthenticated:
                self.connection.end(CloseCode.UNAUTHENTICATED, "session ended")
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), wait)

    async def _step(self) -> float:
        """Do what is due; return the seconds after which something may be due again."""
        if self._doubtful:
            await self._stand()
        wait = await self._fill()
        left = self._session_ends - self._loop.time()
        if left <= 0:
            left = await self._home.sessions.left_ms(self.caller) / 1000
            if left <= 0:
                raise Unauthenticated
            self._session_ends = self._loop.time() + left
        return min(left, wait) if wait is not None else left

    async def _stand(self) -> None:
        assert self._number is not None
        standing, changed_ms = await self._home.presence.reassert(self.caller, self.connection.id, self._number)
        self._doubtful = False
        if standing is Standing.SUPERSEDED:
            self.connection.end(CloseCode.SUPERSEDED, "superseded")
        elif standing is Standing.SIGNED_OUT:
            raise Unauthenticated
        elif changed_ms is not None:
            await self._home.attendance.change(self.caller.uid, DeviceStatus.ONLINE, Way.WEBSOCKET, changed_ms)

    async def _fill(self) -> float | None:
        """Push up to what may be ahead; return the seconds until a lease ends, None when none does."""
        if self._options.prefetch == 0 or self.connection.ending:
            return None
        now = self._loop.time()
        for command_id in [found for found, pushed in self._pushed.items() if pushed.leased_until <= now]:
            del self._pushed[command_id]
        free = self._options.prefetch - len(self._pushed)
        if free > 0:
            claim = self._home.claiming.begin(self.token, free, self._options.visibility_ms, self.origin)
            commands = await claim.attempt(counted=False)
            for command in commands:
                view = views.claimed_view(command, claim.now)
                until = self._loop.time() + view["leaseMs"] / 1000
                self._pushed[command.id] = Pushed(command, self._loop.time(), until)
                self.connection.send(frame("command", view, command.request_id))
            if len(commands) < free:
                return claim.next_lease_end_s
        return max(0.0, min(pushed.leased_until for pushed in self._pushed.values()) - self._loop.time())

    async def give_back(self) -> None:
        """The socket has ended: hand back what was pushed just before and cannot have been taken."""
        now = self._loop.time()
        for pushed in self._pushed.values():
            if now - pushed.sent_at < _TAKEN_AFTER and self._heard_text_at < pushed.sent_at:
                try:
                    await self._home.delivery.hand_back(self.caller, pushed.command, self.origin)
                except GatewayError as error:
                    _log.info("pushed command stays leased", command_id=str(pushed.command.id), error_code=error.code)
