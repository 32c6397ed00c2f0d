"""Who is there, with nothing that runs by itself: what is written of devices, in which order, and by whom."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.domain.values import NOWHERE
from aizen_gateway.services.heartbeats import _Written
from aizen_gateway.storage import keys
from tests.support.bench import Bench
from tests.support.waiting import eventually

_SHORT_MS = 60


async def _row(bench: Bench, device_id: str) -> tuple[str, str]:
    row = await bench.parts.database.fetchrow("select presence, connection from aizen.devices where id = $1", device_id)
    return row["presence"], row["connection"]


@pytest.mark.parametrize("alone", [True, False])
async def test_a_suspended_device_is_not_written_online_by_what_was_seen_before(bench: Bench, alone: bool) -> None:
    device = await bench.device("suspended-1")
    attendance = bench.parts.attendance
    beat = await attendance._presence.beat(device.token, "online", {"status": "online"})
    assert beat.change is not None
    await bench.services.devices.suspend(await bench.owner(), "suspended-1", origin=NOWHERE)
    if alone:
        await attendance._write_alone(beat.change, NOWHERE)
    else:
        assert await attendance._write_together([(beat.change, NOWHERE)]) == [None]
    assert await attendance.change(beat.change)
    assert await _row(bench, "suspended-1") == ("offline", "none")
    await bench.services.devices.resume(await bench.owner(), "suspended-1", origin=NOWHERE)
    (listed,) = (await bench.services.devices.list(await bench.owner()))["devices"]
    assert listed["status"] == "offline"
    # Resumed, it is written as ever.
    await device.sign_in()
    again = await attendance._presence.beat(device.token, "online", {"status": "online"})
    assert again.change is not None
    assert await attendance.change(again.change)
    assert await _row(bench, "suspended-1") == ("online", "polling")


async def test_an_instance_that_was_thought_dead_is_told_so_though_it_is_not_all_buried(bench: Bench) -> None:
    other = await Bench.open(bench.database_url, bench.redis_url, bench.customer_id)
    try:
        ours, theirs = bench.parts.attendance._presence, other.parts.attendance._presence
        assert (await ours.instance_beat(_SHORT_MS))[0] is False
        for number in range(3):
            device = await bench.device(f"bury-{number}")
            connection_id = uuid4()
            await ours.list_socket(device.device_id, connection_id)
            await ours.connect(device.token, connection_id)
        await eventually(lambda: theirs.instance_beat(_SHORT_MS), lambda found: ours._instance in found[1])
        assert await theirs.bury(ours._instance, 1) == 1
        assert (await ours.instance_beat(_SHORT_MS))[0] is False
        # It has spoken: from now on it is known, to whoever is not so impatient.
        assert (await ours.instance_beat(60_000))[0] is True
    finally:
        await other.close()


@pytest.mark.parametrize("kind", ["seen", "behind"])
async def test_rows_are_locked_in_one_order_whatever_the_order_of_the_news(bench: Bench, kind: str) -> None:
    """So two instances that write of the same devices wait for each other, and never in a circle."""
    for number in range(2):
        await bench.device(f"order-{number}")
    database = bench.parts.database
    rows = await database.fetch("select uid from aizen.devices where customer_id = $1 order by uid", bench.customer_id)
    low, high = (UUID(str(row["uid"])) for row in rows)
    now = await bench.parts.store.time_ms()
    heartbeats = bench.parts.heartbeats
    if kind == "seen":
        heartbeats._seen = {high: now, low: now}
    else:
        heartbeats._behind = {uid: _Written(now, None, None) for uid in (high, low)}
    async with database.unit() as holder:
        await holder.execute("select 1 from aizen.devices where uid = $1 for update", low)
        flush = asyncio.create_task(heartbeats.flush())
        waiting = """select count(*) from pg_stat_activity
                     where datname = current_database() and wait_event_type = 'Lock'"""
        await eventually(lambda: database.fetchrow(waiting), lambda row: row["count"] == 1)
        async with database.unit() as other:
            found = await other.fetch("select 1 from aizen.devices where uid = $1 for update skip locked", high)
        assert len(found) == 1
    await flush
    assert not heartbeats._seen
    assert not heartbeats._behind


async def test_a_device_that_cannot_be_written_keeps_no_other_from_being_looked_at(bench: Bench) -> None:
    devices = [await bench.device(f"due-{number:02}") for number in range(12)]
    attendance = bench.parts.attendance
    for number, device in enumerate(devices):
        beat = await attendance._presence.beat(device.token, "online", {"status": "online"})
        assert beat.change is not None
        # Due in this order, the first one before all that are not looked at with it.
        await bench.parts.store.call("ZADD", keys.WATCH, number + 1, device.device_id)
    async with bench.parts.database.unit() as holder:
        await holder.execute("select 1 from aizen.devices where id = $1 for update", devices[0].device_id)
        with pytest.raises(Unavailable):
            await attendance.look()
    for device in devices[1:]:
        assert await _row(bench, device.device_id) == ("online", "polling")
    assert await _row(bench, devices[0].device_id) == ("offline", "none")
