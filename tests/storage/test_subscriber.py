"""The connection that hears channels: everything once and in order, bounded, and an end that is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from aizen_gateway.storage import subscriber as subscriber_module
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from aizen_gateway.storage.subscriber import Message, RedisSubscriber
from tests.support.waiting import eventually


@pytest.fixture
async def subscriber(redis_url: str) -> AsyncIterator[RedisSubscriber]:
    store = RedisStore.connect(RedisOptions(redis_url))
    opened = store.subscriber()
    assert isinstance(opened, RedisSubscriber)
    yield opened
    await opened.aclose()
    await store.close()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as opened:
        yield opened


async def take(subscriber: RedisSubscriber, count: int) -> list[Message]:
    taken: list[Message] = []
    async with asyncio.timeout(20):
        while len(taken) < count:
            taken += await subscriber.messages()
    return taken


async def test_each_channel_is_confirmed_and_what_is_published_comes_in_order(
    subscriber: RedisSubscriber, client: Redis
) -> None:
    await subscriber.subscribe("a", "b")
    assert [message[:2] for message in await take(subscriber, 2)] == [("subscribe", "a"), ("subscribe", "b")]
    for number in range(1_000):
        await client.publish("ab"[number % 2], str(number))
    assert await take(subscriber, 1_000) == [("message", "ab"[number % 2], str(number)) for number in range(1_000)]


async def test_a_channel_that_was_left_is_not_heard_any_more(subscriber: RedisSubscriber, client: Redis) -> None:
    await subscriber.subscribe("a", "b")
    await subscriber.unsubscribe("a")
    await take(subscriber, 2)
    await eventually(lambda: client.pubsub_numsub("a"), lambda found: found[0][1] == 0)
    await client.publish("a", "lost")
    await client.publish("b", "heard")
    assert await take(subscriber, 1) == [("message", "b", "heard")]


async def test_what_is_no_text_does_not_end_it(subscriber: RedisSubscriber, client: Redis) -> None:
    await subscriber.subscribe("a")
    await client.publish("a", b"\xff\xfe")
    await client.publish("a", "after")
    assert (await take(subscriber, 3))[-1] == ("message", "a", "after")


async def test_others_have_their_turn_between_two_pieces_and_no_more_is_read_than_fits(
    subscriber: RedisSubscriber, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber_module, "_MOST_UNREAD", 1_000)
    await subscriber.subscribe("a")
    await take(subscriber, 1)
    # Far more than fits into what the kernel holds.
    text, count = "x" * 10_000, 3_000
    published = asyncio.create_task(_publish(client, text, count))
    await eventually(lambda: asyncio.sleep(0, subscriber._paused), bool)
    held = len(subscriber._unread)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(others())
    taken = await take(subscriber, count)
    counting.cancel()
    await published
    # One read more than fits.
    assert held < 1_000 + 30
    assert [message[2][:5] for message in taken] == [f"{number:05}" for number in range(count)]
    assert turns >= count // 256


async def _publish(client: Redis, text: str, count: int) -> None:
    for number in range(count):
        await client.publish("a", f"{number:05}{text}")


async def test_the_end_of_the_connection_is_told_after_what_came_before_it(
    subscriber: RedisSubscriber, client: Redis
) -> None:
    await subscriber.subscribe("a")
    await take(subscriber, 1)
    await client.publish("a", "last")
    await client.client_kill_filter(_type="pubsub")
    assert await take(subscriber, 1) == [("message", "a", "last")]
    with pytest.raises(RedisConnectionError):
        await subscriber.messages()
    with pytest.raises(RedisConnectionError):
        await subscriber.subscribe("b")


async def test_whoever_waits_is_told_when_it_is_closed(subscriber: RedisSubscriber) -> None:
    await subscriber.subscribe("a")
    await take(subscriber, 1)
    waiting = asyncio.create_task(subscriber.messages())
    await asyncio.sleep(0)
    subscriber.close()
    with pytest.raises(RedisConnectionError):
        await waiting


async def test_a_ping_is_heard(subscriber: RedisSubscriber) -> None:
    await subscriber.subscribe("a")
    await take(subscriber, 1)
    before = subscriber.heard_at
    subscriber.ping()
    await eventually(lambda: asyncio.sleep(0, subscriber.heard_at), lambda found: found > before)
