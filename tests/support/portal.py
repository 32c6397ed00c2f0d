"""Portals' sockets in tests: what they heard, and events that come faster than the API could cause them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from aizen_gateway.storage.events import EventStream
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore

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
        """Publish `count` events, numbered on, and return the last one's id."""
        for _ in range(count):
            number = len(self.told)
            event = {"type": "device_status", "payload": {"number": number, **payload}}
            rooms = room.split(" ")
            event_id = await self.stream.publish(self.customer_id, "device:d-1", 0, rooms, event)
            assert event_id is not None
            self.told.append((event_id, number))
        return self.told[-1][0]


@pytest.fixture
async def stream(redis_url: str) -> AsyncIterator[EventStream]:
    """The events of the worker's Valkey, as another instance has them."""
    store = RedisStore.connect(RedisOptions(redis_url))
    yield EventStream(store)
    await store.close()
