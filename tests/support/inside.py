"""Looks behind the contract: what Redis and PostgreSQL really hold, where a promise is about what is kept or left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from redis.asyncio import Redis

from aizen_gateway.storage.keys import DeviceKeys
from aizen_gateway.storage.postgres import Database

from .clients import World
from .waiting import eventually

_OPEN = ("pending_approval", "queued", "claimed", "cancel_requested")


@pytest.fixture
async def valkey(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the test's Valkey."""
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def ended(world: World, command: Mapping[str, Any]) -> Any:
    """The command as its customer sees it, once it has ended."""
    return await eventually(lambda: world.owner.command(command), lambda seen: seen["status"] not in _OPEN)


async def comes_to(world: World, command: Mapping[str, Any], status: str) -> Any:
    """The command as its customer sees it, once it is in `status`."""
    return await eventually(lambda: world.owner.command(command), lambda seen: bool(seen["status"] == status))


async def waits(valkey: Redis, device_id: str) -> None:
    """Return once some instance waits for news of the device."""
    channel = DeviceKeys.of(device_id).channel
    await eventually(lambda: valkey.pubsub_numsub(channel), lambda found: bool(found[0][1]))


async def passes(valkey: Redis, milliseconds: int) -> None:
    """Return once Redis's clock, the clock of all leases, has gone on by `milliseconds`."""
    start = await redis_ms(valkey)
    await asyncio.sleep(milliseconds / 1000)
    await eventually(lambda: redis_ms(valkey), lambda now: now >= start + milliseconds)


async def redis_ms(valkey: Redis) -> int:
    """Redis's clock in milliseconds."""
    seconds, micros = await valkey.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def all_of_redis(valkey: Redis) -> str:
    """Every key with its whole value, as text."""
    return "\n".join([f"{key} {await _value(valkey, key)}" async for key in valkey.scan_iter("*")])


async def _value(valkey: Redis, key: str) -> object:
    readers: dict[str, Callable[[], Any]] = {
        "string": lambda: valkey.get(key),
        "hash": lambda: valkey.hgetall(key),
        "zset": lambda: valkey.zrange(key, 0, -1, withscores=True),
        "set": lambda: valkey.smembers(key),
        "list": lambda: valkey.lrange(key, 0, -1),
        "stream": lambda: valkey.xrange(key),
    }
    kind = str(await valkey.type(key))
    return None if kind == "none" else await readers[kind]()


async def all_of_postgres(database: Database) -> str:
    """Every row of every table of the gateway, as text; binary columns are in hexadecimal."""
    tables = await database.fetch("select tablename from pg_tables where schemaname = 'aizen' order by 1")
    assert tables
    rows = [await database.fetch(f'select t::text as row from aizen."{name}" t') for (name,) in tables]  # noqa: S608
    return "\n".join(row["row"] for table in rows for row in table)
