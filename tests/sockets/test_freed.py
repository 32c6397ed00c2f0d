"""Sockets that have ended are freed at once: the garbage collector, which looks seldom, is not needed for them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from aizen_gateway.api.sockets.conversation import Conversation
from aizen_gateway.api.sockets.wire import SocketWire, WebSocket
from aizen_gateway.domain.values import Actor, ActorType, Principal, Role
from aizen_gateway.realtime.connection import Connection
from aizen_gateway.realtime.later import Appointment, Later
from aizen_gateway.services.device_socket import DeviceSocket
from aizen_gateway.services.portal_sockets import Credentials, PortalSocket, PortalTimes
from tests.support.line import Line
from tests.support.pipe import Pipe, running
from tests.support.sockets import device_socket, portal_socket
from tests.support.waiting import eventually

_PARTS = (Connection, Conversation, DeviceSocket, PortalSocket, SocketWire, WebSocket)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def parts() -> list[str]:
    """What there is of sockets."""
    return sorted(type(found).__name__ for found in gc.get_objects() if type(found) in _PARTS)


async def test_nothing_is_left_of_sockets_that_ended_in_whatever_way(line: Line, uncollected: None) -> None:
    async with device_socket(line.device) as older, device_socket(line.device) as newer:
        assert await older.closed() == 4409
        await line.submit()
        await newer.expect("command")
        await newer.ask("heartbeat", {"status": "online"}, answer="heartbeat_ack")
    async with device_socket(line.device) as broken:
        await broken.ws.send_bytes(b"")
        assert await broken.closed() == 1003
    async with device_socket(line.device) as large:
        await large.ws.send_str("x" * (256 * 1024 + 2))
        assert await large.closed() == 1009
    async with portal_socket(line.world.owner) as portal:
        await portal.ask("subscribe", {"room": "customer"}, answer="subscribed")
    async with device_socket(line.device) as cut:
        await cut.ask("ping", answer="pong")
        cast(Any, cut.ws)._response.connection.transport.abort()
    await eventually(parts, lambda found: not found)


class Late(Later):
    """Timers that tell what has been set, and call nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.set: list[Appointment] = []

    def call_later(self, delay: float, callback: Any, *args: Any) -> Appointment:
        self.set.append(super().call_later(3600.0, callback, *args))
        return self.set[-1]

    @property
    def waiting(self) -> int:
        return sum(map(len, self._due.values()))


async def test_a_look_at_membership_that_its_cancellation_does_not_reach_sets_no_other() -> None:
    asked = asyncio.Event()

    @asynccontextmanager
    async def connection() -> AsyncIterator[None]:
        asked.set()
        # As a library that answers though it was cancelled, because the answer came at the same moment.
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield

    timers = Late()
    home = SimpleNamespace(timers=timers, times=PortalTimes(), database=SimpleNamespace(connection=connection))
    principal = Principal(uuid4(), Actor(ActorType.USER, str(uuid4())), Role.OWNER, 2e9, 0)
    async with running(Pipe()) as live:
        socket = PortalSocket(cast(Any, home), live, Credentials("token", None), principal)
        socket.begin(cast(Any, None))
        timers.set[-1].come()
        async with asyncio.timeout(5):
            await asked.wait()
        await socket.stop()
        # The one that has just come is still in its place.
        timers.set[1].cancel()
        assert timers.waiting == 0
