"""The one connection for all calls: answers find their callers, and no caller waits for a server that is silent."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from inspect import iscoroutine

import pytest
from redis.asyncio import Redis

from aizen_gateway.dev.embedded import EmbeddedValkey
from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from tests.support.outages import hung
from tests.support.servers import FreshValkey


@pytest.fixture
async def valkey(fresh_valkey: FreshValkey) -> EmbeddedValkey:
    return await fresh_valkey()


@pytest.fixture
async def store(valkey: EmbeddedValkey) -> AsyncIterator[RedisStore]:
    opened = RedisStore.connect(RedisOptions(valkey.url, timeout=20.0))
    yield opened
    await opened.close()


@pytest.fixture
async def impatient(valkey: EmbeddedValkey) -> AsyncIterator[RedisStore]:
    """A store that gives a silent server up soon."""
    opened = RedisStore.connect(RedisOptions(valkey.url, timeout=1.0))
    yield opened
    await opened.close()


async def test_each_of_many_callers_gets_its_own_answer(store: RedisStore) -> None:
    answers = await asyncio.gather(*(store.call("ECHO", str(number)) for number in range(2_000)))
    assert answers == [str(number) for number in range(2_000)]
    assert store.calls == 0


async def test_calls_are_run_in_the_order_in_which_they_were_made(store: RedisStore) -> None:
    await asyncio.gather(*(store.call("RPUSH", "list", number) for number in range(500)))
    assert await store.call("LRANGE", "list", 0, -1) == [str(number) for number in range(500)]


async def test_a_caller_that_gave_up_takes_no_answer_of_another(store: RedisStore) -> None:
    await store.call("PING")
    callers = [asyncio.create_task(store.call("ECHO", str(number))) for number in range(100)]
    await asyncio.sleep(0)
    for caller in callers[::2]:
        caller.cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert answers[1::2] == [str(number) for number in range(1, 100, 2)]
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert await store.call("ECHO", "after") == "after"


async def test_an_error_is_for_its_caller_alone(store: RedisStore) -> None:
    await store.call("SET", "text", "x")
    answers = await asyncio.gather(
        *(store.call("INCR", "number"), store.call("HGET", "text", "field"), store.call("INCR", "number")),
        return_exceptions=True,
    )
    assert (answers[0], answers[2]) == (1, 2)
    assert "WRONGTYPE" in str(answers[1])


async def test_a_call_that_cannot_be_written_is_no_silence_of_the_server(impatient: RedisStore) -> None:
    connection = await impatient.call("CLIENT", "ID")
    with pytest.raises(UnicodeEncodeError):
        await impatient.call("ECHO", "\ud800")
    # Longer than a server that owes an answer may be silent.
    await asyncio.sleep(1.6)
    assert await impatient.call("CLIENT", "ID") == connection


async def test_what_fails_after_its_caller_gave_up_is_no_news(
    store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.call("PING")
    begun = store.begin("limit", ["limit"], [1, 1])
    assert store.calls == 1
    assert iscoroutine(begun)
    begun.close()
    await store.close()
    del begun
    gc.collect()
    assert caplog.records == []


async def test_there_is_one_connection_however_many_call(valkey: EmbeddedValkey, store: RedisStore) -> None:
    await asyncio.gather(*(store.call("PING") for _ in range(1_000)))
    async with Redis.from_url(valkey.url, decode_responses=True) as admin:
        assert len(await admin.client_list()) == 2


async def test_a_server_that_hangs_is_given_up_by_all_and_taken_again_when_it_answers(
    valkey: EmbeddedValkey, impatient: RedisStore
) -> None:
    await impatient.call("PING")
    with hung(valkey):
        early = [asyncio.create_task(impatient.call("PING")) for _ in range(20)]
        for outcome in await asyncio.gather(*early, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
        with pytest.raises(Unavailable):
            await impatient.call("PING")
    assert await impatient.call("PING")


async def test_a_connection_that_the_server_has_closed_is_not_used_again(
    valkey: EmbeddedValkey, store: RedisStore
) -> None:
    await store.call("PING")
    async with Redis.from_url(valkey.url, decode_responses=True) as admin:
        for _ in range(5):
            await admin.client_kill_filter(_type="normal", skipme=True)
            # The end of it is news of the network, which comes a moment later.
            await asyncio.sleep(0.05)
            await store.call("PING")


async def test_a_closed_store_is_unavailable(store: RedisStore) -> None:
    await store.call("PING")
    await store.close()
    with pytest.raises(Unavailable):
        await store.call("PING")
