"""The recent events of each customer: a capped stream in Redis, published as it grows (contract section 6)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

import orjson

from . import keys
from .redis_store import RedisStore

# The contract keeps 10 minutes or 1,000 events; the cap is approximate and the time generous.
MOST_EVENTS = 1_100
STREAM_TTL_MS = 3_600_000
VERSION_TTL_MS = 3_600_000
_PAGE = 200
_ID = re.compile(r"(\d{1,19})-(\d{1,19})\Z", re.ASCII)

Order = tuple[int, int]


def event_id(order: Order) -> str:
    """The id of an event as clients see it."""
    return f"{order[0]}-{order[1]}"


def order_of(text: str) -> Order | None:
    """The place of an event id in the stream, None for what cannot be one."""
    match = _ID.match(text)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place in the stream and its rooms, the most specific first; `frame` is what sockets get."""

    order: Order
    rooms: tuple[str, ...]
    frame: bytes

    @classmethod
    def read(cls, id_text: str, rooms: str, event: str) -> Self:
        """Make the frame by putting id and room in front of the stored JSON: encoded once for all sockets."""
        names = tuple(rooms.split(" "))
        order = order_of(id_text)
        assert order is not None
        head = orjson.dumps({"eventId": id_text, "room": names[0]})
        return cls(order, names, head[:-1] + b"," + event[1:].encode())

    @classmethod
    def published(cls, data: str) -> Self:
        """Read a message of the channel: id, rooms and JSON, a line each."""
        id_text, rooms, event = data.split("\n", 2)
        return cls.read(id_text, rooms, event)


@dataclass(frozen=True, slots=True)
class Read:
    """What a stream holds after an event; `complete` tells that nothing of it had been dropped."""

    events: Sequence[StoredEvent]
    tail: Order | None
    complete: bool


class EventStream:
    """Where events are appended; sockets read them from here."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def publish(
        self, customer_id: UUID, subject: str, version: int, rooms: Sequence[str], event: dict[str, Any]
    ) -> str | None:
        """Append and publish; return the event's id, or None when `version` of `subject` is not news."""
        published = await self._store.run(
            "publish_event",
            [keys.customer_stream(customer_id), keys.subject_version(customer_id, subject)],
            [
                version,
                keys.customer_channel(customer_id),
                " ".join(rooms),
                orjson.dumps(event).decode(),
                MOST_EVENTS,
                STREAM_TTL_MS,
                VERSION_TTL_MS,
            ],
        )
        return published or None

    async def tail(self, customer_id: UUID) -> Order | None:
        """The last event's place, None when there is none. Raises `Unavailable`."""
        found = await self._store.entries("XREVRANGE", keys.customer_stream(customer_id), "+", "-", 1)
        return order_of(found[0][0]) if found else None

    async def after(self, customer_id: UUID, order: Order) -> Sequence[StoredEvent]:
        """All events after `order`. Raises `Unavailable`."""
        events: list[StoredEvent] = []
        stream = keys.customer_stream(customer_id)
        while True:
            page = await self._store.entries("XRANGE", stream, f"({event_id(order)}", "+", _PAGE)
            events += [StoredEvent.read(id_text, fields["r"], fields["e"]) for id_text, fields in page]
            if len(page) < _PAGE:
                return events
            order = events[-1].order

    async def read(self, customer_id: UUID, after: str | None) -> Read:
        """What came after the event id `after`, None for nothing of the past. Raises `Unavailable`."""
        if after is None:
            return Read([], await self.tail(customer_id), True)
        order = order_of(after)
        if order is None:
            return Read([], await self.tail(customer_id), False)
        known = await self._store.entries("XRANGE", keys.customer_stream(customer_id), after, after, 1)
        events = await self.after(customer_id, order)
        tail = events[-1].order if events else await self.tail(customer_id)
        return Read(events, tail, bool(known))
