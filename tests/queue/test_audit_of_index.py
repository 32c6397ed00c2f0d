"""The index is compared with the truth while both change: what is missing comes back, and nothing else is touched."""

from __future__ import annotations

from uuid import UUID

from aizen_gateway.storage.keys import DeviceKeys
from tests.support.bench import Bench


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
    async for page in recovery._live():
        # It ends between the reading of the page and the look at the index.
        if any(one.id == UUID(command["id"]) for one in page):
            await device.report(claimed)
        found += len(await bench.parts.dispatcher.not_indexed(page))
    assert found >= 1
    assert await recovery.put_back() == 0
    assert await device.claim() == []
