"""The recent events of each customer: a capped stream in Redis, published as it grows (contract section 6).

Each event names its predecessor. So whoever reads or hears events can tell for itself that none is missing between two
of them, whatever was lost: a message, a connection, the head of the stream, or all of Redis.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

import orjson

from ..domain.values import LONGEST_EVENTS_S
from . import keys
from .redis_store import RedisStore

# Events are kept for their time and 1,000 events, whichever is more (section 6), but never more than this: a fleet that
# comes back after an outage tells thousands within seconds. A large event leaves room for no more than it must.
_KEPT_EVENTS = 1_000
_MOST_EVENTS = 10_000
_LARGE_OCTETS = 16 * 1024
_STREAM_TTL_MS = 3_600_000
# A portal that was away over a quiet weekend has missed nothing, and is told so.
_TAIL_TTL_MS = 7 * 86_400_000
# A repeat or a late relay comes within seconds: by then no customer has told of as many subjects since.
_MOST_SUBJECTS = 2_000
# One page of reading: what a socket that replays holds in memory.
PAGE_EVENTS = 128
PAGE_OCTETS = 512 * 1024
_ID = re.compile(r"(\d{1,19})-(\d{1,19})\Z", re.ASCII)

# The room that hears everything.
EVERYTHING = "customer"

Order = tuple[int, int]
# The place before the first event.
BEGINNING: Order = (0, 0)


def event_id(order: Order) -> str:
    """The id of an event as clients see it."""
    return f"{order[0]}-{order[1]}"


def order_of(text: str) -> Order | None:
    """The place of an event id in the stream, None for what cannot be one."""
    match = _ID.match(text)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place in the stream, that of the event before it, and its rooms, the most specific first.

    `rooms` ends with the room that hears everything. `frame` is what sockets get.
    """

    order: Order
    previous: Order
    rooms: tuple[str, ...]
    frame: bytes

    @classmethod
    def read(cls, id_text: str, previous: str, rooms: str, event: str) -> Self:
        """Make the frame by putting id and room in front of the stored JSON: encoded once for all sockets."""
        names = (*rooms.split(" "), EVERYTHING)
        head = orjson.dumps({"eventId": id_text, "room": names[0]})
        return cls(_order(id_text), _order(previous), names, head[:-1] + b"," + event[1:].encode())

    @classmethod
    def published(cls, data: str) -> Self:
        """Read a message of the channel: id, predecessor, rooms and JSON, a line each."""
        id_text, previous, rooms, event = data.split("\n", 3)
        return cls.read(id_text, previous, rooms, event)


@dataclass(frozen=True, slots=True)
class Page:
    """What follows `after` in a stream, not necessarily all of it; `tail` is the last event at that moment."""

    after: Order
    events: Sequence[StoredEvent]
    tail: Order

    @property
    def complete(self) -> bool:
        """Whether `after` is known, and nothing is missing behind it."""
        return (self.events[0].previous if self.events else self.tail) == self.after

    @property
    def reached(self) -> Order:
        """The place up to which the page tells everything there still is."""
        return self.events[-1].order if self.events else self.tail


class EventStream:
    """Where events are appended; sockets read them from here."""

    def __init__(self, store: RedisStore, kept_s: int = LONGEST_EVENTS_S) -> None:
        """`kept_s` is how long events are kept. Whoever publishes with a longer time drops nothing of the others'."""
        self._store = store
        self._kept_ms = kept_s * 1000
        self._stream_ttl_ms = max(_STREAM_TTL_MS, self._kept_ms)

    def publish(
        self, customer_id: UUID, subject: str, version: int, rooms: Sequence[str], event: dict[str, Any]
    ) -> Awaitable[str]:
        """Append and publish; return the event's id, or '' when `version` of `subject` is not news. Sent at once."""
        text = orjson.dumps(event).decode()
        return self._store.begin(
            "publish_event",
            [
                keys.customer_stream(customer_id),
                keys.customer_tail(customer_id),
                keys.customer_versions(customer_id),
            ],
            [
                version,
                keys.customer_channel(customer_id),
                " ".join(rooms),
                text,
                subject,
                _MOST_SUBJECTS,
                self._stream_ttl_ms,
                _TAIL_TTL_MS,
                _KEPT_EVENTS,
                _MOST_EVENTS if len(text) <= _LARGE_OCTETS else _KEPT_EVENTS,
                self._kept_ms,
            ],
        )

    async def tail(self, customer_id: UUID) -> Order:
        """The last event's place, `BEGINNING` when there is none. Raises `Unavailable`."""
        return _order(await self._store.call("GET", keys.customer_tail(customer_id)) or "")

    async def page(self, customer_id: UUID, after: Order) -> Page:
        """The events after `after`, as many as a page holds, at one moment. Raises `Unavailable`."""
        tail, *found = await self._store.run(
            "read_events",
            [keys.customer_stream(customer_id), keys.customer_tail(customer_id)],
            [event_id(after), PAGE_EVENTS, PAGE_OCTETS],
        )
        rows = zip(found[::4], found[1::4], found[2::4], found[3::4], strict=True)
        events = [StoredEvent.read(*row) for row in rows]
        last = events[-1].order if events else BEGINNING
        return Page(after, events, max(last, _order(tail)))


def _order(text: str) -> Order:
    return order_of(text) or BEGINNING
