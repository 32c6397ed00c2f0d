"""A portal that does not read harms itself alone: it is closed, its place is free, and it can resume (section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from aiohttp import ClientSession, TCPConnector

from aizen_gateway.api.keys import SERVICES
from aizen_gateway.realtime import feed as feed_module
from aizen_gateway.realtime.connection import ConnectionLimits
from aizen_gateway.realtime.feed import Feed
from aizen_gateway.realtime.subscribers import Subscriber
from aizen_gateway.storage.events import EventStream
from aizen_gateway.storage.postgres import Database
from tests.support.clients import CustomerClient, World
from tests.support.gateway import RunningGateway
from tests.support.pipe import Pipe, running
from tests.support.portal import Newsroom, events, numbers, raw_portal, subscribe
from tests.support.pushes import StartLimited
from tests.support.raw_socket import RawSocket, text_of
from tests.support.sockets import Closed, SocketClient, portal_socket
from tests.support.waiting import eventually

_MEGABYTE = 1024 * 1024
# A peer that is stuck is given up soon, and pings have no part in it.
IMPATIENT = ConnectionLimits(close_within=0.3, ping_every=600)


@asynccontextmanager
async def frozen(customer: CustomerClient, last_event_id: str | None = None) -> AsyncIterator[RawSocket]:
    """A portal in the room `customer` that reads no more after its answer."""
    # Not less: with a tiny window it would take seconds to read on.
    async with raw_portal(customer.url, customer.headers, receive_buffer=256 * 1024) as socket:
        await socket.send(text_of("subscribe", {"room": "customer", "lastEventId": last_event_id}))
        while (await socket.message())["type"] != "subscribed":
            pass
        yield socket


async def holds(gateway: RunningGateway, count: int) -> None:
    """Return once the instance holds `count` portals' sockets."""

    async def read() -> int:
        return len(gateway.app[SERVICES].portal_sockets.open_sockets)

    await eventually(read, lambda found: found == count)


@pytest.fixture
async def gateway(start_limited: StartLimited) -> RunningGateway:
    """An instance that soon gives up a peer that is stuck; `world` is at it."""
    return await start_limited(IMPATIENT)


@pytest.fixture
def news(world: World, stream: EventStream) -> Newsroom:
    """Events of the world's customer."""
    return Newsroom(stream, UUID(world.customer_id))


async def test_256_frames_wait_and_one_more_closes_the_socket_1013() -> None:
    pipe = Pipe()
    async with running(pipe) as connection:
        for number in range(256):
            connection.send(b"%d" % number)
        assert not connection.ending
        connection.send(b"too many")
        assert (connection.ending, connection.close_code) == (True, 1013)
        connection.send(b"after the end")
        pipe.opened.set()
        await pipe.aborted.wait()
        assert pipe.closed == [(1013, "slow consumer")]
        # What waited is not sent any more: the portal will resume.
        assert pipe.sent == [b"first"]


async def test_a_megabyte_waits_and_one_octet_more_closes_the_socket_1013() -> None:
    pipe = Pipe()
    async with running(pipe) as connection:
        for _ in range(16):
            connection.send(b"x" * 65536)
        assert not connection.ending
        connection.send(b"x")
        assert connection.close_code == 1013


async def test_a_peer_that_is_stuck_is_given_up_by_force() -> None:
    pipe = Pipe()
    async with running(pipe, replace(IMPATIENT, frames=1)) as connection:
        connection.send(b"waits")
        connection.send(b"too many")
        async with asyncio.timeout(5):
            await pipe.aborted.wait()
        assert connection.close_code == 1013
    assert (pipe.sent, pipe.closed) == ([], [])


async def test_an_event_is_encoded_once_for_all_sockets(stream: EventStream) -> None:
    feed = Feed(UUID(int=uuid4().int), stream)
    await feed.begin()
    pipes = [Pipe() for _ in range(20)]
    async with AsyncExitStack() as stack:
        for pipe in pipes:
            connection = await stack.enter_async_context(running(pipe))
            subscriber = Subscriber(connection)
            feed.subscribers.add(subscriber)
            await feed.join(subscriber, "customer", None)
            pipe.opened.set()
        await Newsroom(stream, feed.customer_id).tell()
        feed.gap()

        async def sent() -> set[int]:
            return {len(pipe.sent) for pipe in pipes}

        await eventually(sent, lambda found: found == {2})
        assert len({id(pipe.sent[1]) for pipe in pipes}) == 1
    await feed.stop()


async def test_a_portal_that_stops_reading_is_dropped_and_delays_nobody(
    gateway: RunningGateway, world: World, news: Newsroom
) -> None:
    async with frozen(world.owner), portal_socket(world.owner) as reading:
        await subscribe(reading)
        await holds(gateway, 2)
        heard: list[int] = []
        for _ in range(40):
            await news.tell(5, filling="x" * 50_000)
            heard += numbers(await events(reading, 5))
        assert heard == list(range(200))
        # It never reads, so it hears of nothing; what it held is free all the same.
        await holds(gateway, 1)
        await news.tell()
        assert numbers(await events(reading, 1)) == [200]


async def test_a_portal_that_reads_again_in_time_learns_why_and_resumes(
    start_limited: StartLimited, http: ClientSession, database: Database, stream: EventStream
) -> None:
    gateway = await start_limited(replace(IMPATIENT, close_within=5.0))
    world = await World.create(gateway.url, http, database)
    news = Newsroom(stream, UUID(world.customer_id))
    heard: list[dict[str, Any]] = []
    async with frozen(world.owner) as socket:
        await news.tell(100, filling="x" * 100_000)
        assert await _hear_out(socket, heard) == 1013
    assert 0 < len(heard) < 100
    assert numbers(heard) == list(range(len(heard)))
    async with portal_socket(world.owner) as again:
        answer = await subscribe(again, last_event_id=heard[-1]["eventId"])
        assert (answer["replayed"], answer["complete"]) == (100 - len(heard), True)
        assert numbers(await events(again, answer["replayed"])) == list(range(len(heard), 100))


async def test_a_portal_that_stops_reading_in_the_middle_of_its_past_is_dropped(
    gateway: RunningGateway, world: World, news: Newsroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_STALLED", 0.3)
    first = await news.tell()
    await news.tell(200, filling="x" * 50_000)
    async with frozen(world.owner, first), portal_socket(world.owner) as reading:
        await subscribe(reading)
        await holds(gateway, 2)
        await holds(gateway, 1)
        await news.tell()
        assert numbers(await events(reading, 1)) == [201]


async def test_a_slow_portal_gets_all_of_its_past(world: World, news: Newsroom) -> None:
    first = await news.tell()
    await news.tell(300, filling="x" * 10_000)
    async with frozen(world.owner, first) as socket:
        heard: list[int] = []
        while len(heard) < 300:
            heard += numbers([await socket.message()])
            if len(heard) % 10 == 0:
                await asyncio.sleep(0.01)
                await news.tell()
        assert heard == list(range(1, 301))
        assert numbers([await socket.message() for _ in range(30)]) == list(range(301, 331))


async def test_frozen_portals_hold_little_memory(gateway: RunningGateway, world: World, news: Newsroom) -> None:
    """30 of them miss 30 MiB each."""
    process = psutil.Process()
    async with AsyncExitStack() as stack:
        for _ in range(30):
            await stack.enter_async_context(frozen(world.owner))
        await holds(gateway, 30)
        before = process.memory_info().rss
        await news.tell(120, filling="x" * 250_000)
        await holds(gateway, 0)
        assert process.memory_info().rss - before < 150 * _MEGABYTE


async def test_a_burst_arrives_at_each_of_200_sockets(gateway: RunningGateway, world: World, news: Newsroom) -> None:
    async def hear(socket: SocketClient) -> Sequence[int]:
        await subscribe(socket)
        joined.release()
        return numbers(await events(socket, 100))

    joined = asyncio.Semaphore(0)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0)))
        owner = replace(world.owner, http=session)
        sockets = [await stack.enter_async_context(portal_socket(owner)) for _ in range(200)]
        await holds(gateway, 200)
        hearing = [asyncio.create_task(hear(socket)) for socket in sockets]
        for _ in sockets:
            await joined.acquire()
        await asyncio.gather(*(_tell(news.stream, news.customer_id, number) for number in range(100)))
        heard = await asyncio.gather(*hearing)
    assert sorted(heard[0]) == list(range(100))
    assert all(found == heard[0] for found in heard)
    await holds(gateway, 0)


async def _hear_out(socket: RawSocket, heard: list[dict[str, Any]]) -> int | None:
    """Read to the end and return the close code."""
    try:
        while True:
            heard.append(await socket.message())
    except Closed as closed:
        return closed.code


async def _tell(stream: EventStream, customer_id: UUID, number: int) -> None:
    event = {"type": "device_status", "payload": {"number": number}}
    await stream.publish(customer_id, "device:d-1", 0, ["device:d-1"], event)
