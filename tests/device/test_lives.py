"""One life of a device after another: what ended stays ended, and what came after it is left alone."""

from __future__ import annotations

from uuid import UUID

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.clock import from_ms
from aizen_gateway.domain.errors import Unauthenticated
from aizen_gateway.domain.values import NOWHERE
from aizen_gateway.services import recovery
from aizen_gateway.storage.keys import DeviceKeys
from tests.support.bench import Bench, BenchDevice

_LEFT_BEHIND = """insert into aizen.outbox (subject, subject_id, change, created_at)
                  values ('device', $1, 'deleted', now() - interval '1 minute')"""


async def _uid(bench: Bench, device_id: str) -> UUID:
    row = await bench.parts.database.fetchrow(
        "select uid from aizen.devices where id = $1 and deleted_at is null", device_id
    )
    return UUID(str(row["uid"]))


@pytest.mark.parametrize("named_anew", [True, False])
async def test_a_delete_that_is_told_late_touches_nothing_of_the_next_life(bench: Bench, named_anew: bool) -> None:
    earlier = await bench.device("again-1")
    uid = await _uid(bench, "again-1")
    await bench.services.devices.delete(await bench.owner(), "again-1", origin=NOWHERE)
    later = await bench.device("again-1")
    command = await bench.submit(await bench.open_session("again-1"))
    keys = DeviceKeys.of("again-1")
    # Who only polls may still go by the uid that was there.
    await bench.parts.store.call("HSET", keys.device, "uid", str(await _uid(bench, "again-1") if named_anew else uid))
    await bench.parts.database.execute(_LEFT_BEHIND, uid)
    assert await bench.parts.dispatcher.relay() == 1
    assert await bench.parts.store.call("EXISTS", keys.device) == int(named_anew)
    (claimed,) = await later.claim()
    assert claimed["id"] == command["id"]
    with pytest.raises(Unauthenticated):
        await earlier.claim()


async def test_a_deleted_device_leaves_nothing_but_the_mark_of_its_credentials(bench: Bench) -> None:
    device = await bench.device("gone-1")
    await bench.submit(await bench.open_session("gone-1"))
    await device.claim()
    await bench.services.devices.delete(await bench.owner(), "gone-1", origin=NOWHERE)
    keys = DeviceKeys.of("gone-1")
    assert await bench.parts.store.call("EXISTS", keys.sessions, keys.device, keys.limit, *keys.queue) == 0
    assert await bench.parts.store.call("EXISTS", keys.epoch) == 1


async def _end(device: BenchDevice, way: str) -> None:
    owner = await device.bench.owner()
    devices = device.bench.services.devices
    if way == "rotated":
        await devices.rotate_secret(owner, device.device_id, origin=NOWHERE)
    elif way == "suspended":
        await devices.suspend(owner, device.device_id, origin=NOWHERE)
    else:
        await devices.delete(owner, device.device_id, origin=NOWHERE)


@pytest.mark.parametrize("way", ["rotated", "suspended", "deleted"])
async def test_what_a_failover_forgot_of_ended_sessions_is_told_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(recovery, "_MOVES_EVERY_S", 0.0)
    device, other = await bench.device(f"void-{way}"), await bench.device(f"other-{way}")
    keys = DeviceKeys.of(device.device_id)
    async with Redis.from_url(bench.redis_url) as redis:
        kept = {key: await redis.dump(key) for key in (keys.sessions, keys.epoch)}
        await _end(device, way)
        # The replica that took over had not got it.
        for key, value in kept.items():
            assert value is not None
            await redis.restore(key, 0, value, replace=True)
    assert await device.claim() == []
    bench.parts.recovery._servers = "elsewhere"
    await bench.parts.recovery.audit()
    with pytest.raises(Unauthenticated):
        await device.claim()
    # Of this one nothing was forgotten.
    assert await other.claim() == []


async def test_ended_sessions_are_told_again_page_by_page(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aizen_gateway.services.dispatch._REVOKED_AT_ONCE", 2)
    since = (await bench.owner()).now_ms
    devices = [await bench.device(f"page-{number}") for number in range(5)]
    for device in devices:
        await bench.parts.store.call("DEL", DeviceKeys.of(device.device_id).epoch)
    assert await bench.parts.dispatcher.revoke_again(from_ms(since)) == 5
    for device in devices:
        with pytest.raises(Unauthenticated):
            await device.claim()
