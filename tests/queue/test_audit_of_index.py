"""The index is made to agree with the truth while both change: what is missing comes back, nothing else is touched."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.services import recovery
from aizen_gateway.storage import keys
from aizen_gateway.storage.keys import DeviceKeys
from tests.support.bench import Bench
from tests.support.proxy import Wire


async def test_what_the_index_has_lost_is_put_back(bench: Bench) -> None:
    device = await bench.device("audit-lost")
    session = await bench.open_session(device.device_id)
    commands = [await bench.submit(session) for _ in range(3)]
    keys = DeviceKeys.of(device.device_id)
    for command in commands[:2]:
        await bench.parts.store.call("ZREM", keys.pending, command["id"])
        await bench.parts.store.call("HDEL", keys.records, command["id"])
    assert await bench.parts.recovery.put_back() == 2
    assert [claimed["id"] for claimed in await device.claim(limit=3)] == [command["id"] for command in commands]
    assert await bench.parts.recovery.put_back() == 0


@pytest.mark.parametrize("way", ["fill", "put_back"])
async def test_what_comes_back_comes_back_in_the_order_in_which_it_is_handed_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """So whoever claims in the midst of it gets no command before a more urgent one."""
    monkeypatch.setattr(recovery, "_PAGE" if way == "fill" else "_AUDIT_PAGE", 7)
    device = await bench.device("audit-order")
    session = await bench.open_session(device.device_id)
    priorities = [1 + number % 10 for number in range(30)]
    random.Random(7).shuffle(priorities)
    commands = [await bench.submit(session, priority=priority) for priority in priorities]
    keys = DeviceKeys.of(device.device_id)
    await bench.parts.store.call("DEL", *keys.queue)
    async with Redis.from_url(bench.redis_url, decode_responses=True) as redis, redis.pubsub() as wakes:
        await wakes.subscribe(keys.channel)
        await getattr(bench.parts.recovery, way)()
        await redis.publish(keys.channel, "wake end")
        told = []
        async for message in wakes.listen():
            if message["type"] == "message":
                if message["data"] == "wake end":
                    break
                told.append(message["data"])
    in_order = sorted(commands, key=lambda command: int(command["priority"]))
    assert told == [f"wake {command['id']}" for command in in_order]
    assert [claimed["id"] for claimed in await device.claim(limit=10)] == [command["id"] for command in in_order[:10]]


_LEFT_BEHIND = """insert into aizen.outbox (subject, subject_id, change, created_at)
                  values ('command', $1, 'claimed', now() - interval '1 minute')"""


@pytest.mark.parametrize("way", ["fill", "relay"])
async def test_what_is_handed_back_while_its_lease_is_told_can_be_claimed_at_once(bench: Bench, way: str) -> None:
    device = await bench.device("audit-stale")
    command = await bench.submit(await bench.open_session(device.device_id))
    (claimed,) = await device.claim()
    await bench.parts.database.execute(_LEFT_BEHIND, UUID(command["id"]))
    async with Wire.to_server(bench.redis_url) as wire:
        slow = await Bench.open(bench.database_url, wire.through(bench.redis_url), bench.customer_id)
        try:
            await slow.parts.store.call("PING")
            wire.block()
            telling = asyncio.create_task(
                slow.parts.recovery.fill() if way == "fill" else slow.parts.dispatcher.relay()
            )
            # It has read the lease, and is telling of it.
            await wire.held_up()
            await device.release(claimed)
            wire.unblock()
            assert await telling == 1
        finally:
            await slow.close()
    (again,) = await device.claim()
    assert again["id"] == command["id"]


async def test_what_the_index_knows_is_left_as_it_is(bench: Bench) -> None:
    device = await bench.device("audit-known")
    command = await bench.submit(await bench.open_session(device.device_id))
    keys = DeviceKeys.of(device.device_id)
    await bench.parts.store.call("HSET", keys.records, command["id"], "newer")
    assert await bench.parts.recovery.put_back() == 0
    assert await bench.parts.store.call("HGET", keys.records, command["id"]) == "newer"


async def test_what_ended_while_it_was_looked_for_is_not_put_back(bench: Bench) -> None:
    device = await bench.device("audit-ended")
    session = await bench.open_session(device.device_id)
    command = await bench.submit(session)
    (claimed,) = await device.claim()
    recovery, found = bench.parts.recovery, 0
    async for page in recovery._live(100):
        # It ends between the reading of the page and the look at the index.
        if any(one.id == UUID(command["id"]) for one in page):
            await device.report(claimed)
        found += len(await bench.parts.dispatcher.not_indexed(page))
    assert found >= 1
    assert await recovery.put_back() == 0
    assert await device.claim() == []


async def _index_of(redis: Redis, device_id: str) -> dict[str, bytes]:
    return {key: value for key in DeviceKeys.of(device_id).queue if (value := await redis.dump(key)) is not None}


async def test_what_was_handed_back_and_counts_as_claimed_in_the_index_is_put_back(bench: Bench) -> None:
    device = await bench.device("audit-returned")
    command = await bench.submit(await bench.open_session(device.device_id))
    (claimed,) = await device.claim()
    async with Redis.from_url(bench.redis_url) as redis:
        kept = await _index_of(redis, device.device_id)
        await device.release(claimed)
        # A replica took over that had not got it.
        await redis.delete(*DeviceKeys.of(device.device_id).queue)
        for key, value in kept.items():
            await redis.restore(key, 0, value)
    assert await device.claim() == []
    assert await bench.parts.recovery.put_back() == 1
    (again,) = await device.claim()
    assert again["id"] == command["id"]
    assert await bench.parts.recovery.put_back() == 0


async def test_what_is_being_claimed_is_left_to_who_claims_it(bench: Bench) -> None:
    device = await bench.device("audit-claiming")
    command = await bench.submit(await bench.open_session(device.device_id))
    leased = await bench.index.lease(device.token, 1, 300_000)
    assert leased.ids == [UUID(command["id"])]
    assert await bench.parts.recovery.put_back() == 0
    assert await device.claim() == []


async def test_an_audit_that_failed_is_made_again_by_whoever_looks_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await bench.device("audit-failed")
    command = await bench.submit(await bench.open_session(device.device_id))
    await bench.parts.store.call("DEL", keys.AUDIT_LOCK, *DeviceKeys.of(device.device_id).queue)
    monkeypatch.setattr(recovery, "_AUDIT_EVERY_S", 0.0)
    async with Wire.to_server(bench.database_url) as wire:
        cut = await Bench.open(wire.through(bench.database_url), bench.redis_url, bench.customer_id)
        try:
            wire.block()
            # It gives up by itself: its line says nothing.
            with pytest.raises(Unavailable):
                await cut.parts.recovery.audit()
        finally:
            wire.unblock(forgotten=True)
            await cut.close()
    await bench.parts.recovery.audit()
    (claimed,) = await device.claim()
    assert claimed["id"] == command["id"]


async def test_the_longer_an_audit_takes_the_longer_all_rest_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_AUDIT_EVERY_S", 0.0)

    async def rest_ms() -> int:
        await bench.parts.store.call("DEL", keys.AUDIT_LOCK)
        await bench.parts.recovery.audit()
        return int(await bench.parts.store.call("PTTL", keys.AUDIT_LOCK))

    monkeypatch.setattr(recovery, "_REST", 0)
    assert 0 < await rest_ms() <= recovery._AUDIT_LOCK_MS
    monkeypatch.setattr(recovery, "_REST", 10**9)
    assert recovery._AUDIT_LOCK_MS < await rest_ms() <= recovery._LONGEST_REST_MS
