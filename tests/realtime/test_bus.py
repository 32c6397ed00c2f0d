"""The subscriber against a Valkey that is killed, hangs, or drops it, and against its own joins and leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.realtime import bus as bus_module
from aizen_gateway.realtime.bus import Bus
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from tests.support.outages import crash, hung
from tests.support.servers import FreshValkey
from tests.support.waiting import eventually

StartBus = Callable[[str], Awaitable[Bus]]
# Seconds until what is lost for good is noticed.
_PATIENCE = 15.0


@pytest.fixture
async def start_bus() -> AsyncIterator[StartBus]:
    """Call it with a URL for a bus that runs."""
    async with AsyncExitStack() as stack:

        async def start(url: str) -> Bus:
            store = RedisStore.connect(RedisOptions(url, timeout=1.0))
            stack.push_async_callback(store.close)
            bus = Bus(store, "test")
            await bus.start()
            stack.push_async_callback(bus.stop)
            return bus

        yield start


class Ear:
    """Keeps what it hears of a channel; "gap" for a gap."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._news = asyncio.Event()

    def message(self, data: str) -> None:
        self.heard.append(data)
        self._news.set()

    def gap(self) -> None:
        self.message("gap")

    async def hears(self, what: str) -> None:
        """Wait for `what`."""
        async with asyncio.timeout(_PATIENCE):
            while what not in self.heard:
                self._news.clear()
                await self._news.wait()


async def publish(url: str, channel: str, data: str) -> int:
    """Publish as another instance would; return how many subscribers got it."""
    async with Redis.from_url(url) as client:
        return int(await client.publish(channel, data))


async def drop_subscribers(url: str) -> None:
    """Have the server close the subscribers' connections."""
    async with Redis.from_url(url) as client:
        await client.client_kill_filter(_type="pubsub")


async def listeners(url: str, channel: str) -> int:
    """How many connections are subscribed to the channel."""
    async with Redis.from_url(url) as client:
        ((_, count),) = await client.pubsub_numsub(channel)
    return int(count)


async def test_what_is_published_after_the_confirmation_is_heard(start_bus: StartBus, redis_url: str) -> None:
    bus = await start_bus(redis_url)
    async with bus.listen("a") as listener:
        assert await publish(redis_url, "a", "x") == 1
        assert await listener.wait(5)


async def test_a_dropped_connection_comes_back_and_tells_of_the_gap(start_bus: StartBus, redis_url: str) -> None:
    bus = await start_bus(redis_url)
    ear = Ear()
    bus.attach("a", ear)
    await bus.confirmed("a")
    await drop_subscribers(redis_url)
    await ear.hears("gap")
    # From the gap on nothing is missed.
    await publish(redis_url, "a", "x")
    await ear.hears("x")


async def test_a_gap_is_told_only_when_the_channel_is_joined_again(start_bus: StartBus, redis_url: str) -> None:
    bus = await start_bus(redis_url)
    told: list[int] = []
    ears = [Ear() for _ in range(20)]
    looks: list[asyncio.Task[None]] = []

    async def look() -> None:
        told.append(await listeners(redis_url, "a"))

    for ear in ears:
        ear.gap = lambda: looks.append(asyncio.create_task(look()))  # type: ignore[method-assign]
        bus.attach("a", ear)
    await bus.confirmed("a")
    await drop_subscribers(redis_url)

    async def looked() -> int:
        return len(looks)

    await eventually(looked, lambda count: count >= len(ears))
    await asyncio.gather(*looks)
    assert set(told) == {1}


async def test_one_that_is_cancelled_over_and_over_while_it_ends_leaves_no_connection(
    start_bus: StartBus, redis_url: str
) -> None:
    bus = await start_bus(redis_url)
    async with bus.listen("a"):
        pass
    running = bus._task
    assert running is not None
    while not running.done():
        running.cancel()
        await asyncio.sleep(0)
    await eventually(lambda: listeners(redis_url, "a"), lambda count: count == 0)


async def test_a_killed_server_that_comes_back_is_joined_again(start_bus: StartBus, fresh_valkey: FreshValkey) -> None:
    valkey = await fresh_valkey()
    bus = await start_bus(valkey.url)
    ear = Ear()
    bus.attach("a", ear)
    await bus.confirmed("a")
    await crash(valkey)
    with pytest.raises(Unavailable):
        async with bus.listen("b"):
            pass
    await valkey.restart()
    await ear.hears("gap")
    await publish(valkey.url, "a", "x")
    await ear.hears("x")
    async with bus.listen("b") as listener:
        await publish(valkey.url, "b", "x")
        assert await listener.wait(5)


async def test_a_server_that_hung_for_a_moment_costs_nothing(start_bus: StartBus, fresh_valkey: FreshValkey) -> None:
    valkey = await fresh_valkey()
    bus = await start_bus(valkey.url)
    ear = Ear()
    bus.attach("a", ear)
    await bus.confirmed("a")
    with hung(valkey):
        # Longer than a ping waits for its answer.
        await asyncio.sleep(2)
    await publish(valkey.url, "a", "x")
    await ear.hears("x")
    assert "gap" not in ear.heard


async def test_a_server_that_hangs_for_good_is_noticed(
    start_bus: StartBus, fresh_valkey: FreshValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "_PING_EVERY", 0.3)
    monkeypatch.setattr(bus_module, "_SILENCE", 1.0)
    valkey = await fresh_valkey()
    bus = await start_bus(valkey.url)
    ear = Ear()
    bus.attach("a", ear)
    await bus.confirmed("a")

    async def connected() -> bool:
        return bus.connected

    with hung(valkey):
        await eventually(connected, lambda found: not found)
        # It looks at this once a turn.
        await asyncio.sleep(1.5)
    await ear.hears("gap")
    await publish(valkey.url, "a", "x")
    await ear.hears("x")


async def test_a_handler_that_fails_deafens_nobody(start_bus: StartBus, redis_url: str) -> None:
    bus = await start_bus(redis_url)

    class Broken(Ear):
        def message(self, data: str) -> None:
            raise ValueError(data)

    good = Ear()
    bus.attach("a", Broken())
    bus.attach("a", good)
    await bus.confirmed("a")
    await publish(redis_url, "a", "x")
    await good.hears("x")
    await publish(redis_url, "a", "y")
    await good.hears("y")
    assert "gap" not in good.heard


@asynccontextmanager
async def odd_at_first(url: str) -> AsyncIterator[str]:
    """A way to the server that answers the first subscription with what no client expects."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    odd = iter([True])

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, mind: bool) -> None:
        while data := await reader.read(65536):
            if mind and b"SUBSCRIBE" in data and next(odd, False):
                answers[-1].write(b":5\r\n")
                return
            writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        answers.append(writer)
        ways.append(back)
        await asyncio.gather(pass_on(reader, back, mind=True), pass_on(there, writer, mind=False))

    answers: list[asyncio.StreamWriter] = []
    ways: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield url.replace(f"{host}:{port}", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for way in ways:
            way.close()


async def test_an_unforeseen_answer_does_not_end_the_subscriber(start_bus: StartBus, redis_url: str) -> None:
    async with odd_at_first(redis_url) as url:
        bus = await start_bus(url)
        ear = Ear()
        bus.attach("a", ear)
        await eventually(lambda: publish(redis_url, "a", "x"), bool)
        await ear.hears("x")
        await bus.stop()


async def test_a_channel_without_listeners_is_left_in_the_end(
    start_bus: StartBus, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "_PING_EVERY", 0.1)
    monkeypatch.setattr(bus_module, "_LINGER", 0.3)
    bus = await start_bus(redis_url)
    async with bus.listen("a"):
        pass
    assert await listeners(redis_url, "a") == 1
    await eventually(lambda: listeners(redis_url, "a"), lambda count: count == 0)
    async with bus.listen("a") as listener:
        await publish(redis_url, "a", "x")
        assert await listener.wait(5)


async def test_listeners_that_come_and_go_while_channels_are_left_miss_nothing(
    start_bus: StartBus, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "_PING_EVERY", 0.005)
    monkeypatch.setattr(bus_module, "_LINGER", 0.01)
    bus = await start_bus(redis_url)
    async with Redis.from_url(redis_url) as client:

        async def come_and_go(number: int) -> None:
            for turn in range(40):
                # Channels are shared, so that one leaves while another comes.
                channel = f"c{(number + turn) % 4}"
                async with bus.listen(channel) as listener:
                    assert await client.publish(channel, "x") == 1
                    assert await listener.wait(5)
                await asyncio.sleep(0.002 * ((number * 7 + turn * 3) % 11))

        await asyncio.gather(*(come_and_go(number) for number in range(6)))


async def test_stopping_ends_it_whatever_it_is_doing(redis_url: str) -> None:
    for turn in range(30):
        # Nothing listens there, so the connection fails at some moment of its making.
        url = "redis://127.0.0.1:1/0" if turn % 2 else redis_url
        store = RedisStore.connect(RedisOptions(url, timeout=1.0))
        bus = Bus(store, "test")
        await bus.start()
        for _ in range(turn):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await bus.stop()
        await store.close()
