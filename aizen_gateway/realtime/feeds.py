"""The events of a customer on their way to its local sockets: in order, without gaps, each once (contract section 6).

An instance follows the channel of a customer while it has a socket of it. After any gap of the subscriber it reads the
customer's stream from the last event it saw, so sockets notice nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from ..domain.errors import Unavailable
from ..storage import keys
from ..storage.events import EventStream, StoredEvent, event_id
from .bus import Bus
from .connection import CloseCode, Connection

# The room that hears everything.
EVERYTHING = "customer"
_RETRY_S = 0.5
# More than a stream holds: a socket that is this far behind while its past is replayed is too slow.
MOST_WAITING = 4_096


@dataclass(slots=True)
class Room:
    """A socket's membership. Events up to `floor` have been replayed or are not wanted.

    While its past is being read, `waiting` collects what comes meanwhile.
    """

    floor: tuple[int, int]
    waiting: deque[StoredEvent] | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What a subscription found: how many events follow from the past, and whether none is missing."""

    last_event_id: str | None
    replayed: int
    complete: bool


@dataclass(eq=False, slots=True)
class Subscriber:
    """A portal socket with the rooms it is in."""

    connection: Connection
    rooms: dict[str, Room] = field(default_factory=dict)

    def offer(self, event: StoredEvent) -> None:
        """Send a live event, once, if a room of it is joined; keep it where a room's past is still being read."""
        catching_up: Room | None = None
        for name in (*event.rooms, EVERYTHING):
            room = self.rooms.get(name)
            if room is None or event.order <= room.floor:
                continue
            if room.waiting is None:
                self.connection.send(event.frame)
                return
            catching_up = room
        if catching_up is not None and catching_up.waiting is not None:
            catching_up.waiting.append(event)
            if len(catching_up.waiting) > MOST_WAITING:
                self.connection.end(CloseCode.TRY_AGAIN_LATER, "slow consumer")

    def has(self, event: StoredEvent, besides: str) -> bool:
        """Whether another room than `besides` has brought this event to the socket already."""
        return any(
            name != besides and room.waiting is None and event.order > room.floor
            for name in (*event.rooms, EVERYTHING)
            if (room := self.rooms.get(name)) is not None
        )


class Feed:
    """The events of one customer at this instance. Handles the messages of the customer's channel."""

    def __init__(self, customer_id: UUID, stream: EventStream) -> None:
        self.customer_id = customer_id
        self.subscribers: set[Subscriber] = set()
        self._stream = stream
        self._beginning = asyncio.Lock()
        self._last: tuple[int, int] | None = None
        self._lost = True
        self._held: list[StoredEvent] = []
        self._mending: asyncio.Task[None] | None = None

    def message(self, data: str) -> None:
        """A published event. While a gap is being mended it waits for what came before it."""
        event = StoredEvent.published(data)
        if self._lost:
            self._held.append(event)
        else:
            self._deliver([event])

    def gap(self) -> None:
        """The subscriber may have missed events: read them from the stream."""
        if self._last is not None:
            self._lost = True
            if self._mending is None or self._mending.done():
                self._mending = asyncio.create_task(self._mend(), name="feed-mend")

    async def begin(self) -> None:
        """Start, once, where the stream now ends; the channel must be joined. Raises `Unavailable`."""
        async with self._beginning:
            if self._last is None:
                self._last = await self._stream.tail(self.customer_id) or (0, 0)
                self._release()

    async def stop(self) -> None:
        """End the mending that may be under way."""
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)

    async def _mend(self) -> None:
        while self._lost:
            try:
                missed = await self._stream.after(self.customer_id, self._last or (0, 0))
            except Unavailable:
                await asyncio.sleep(_RETRY_S)
                continue
            self._deliver(missed)
            self._release()

    def _release(self) -> None:
        self._lost = False
        held, self._held = self._held, []
        self._deliver(held)

    def _deliver(self, events: Iterable[StoredEvent]) -> None:
        for event in events:
            if self._last is not None and event.order <= self._last:
                continue
            self._last = event.order
            for subscriber in tuple(self.subscribers):
                subscriber.offer(event)

    async def join(self, subscriber: Subscriber, room: str, after: str | None) -> Past:
        """Join `room` and find what came after the event id `after`; `finish` then replays it and goes live.

        What happens meanwhile waits, so that nothing is missed or repeated. Raises `Unavailable`.
        """
        joined = Room((0, 0), waiting=deque())
        subscriber.rooms[room] = joined
        try:
            read = await self._stream.read(self.customer_id, after)
        except BaseException:
            subscriber.rooms.pop(room, None)
            raise
        assert joined.waiting is not None
        wanted = [
            event
            for event in read.events
            if room in (*event.rooms, EVERYTHING) and not subscriber.has(event, besides=room)
        ]
        joined.floor = read.tail or (0, 0)
        joined.waiting = deque([*wanted, *(event for event in joined.waiting if event.order > joined.floor)])
        return Past(event_id(read.tail) if read.tail else None, len(wanted), read.complete)

    @staticmethod
    async def finish(subscriber: Subscriber, room: str) -> None:
        """Send what waited, no faster than the peer reads, and go live."""
        joined = subscriber.rooms.get(room)
        if joined is None or joined.waiting is None:
            return
        while joined.waiting and not subscriber.connection.ending:
            await subscriber.connection.roomy()
            subscriber.connection.send(joined.waiting.popleft().frame)
        joined.waiting = None


class Feeds:
    """The feeds of the customers that have sockets here."""

    def __init__(self, bus: Bus, stream: EventStream) -> None:
        self._bus = bus
        self._stream = stream
        self._feeds: dict[UUID, Feed] = {}

    @asynccontextmanager
    async def follow(self, customer_id: UUID, subscriber: Subscriber) -> AsyncIterator[Feed]:
        """Take part in a customer's feed for as long as the block lasts. Raises `Unavailable`."""
        channel = keys.customer_channel(customer_id)
        feed = self._feeds.get(customer_id)
        if feed is None:
            feed = self._feeds[customer_id] = Feed(customer_id, self._stream)
            self._bus.attach(channel, feed)
        feed.subscribers.add(subscriber)
        try:
            await self._bus.confirmed(channel)
            await feed.begin()
            yield feed
        finally:
            feed.subscribers.discard(subscriber)
            if not feed.subscribers and self._feeds.get(customer_id) is feed:
                del self._feeds[customer_id]
                self._bus.detach(channel, feed)
                await feed.stop()
