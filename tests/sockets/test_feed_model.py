"""A feed and its sockets against a model: whatever is delayed, dropped or stalls, each socket gets its events once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from unittest.mock import patch
from uuid import UUID, uuid4

import orjson
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from aizen_gateway.realtime import feed as feed_module
from aizen_gateway.realtime.connection import Connection, ConnectionLimits
from aizen_gateway.realtime.feed import Feed
from aizen_gateway.realtime.subscribers import Subscriber
from aizen_gateway.storage import events as events_module
from aizen_gateway.storage import keys
from aizen_gateway.storage.events import BEGINNING, EventStream, Order, event_id, order_of
from aizen_gateway.storage.redis_store import ChannelSubscriber, RedisOptions, RedisStore

# As the rooms of events are written: the most specific first, `customer` understood.
AUDIENCES = ("session:a device:a", "session:b device:a", "device:a", "device:b")
ROOMS = ("customer", "device:a", "device:b", "session:a", "session:b")
_LIMITS = ConnectionLimits(frames=10, octets=1_000_000, ping_every=600)

Step: TypeAlias = tuple[str, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, len(AUDIENCES) - 1), st.integers(1, 5)),
        st.tuples(st.just("join"), st.integers(0, len(ROOMS) - 1), st.integers(0, 20)),
        st.tuples(st.just("join"), st.integers(0, len(ROOMS) - 1), st.integers(0, 20)),
        st.tuples(st.just("publish"), st.integers(0, len(AUDIENCES) - 1), st.integers(1, 5)),
        st.tuples(st.just("leave"), st.integers(0, len(ROOMS) - 1), st.just(0)),
        st.tuples(st.just("deliver"), st.integers(0, 6), st.just(0)),
        st.tuples(st.just("drop"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("gap"), st.just(0), st.just(0)),
        st.tuples(st.just("stall"), st.just(0), st.just(0)),
        st.tuples(st.just("go on"), st.just(0), st.just(0)),
        st.tuples(st.just("breathe"), st.integers(1, 8), st.just(0)),
    ),
    min_size=8,
    max_size=40,
)

# There is a past from the beginning, and a socket that lives in it.
BEFORE: tuple[Step, ...] = (("publish", 2, 4), ("publish", 1, 3), ("join", 4, 2), ("publish", 0, 4), ("publish", 3, 2))


class Line:
    """The wire of a socket whose peer reads slowly, and can stop. Keeps what it was sent."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.rests = False
        self.flows = asyncio.Event()
        self.flows.set()

    full = True

    async def drained(self) -> None:
        await asyncio.sleep(0.0002)
        await self.flows.wait()
        self.full = False

    def write(self, frame: bytes) -> None:
        self.full = True
        message = orjson.loads(frame)
        if message["type"] == "rest":
            self.rests = True
        else:
            self.frames.append(message)

    def ping(self) -> None: ...

    def pong(self, data: bytes) -> None: ...

    async def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


@dataclass
class Told:
    """An event as it was published."""

    order: Order
    rooms: frozenset[str]


@dataclass
class Joined:
    """What a socket may expect of a room: the events after `start`, and up to `end` once it has left."""

    room: str
    start: Order
    end: Order | None = None


@dataclass
class Replay:
    """What a subscription promised: `count` events of `room` after `start` up to `until` that no other room brought."""

    room: str
    start: Order
    until: Order
    others: list[Joined]
    count: int


@dataclass
class Player:
    """Plays steps on one feed, one socket and the real Valkey; messages come as late as the steps say, or never."""

    stream: EventStream
    channel: ChannelSubscriber
    feed: Feed
    line: Line
    connection: Connection
    subscriber: Subscriber
    told: list[Told] = field(default_factory=list)
    joined: list[Joined] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    worker: asyncio.Task[None] = field(init=False)
    asked: asyncio.Queue[tuple[str, str, int]] = field(default_factory=asyncio.Queue)

    async def play(self, steps: Sequence[Step]) -> None:  # noqa: C901 - a branch a kind of step
        for what, first, second in steps:
            match what:
                case "publish":
                    await self.publish(first, second)
                case "join" | "leave":
                    self.asked.put_nowait((what, ROOMS[first], second))
                case "deliver":
                    await self.listen()
                    for _ in range(min(first, len(self.heard))):
                        self.feed.message(self.heard.pop(0))
                case "drop":
                    await self.listen()
                    del self.heard[:first]
                case "gap":
                    self.feed.gap()
                case "stall":
                    self.line.flows.clear()
                case "go on":
                    self.line.flows.set()
                case "breathe":
                    for _ in range(first):
                        await asyncio.sleep(0.0005)

    async def publish(self, audience: int, count: int) -> None:
        rooms = AUDIENCES[audience].split(" ")
        for _ in range(count):
            payload = {"type": "device_status", "payload": {"number": len(self.told)}}
            published = await self.stream.publish(self.feed.customer_id, "device:x", 0, rooms, payload)
            order = order_of(published or "")
            assert order is not None
            self.told.append(Told(order, frozenset([*rooms, "customer"])))

    async def listen(self) -> None:
        """Take from the channel what has come."""
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.001):
                    messages = await self.channel.messages()
                self.heard += [data for kind, _, data in messages if kind == "message"]

    async def work(self) -> None:
        """Do what the peer asks, one after the other, as a socket's worker does."""
        while True:
            match await self.asked.get():
                case "join", room, back:
                    await self.join(room, back)
                case "leave", room, _:
                    self.leave(room)
                case _:
                    return

    async def join(self, room: str, back: int) -> None:
        """Join as the service does, the answer first. `back` is how many events of the past are asked for; 0 none."""
        again = any(held.room == room and held.end is None for held in self.joined)
        asked = self.told[-back].order if 0 < back <= len(self.told) and not again else None
        others = [held for held in self.joined if held.end is None]
        past = await self.feed.join(self.subscriber, room, event_id(asked) if asked else None)
        self.connection.send(orjson.dumps({"type": "subscribed"}))
        until = order_of(past.last_event_id) if past.last_event_id else BEGINNING
        assert until is not None
        assert past.complete
        self.replays.append(Replay(room, asked or until, until, others, past.replayed))
        event(f"replayed {min(past.replayed, 5)}")
        if not again:
            self.joined.append(Joined(room, asked or until))
        await self.feed.finish(self.subscriber)

    def leave(self, room: str) -> None:
        self.subscriber.rooms.pop(room, None)
        # What was not delivered yet belongs to nobody.
        for held in self.joined:
            if held.room == room and held.end is None:
                held.end = self.told[-1].order

    async def settle(self) -> None:
        """Everything comes to rest: what was lost is noticed, and the peer reads."""
        self.line.flows.set()
        self.asked.put_nowait(("end", "", 0))
        await self.worker
        self.feed.gap()
        async with asyncio.timeout(5):
            while self.feed._mending is not None:  # noqa: ASYNC110 - the feed tells nobody
                await asyncio.sleep(0.001)
            await self.connection.roomy()
            self.connection.send(orjson.dumps({"type": "rest"}))
            while not self.connection.ending and not self.line.rests:  # noqa: ASYNC110 - the line tells nobody
                await asyncio.sleep(0.001)
        assert self.feed._last == self.told[-1].order

    def check(self) -> None:
        """Each socket gets what its rooms bring, once, and in order between two subscriptions."""
        got: list[Order] = []
        last = BEGINNING
        for frame in self.line.frames:
            if frame["type"] == "subscribed":
                last = BEGINNING
                continue
            order = order_of(frame["eventId"])
            assert order is not None
            assert order > last, "out of order"
            last = order
            got.append(order)
        times = Counter(got)
        for told in self.told:
            of = [held for held in self.joined if held.room in told.rooms and told.order > held.start]
            must = any(held.end is None for held in of)
            # What was on its way when its room was left need not come.
            may = any(held.end is None or told.order <= held.end for held in of)
            # Only what a room brought that was left since may be asked for again.
            most = may + sum(held.end is not None for held in of)
            assert must <= times.pop(told.order, 0) <= most
        assert not times
        for replay in self.replays:
            missed = [
                told
                for told in self.told
                if replay.start < told.order <= replay.until
                and replay.room in told.rooms
                and not any(held.room in told.rooms and told.order > held.start for held in replay.others)
            ]
            assert replay.count == len(missed)


async def play(redis_url: str, steps: Sequence[Step]) -> None:
    store = RedisStore.connect(RedisOptions(redis_url))
    stream, customer_id = EventStream(store), UUID(int=uuid4().int)
    channel = store.subscriber()
    await channel.subscribe(keys.customer_channel(customer_id))
    await channel.messages()
    line = Line()
    connection = Connection(line, _LIMITS)
    feed = Feed(customer_id, stream)
    player = Player(stream, channel, feed, line, connection, Subscriber(connection))
    # With one that is in no room an event goes out to two, one after the other.
    feed.subscribers |= {player.subscriber, Subscriber(connection)}
    player.worker = asyncio.create_task(player.work())
    try:
        await feed.begin()
        await player.play([*BEFORE, *steps])
        await player.settle()
        if connection.ending:
            event("closed as slow")
        else:
            player.check()
    finally:
        player.worker.cancel()
        connection.abort()
        await asyncio.gather(connection.closed(), player.worker, return_exceptions=True)
        await feed.stop()
        await channel.aclose()
        await store.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_is_delayed_or_dropped_each_event_is_told_once_and_in_order(redis_url: str, steps: list[Step]) -> None:
    with (
        patch.object(feed_module, "_MOST_RECENT", 2),
        patch.object(feed_module, "_AT_A_TIME", 1),
        patch.object(events_module, "PAGE_EVENTS", 4),
    ):
        asyncio.run(play(redis_url, steps))
