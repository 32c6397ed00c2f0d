"""Portals' sockets in tests: what they heard, and events that come faster than the API could cause them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from socket import SHUT_RDWR
from typing import Any
from uuid import UUID

import pytest

from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.realtime.tasks import end
from aizen_gateway.storage.events import EventStream
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore

from .raw_socket import RawSocket
from .sockets import SocketClient

Frame = dict[str, Any]


def is_event(frame: Frame) -> bool:
    return "eventId" in frame


def numbers(frames: Sequence[Frame]) -> list[int]:
    """What `Newsroom.tell` said."""
    return [frame["payload"]["number"] for frame in frames]


async def events(socket: SocketClient, count: int) -> list[Frame]:
    """The next `count` events that come on the socket, in their order, those that came before they were wanted first.

    Other frames are kept in `earlier`.
    """
    found = [frame for frame in socket.earlier if is_event(frame)][:count]
    socket.earlier = [frame for frame in socket.earlier if frame not in found]
    while len(found) < count:
        frame = await socket.receive()
        (found if is_event(frame) else socket.earlier).append(frame)
    return found


@asynccontextmanager
async def raw_portal(
    url: str, headers: Mapping[str, str] | None = None, *, receive_buffer: int | None = None
) -> AsyncIterator[RawSocket]:
    """A portal's socket that has been upgraded; its greeting has not been read."""
    socket = await RawSocket.open(url, "/ws/customer", headers, receive_buffer=receive_buffer)
    try:
        yield socket
    finally:
        socket.cut()


def fall_off(socket: SocketClient) -> None:
    """End the connection without a close frame."""
    socket.ws.get_extra_info("socket").shutdown(SHUT_RDWR)


async def subscribe(socket: SocketClient, room: str = "customer", last_event_id: str | None = None) -> Any:
    """Subscribe and return the answer's payload."""
    payload = {"room": room} if last_event_id is None else {"room": room, "lastEventId": last_event_id}
    return await socket.ask("subscribe", payload, answer="subscribed")


@dataclass(slots=True)
class Newsroom:
    """Publishes events of a customer as any instance would. `told` are the ids and numbers so far."""

    stream: EventStream
    customer_id: UUID
    told: list[tuple[str, int]] = field(default_factory=list)

    async def tell(self, count: int = 1, room: str = "device:d-1", **payload: Any) -> str:
        """Publish `count` events, numbered on, and return the last one's id. `room` may be several, with spaces."""
        for _ in range(count):
            number = len(self.told)
            event_id = await self._publish(number, room.split(" "), payload)
            assert event_id is not None
            self.told.append((event_id, number))
        return self.told[-1][0]

    async def insist(self, numbers: Iterator[int], ends: asyncio.Event) -> None:
        """Publish events with `numbers` until it `ends`, each until it has been taken, whatever happens to Redis."""
        while not ends.is_set():
            number, taken = next(numbers), False
            while not taken:
                with suppress(Unavailable):
                    # Not taken twice either: what is known already is no news. Versions rise, as the outbox's do: of
                    # equal ones any might be forgotten first.
                    await self._publish(number, ["device:d-1"], {}, version=number + 1)
                    taken = True
                await asyncio.sleep(0)

    async def _publish(self, number: int, rooms: list[str], payload: dict[str, Any], version: int = 0) -> str | None:
        event = {"type": "device_status", "payload": {"number": number, **payload}}
        return await self.stream.publish(self.customer_id, f"told:{number}", version, rooms, event)


class Pouring:
    """Events that are published in tight loops. `stop` returns how many there were."""

    def __init__(self, rooms: Sequence[Newsroom]) -> None:
        self._numbers = itertools.count()
        self._ends = asyncio.Event()
        self._tasks = [asyncio.create_task(room.insist(self._numbers, self._ends)) for room in rooms]

    async def stop(self) -> int:
        self._ends.set()
        await asyncio.gather(*self._tasks)
        return next(self._numbers)

    async def end(self) -> None:
        await end(*self._tasks)


@asynccontextmanager
async def pouring(customer_id: str, *urls: str) -> AsyncIterator[Pouring]:
    """Publish events of the customer as fast as can be, in a loop for each Valkey of `urls`, until it is stopped."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(stream_of(url)) for url in urls]
        poured = Pouring([Newsroom(stream, UUID(customer_id)) for stream in streams])
        stack.push_async_callback(poured.end)
        yield poured


@asynccontextmanager
async def stream_of(url: str) -> AsyncIterator[EventStream]:
    """The events of a Valkey, as another instance has them."""
    store = RedisStore.connect(RedisOptions(url))
    try:
        yield EventStream(store)
    finally:
        await store.close()


@pytest.fixture
async def stream(redis_url: str) -> AsyncIterator[EventStream]:
    """The events of the worker's Valkey, as another instance has them."""
    async with stream_of(redis_url) as opened:
        yield opened
