"""The device sockets of an instance: one a device, wherever it is, and nothing left undone by those that ended."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import structlog

from ..domain.errors import Unavailable
from ..domain.values import Origin
from ..realtime.bus import Bus
from ..realtime.connection import Connection
from ..realtime.later import Later
from ..realtime.tasks import end
from ..storage.device_sessions import DeviceSessions
from ..storage.presence import Presence
from .attendance import Attendance
from .claiming import Claiming
from .delivery import Delivery
from .device_socket import DeviceSocket, SocketParts
from .prefetch import SocketOptions

# So many sockets say again each second that they are open, when all of an instance must.
_REASSERTED_A_SECOND = 2_000

_log = structlog.get_logger(__name__)


class DeviceSockets:
    """The device sockets of this instance. It owns what is left to do for sockets that have ended."""

    def __init__(
        self,
        bus: Bus,
        sessions: DeviceSessions,
        presence: Presence,
        attendance: Attendance,
        claiming: Claiming,
        delivery: Delivery,
    ) -> None:
        self._bus = bus
        self._parts = SocketParts(sessions, presence, attendance, claiming, delivery, Later())
        self.open_sockets: set[DeviceSocket] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        # Ended sockets of which Redis does not know yet, each with its device.
        self._unsaid: dict[UUID, str] = {}

    async def open(self, connection: Connection, token: str, options: SocketOptions, origin: Origin) -> DeviceSocket:
        """Take the device over: the socket is the device's from now on, until it `leave`s.

        Raises `Unauthenticated`, `Unavailable`.
        """
        ticket = self._parts.sessions.ticket(token)
        socket = DeviceSocket(self._parts, connection, token, ticket, options, origin)
        self._bus.attach(ticket.keys.channel, socket)
        try:
            # Joined and listed before the device is taken over: no newer socket goes unnoticed, and no death of this
            # instance. Both are under way at the same time.
            listing = self._parts.presence.list_socket(ticket.device_id, connection.id)
            await self._bus.confirmed(ticket.keys.channel)
            await listing
            await socket.take_over()
        except BaseException:
            self._begin_leaving(socket)
            raise
        self.open_sockets.add(socket)
        return socket

    async def leave(self, socket: DeviceSocket) -> None:
        """The socket has ended: say so, and give back what was not taken."""
        self.open_sockets.discard(socket)
        # Whoever cancels the socket cancels neither its end nor what is given back.
        await asyncio.shield(self._begin_leaving(socket))

    def _begin_leaving(self, socket: DeviceSocket) -> asyncio.Task[None]:
        leaving = asyncio.create_task(self._leave(socket), name="socket-leaves")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        return leaving

    async def _leave(self, socket: DeviceSocket) -> None:
        connection_id = socket.connection.id
        try:
            try:
                await socket.stopped()
            finally:
                self._unsaid[connection_id] = socket.device_id
            # Before a Redis that is slow to hear of the end.
            socket.give_back()
            await self._say_ended(connection_id)
        finally:
            self._bus.detach(socket.channel, socket)

    async def _say_ended(self, connection_id: UUID) -> bool:
        try:
            await self._parts.presence.disconnect(self._unsaid[connection_id], connection_id)
        except Unavailable as error:
            _log.info("end of a socket is told later", reason=error.message, connection_id=str(connection_id))
            return False
        self._unsaid.pop(connection_id, None)
        return True

    async def finish_leaving(self, within: float) -> bool:
        """Tell Redis of the ended sockets of which it could not be told, for at most `within` seconds.

        Return whether it now knows of all. Raises `Unavailable`.
        """
        until = asyncio.get_running_loop().time() + within
        for connection_id in tuple(self._unsaid):
            if asyncio.get_running_loop().time() >= until:
                break
            if connection_id in self._unsaid and not await self._say_ended(connection_id):
                raise Unavailable("Redis is not reachable.")
        return not self._unsaid

    async def left(self, within: float) -> None:
        """Wait until all ended sockets have left, for at most `within` seconds; then those that hang are given up."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=within)
        await end(*self._leaving)

    def reassert(self) -> None:
        """This instance was thought dead, or Redis was emptied: every socket says again that it is open."""
        loop = asyncio.get_running_loop()
        spread = len(self.open_sockets) / _REASSERTED_A_SECOND
        for socket in self.open_sockets:
            loop.call_later(random.uniform(0, spread), socket.gap)
