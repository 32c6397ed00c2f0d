"""A Redis that is there and cannot serve now is as good as away: callers come again, and nobody is told of a fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from aizen_gateway.dev.embedded import EmbeddedValkey
from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from tests.support.outages import crash
from tests.support.servers import FreshValkey


@pytest.fixture
async def valkey(fresh_valkey: FreshValkey) -> EmbeddedValkey:
    return await fresh_valkey()


@pytest.fixture
async def store(valkey: EmbeddedValkey) -> AsyncIterator[RedisStore]:
    opened = RedisStore.connect(RedisOptions(valkey.url, timeout=1.0))
    yield opened
    await opened.close()


@pytest.fixture
async def admin(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A client that changes what the server does."""
    async with Redis.from_url(valkey.url, decode_responses=True) as client:
        yield client


async def _write(store: RedisStore) -> None:
    await store.call("SET", "key", "value")


async def _run(store: RedisStore) -> None:
    await store.run("limit", ["limit"], [10, 1])


_WAYS = [_write, _run]
Way = Callable[[RedisStore], Awaitable[None]]


@pytest.mark.parametrize("way", _WAYS)
async def test_a_full_server_is_unavailable_until_there_is_room(store: RedisStore, admin: Redis, way: Way) -> None:
    await way(store)
    await admin.config_set("maxmemory", "1")
    with pytest.raises(Unavailable):
        await way(store)
    await admin.config_set("maxmemory", "0")
    await way(store)


@pytest.mark.parametrize("way", _WAYS)
async def test_a_server_that_became_a_replica_is_unavailable_until_it_is_none(
    store: RedisStore, admin: Redis, way: Way
) -> None:
    await way(store)
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    with pytest.raises(Unavailable):
        await way(store)
    await admin.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
    await way(store)


@pytest.mark.parametrize("way", _WAYS)
async def test_a_replica_with_stale_data_is_unavailable(store: RedisStore, admin: Redis, way: Way) -> None:
    await admin.config_set("replica-serve-stale-data", "no")
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    with pytest.raises(Unavailable):
        await way(store)


@pytest.mark.parametrize("way", _WAYS)
async def test_a_server_without_enough_replicas_is_unavailable(store: RedisStore, admin: Redis, way: Way) -> None:
    await way(store)
    await admin.config_set("min-replicas-to-write", "1")
    with pytest.raises(Unavailable):
        await way(store)


async def test_a_wrong_password_is_unavailable(valkey: EmbeddedValkey) -> None:
    scheme, _, address = valkey.url.partition("//:")
    store = RedisStore.connect(RedisOptions(f"{scheme}//:wrong@{address.partition('@')[2]}", timeout=1.0))
    with pytest.raises(Unavailable):
        await _write(store)
    await store.close()


async def test_after_a_restart_every_connection_of_the_pool_works_at_once(
    valkey: EmbeddedValkey, store: RedisStore
) -> None:
    await asyncio.gather(*(_write(store) for _ in range(8)))
    await crash(valkey)
    await valkey.restart()
    await asyncio.gather(*(_write(store) for _ in range(8)))


async def test_forgotten_scripts_are_loaded_again(store: RedisStore, admin: Redis) -> None:
    await _run(store)
    await admin.script_flush()
    await _run(store)


async def test_a_fault_of_ours_is_not_taken_for_an_outage(store: RedisStore) -> None:
    await _write(store)
    with pytest.raises(ResponseError):
        await store.call("HGET", "key", "field")
