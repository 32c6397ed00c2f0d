"""The events of one customer on their way to its local sockets: in order, without gaps, each once (section 6).

An instance follows the channel of a customer while it has a socket of it. Each event names its predecessor, so a feed
that missed one notices, and reads the customer's stream from the last event it saw: sockets notice nothing.

A socket that asks for the past leaves the live events alone for a while and reads with a cursor of its own, no faster
than its peer does; where the cursor meets the feed it is live again. So nothing has to be kept for it meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from uuid import UUID

import structlog

from ..domain.errors import Unavailable
from ..storage.events import BEGINNING, EventStream, Order, Page, StoredEvent, event_id, order_of
from .close_codes import CloseCode
from .connection import Connection
from .subscribers import Past, Replay, Subscriber
from .tasks import end

# Seconds.
_RETRY = 0.5
_REACH = 2.0
_STALLED = 30.0
# Sockets that get an event before others have a turn: a millisecond or two of work.
_AT_A_TIME = 100
# What a feed keeps at hand of what it delivered, for sockets that just missed it, and of what it heard while it reads.
_MOST_RECENT = 128
_MOST_RECENT_OCTETS = 256 * 1024

_log = structlog.get_logger(__name__)


class Feed:
    """The events of one customer at this instance. Handles the messages of the customer's channel."""

    def __init__(self, customer_id: UUID, stream: EventStream) -> None:
        self.customer_id = customer_id
        self.subscribers: set[Subscriber] = set()
        self._stream = stream
        self._beginning = asyncio.Lock()
        self._begun = False
        self._last = BEGINNING
        self._recent: deque[StoredEvent] = deque()
        self._octets = 0
        # Heard while something else was read; what is pushed out of it is read instead.
        self._held: deque[StoredEvent] = deque(maxlen=_MOST_RECENT)
        self._doubtful = False
        self._mending: asyncio.Task[None] | None = None
        # The event that is going out, the sockets that have yet to be offered it, and what does so.
        self._out: StoredEvent | None = None
        self._left: set[Subscriber] = set()
        self._spreading: asyncio.Task[None] | None = None

    def message(self, data: str) -> None:
        """A published event. While a gap is being mended, or another goes out, it waits for what came before it."""
        self._held.append(StoredEvent.published(data))
        if self._begun and self._mending is None:
            self._take_held()

    def gap(self) -> None:
        """The subscriber may have missed events: read them from the stream."""
        self._doubtful = True
        self._mend_if_doubtful()

    async def begin(self) -> None:
        """Start, once, where the stream now ends; the channel must be joined. Raises `Unavailable`."""
        async with self._beginning:
            if not self._begun:
                self._last = await self._stream.tail(self.customer_id)
                self._begun = True
                self._take_held()

    async def stop(self) -> None:
        """End what may be under way."""
        await end(*(task for task in (self._mending, self._spreading) if task is not None))

    def _take_held(self) -> None:
        """Deliver what was heard, so far as it follows what was delivered."""
        while self._held and self._spreading is None:
            event = self._held.popleft()
            if event.order <= self._last:
                continue
            if event.previous == self._last:
                self._deliver(event)
            else:
                self._doubtful = True
        self._mend_if_doubtful()

    def _deliver(self, event: StoredEvent) -> None:
        self._last = event.order
        self._recent.append(event)
        self._octets += len(event.frame)
        while len(self._recent) > _MOST_RECENT or self._octets > _MOST_RECENT_OCTETS:
            self._octets -= len(self._recent.popleft().frame)
        if len(self.subscribers) <= _AT_A_TIME:
            for subscriber in tuple(self.subscribers):
                subscriber.offer(event)
        else:
            self._out, self._left = event, set(self.subscribers)
            self._spreading = asyncio.create_task(self._spread(event), name="feed-spread")

    async def _spread(self, event: StoredEvent) -> None:
        """Offer an event to many sockets, and let others have their turn on the way. The next event waits."""
        left = self._left
        try:
            while left:
                for _ in range(min(_AT_A_TIME, len(left))):
                    left.pop().offer(event)
                await asyncio.sleep(0)
        finally:
            self._out = self._spreading = None
        if self._mending is None:
            self._take_held()

    def _catch_up(self, subscriber: Subscriber) -> None:
        """Offer a socket the last event now, if it is yet to be: so that it is where the feed is."""
        if self._out is not None and subscriber in self._left:
            self._left.discard(subscriber)
            subscriber.offer(self._out)

    async def _spread_out(self) -> None:
        """Wait until the last event has gone out."""
        while self._spreading is not None:
            await asyncio.wait({self._spreading})

    def _mend_if_doubtful(self) -> None:
        if self._doubtful and self._begun and self._mending is None:
            self._mending = asyncio.create_task(self._mend(), name="feed-mend")

    async def _mend(self) -> None:
        """Read on from the last event until nothing can be missing."""
        try:
            while self._doubtful:
                self._doubtful = False
                page = await self._patient_page(self._last, lambda: False)
                await self._spread_out()
                if page.complete:
                    for event in page.events:
                        self._deliver(event)
                        await self._spread_out()
                else:
                    self._lose(page)
                if page.reached < page.tail:
                    self._doubtful = True
                self._take_held()
        finally:
            self._mending = None

    def _lose(self, page: Page) -> None:
        """Events are gone that nobody here saw: only a resumed subscription can tell a portal so."""
        _log.warning("events lost", customer_id=str(self.customer_id), sockets=len(self.subscribers))
        self._left.clear()
        self._recent.clear()
        self._octets = 0
        self._last = page.tail
        for subscriber in tuple(self.subscribers):
            if subscriber.rooms:
                subscriber.connection.end(CloseCode.TRY_AGAIN_LATER, "events lost")

    async def _patient_page(self, after: Order, over: Callable[[], bool]) -> Page:
        """A page of the stream, waited for while Redis is away unless it is `over`: then raises `Unavailable`."""
        while True:
            try:
                return await self._stream.page(self.customer_id, after)
            except Unavailable:
                if over():
                    raise
                await asyncio.sleep(_RETRY)

    async def _reach(self, order: Order) -> None:
        """Have the feed deliver up to `order`, which is in the stream. Raises `Unavailable`."""
        if self._last < order:
            self.gap()
            if self._mending is not None:
                await asyncio.wait({self._mending}, timeout=_REACH)
            if self._last < order:
                raise Unavailable("Redis is not reachable.")

    def _at_hand(self, after: Order) -> Sequence[StoredEvent] | None:
        """All that was delivered after the event `after`, None when it has to be read."""
        if after == self._last:
            return ()
        for number, event in enumerate(self._recent):
            if event.previous == after:
                return list(islice(self._recent, number, None))
        return None

    async def join(self, subscriber: Subscriber, room: str, after: str | None) -> Past:
        """Join `room` and find what came after the event id `after`; `finish` then replays it.

        Until `finish` the socket gets no events, so that the answer goes first. Joining again without `after` changes
        nothing. Raises `Unavailable`; then nothing has changed either.
        """
        asked = order_of(after) if after is not None else None
        if asked is None:
            await self._reach(await self._stream.tail(self.customer_id))
            self._catch_up(subscriber)
            subscriber.rooms.setdefault(room, self._last)
            return self._past(0, complete=after is None)

        page = await self._stream.page(self.customer_id, asked)
        # No event has the id of the beginning, though all follow it.
        complete = page.complete and asked > BEGINNING
        start = page.events[0].previous if page.events else page.tail
        count, first = 0, page.events if page.reached == page.tail else None
        while True:
            count += sum(subscriber.missed(event, room) for event in page.events)
            if page.reached == page.tail:
                await self._reach(page.tail)
                rest = self._at_hand(page.reached)
                if rest is not None:
                    break
                first = None
            page = await self._stream.page(self.customer_id, page.reached)
            complete = complete and page.complete
        # Nothing is awaited from here on: what comes after the feed's last event is for the cursor.
        self._catch_up(subscriber)
        count += sum(subscriber.missed(event, room) for event in rest)
        subscriber.rooms[room] = min(asked, self._last, subscriber.rooms.get(room, self._last))
        if count:
            first = [*first, *rest] if first is not None else None
            subscriber.replay = Replay(room, start, self._last, first)
        return self._past(count, complete=complete)

    def _past(self, replayed: int, *, complete: bool) -> Past:
        return Past(event_id(self._last) if self._last > BEGINNING else None, replayed, complete)

    async def finish(self, subscriber: Subscriber) -> None:
        """Send what was missed, no faster than the peer reads, until the socket is where the feed is."""
        replay, connection = subscriber.replay, subscriber.connection
        if replay is None:
            return
        position, events = replay.start, replay.first
        while not connection.ending:
            if events is None:
                events = self._at_hand(position)
            if events is None:
                page = await self._patient_page(position, lambda: connection.ending)
                if not page.complete:
                    connection.end(CloseCode.TRY_AGAIN_LATER, "events lost")
                    return
                events = page.events
                if not events:
                    # Redis knows less than was heard of it: the feed is about to notice.
                    await asyncio.sleep(_RETRY)
            for event in events:
                past = event.order <= replay.until
                if subscriber.missed(event, replay.room) if past else subscriber.hears(event):
                    await _room_for_more(connection)
                    connection.send(event.frame)
                position = event.order
            events = None
            if position >= self._last:
                subscriber.reached, subscriber.replay = position, None
                return


async def _room_for_more(connection: Connection) -> None:
    try:
        async with asyncio.timeout(_STALLED):
            await connection.roomy()
    except TimeoutError:
        connection.end(CloseCode.TRY_AGAIN_LATER, "slow consumer")
