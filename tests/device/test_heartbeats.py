"""Heartbeats: what a device tells of itself, what it is told, and what its customer sees (contract section 3)."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.clock import rfc3339
from tests.support.clients import API, World, expect
from tests.support.gateway import StartWorld
from tests.support.inside import passes
from tests.support.waiting import TIME, eventually


async def test_a_heartbeat_is_acknowledged(world: World) -> None:
    device = await world.device()
    answer = expect(await device.heartbeat(), 200)
    assert TIME.fullmatch(answer.pop("timestamp"))
    assert answer == {"success": True, "nextHeartbeat": 30_000, "pendingCommands": 0, "acknowledged": True}


async def test_the_next_heartbeat_is_wanted_when_the_setting_says(start_world: StartWorld) -> None:
    device = await (await start_world(AIZEN_HEARTBEAT_INTERVAL="7")).device()
    assert expect(await device.heartbeat(), 200)["nextHeartbeat"] == 7_000


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("online", "online"),
        ("busy", "online"),
        ("healthy", "online"),
        ("degraded", "online"),
        ("error", "error"),
        ("offline", "offline"),
    ],
)
async def test_error_and_offline_show_as_such_and_the_others_as_online(world: World, told: str, shown: str) -> None:
    device = await world.device("router-1")
    expect(await device.heartbeat(told), 200)
    assert (await world.owner.status("router-1"))["status"] == shown
    listed = expect(await world.owner.get(f"{API}/customer/devices?status={shown}"), 200)["devices"]
    assert [found["id"] for found in listed] == ["router-1"]


async def test_a_device_shows_what_it_told_last(world: World) -> None:
    device = await world.device()
    for told, shown in [("online", "online"), ("error", "error"), ("healthy", "online"), ("offline", "offline")]:
        expect(await device.heartbeat(told), 200)
        assert (await world.owner.status(device.device_id))["status"] == shown


async def test_a_device_that_has_not_told_anything_yet_is_offline(world: World) -> None:
    device = await world.device()
    seen = await world.owner.status(device.device_id)
    assert seen["status"] == "offline"
    assert (seen["lastHeartbeat"], seen["metrics"], seen["diagnostics"]) == (None, None, None)


async def test_the_last_heartbeat_is_what_the_customer_sees(world: World) -> None:
    device = await world.device()
    metrics = {"cpu": 12.5, "memory": 48, "uptime": 86_400, "temperature": -3.5}
    diagnostics = {"links": [{"name": "eth0", "up": True}], "note": None}
    answer = expect(await device.heartbeat("busy", metrics=metrics, diagnostics=diagnostics), 200)
    seen = await world.owner.status(device.device_id)
    assert (seen["metrics"], seen["diagnostics"]) == (metrics, diagnostics)
    assert seen["lastHeartbeat"] == answer["timestamp"]
    assert seen["lastSeen"] >= answer["timestamp"]
    assert seen["connection"] == "polling"
    answer = expect(await device.heartbeat("online", metrics={"cpu": 1}, diagnostics="fine"), 200)
    seen = await world.owner.status(device.device_id)
    assert (seen["metrics"], seen["diagnostics"]) == ({"cpu": 1}, "fine")
    assert seen["lastHeartbeat"] == answer["timestamp"]


async def test_the_last_heartbeat_outlives_redis(world: World, valkey: Redis) -> None:
    told: list[tuple[Any, Any]] = [({"cpu": 99.5}, ["late"]), (None, [[1], [2, 3]]), ({}, {"a": []}), ({"cpu": 1}, "x")]
    devices = [await world.device() for _ in told]
    answers = [
        expect(await device.heartbeat(metrics=metrics, diagnostics=diagnostics), 200)
        for device, (metrics, diagnostics) in zip(devices, told, strict=True)
    ]
    behind = "select count(*) from aizen.devices where last_heartbeat_at is null"
    await eventually(lambda: world.database.fetchrow(behind), lambda row: row[0] == 0)
    await valkey.flushall()
    for device, expected, answer in zip(devices, told, answers, strict=True):
        seen = await world.owner.status(device.device_id)
        assert (seen["metrics"], seen["diagnostics"]) == expected
        assert seen["lastHeartbeat"] == answer["timestamp"]


async def test_nothing_of_an_earlier_heartbeat_comes_back_when_redis_is_lost(world: World, valkey: Redis) -> None:
    device = await world.device()
    written = "select last_heartbeat_at from aizen.devices where id = $1"

    async def kept(answer: Any) -> None:
        await eventually(
            lambda: world.database.fetchrow(written, device.device_id),
            lambda row: row[0] is not None and rfc3339(row[0]) == answer["timestamp"],
        )

    await kept(expect(await device.heartbeat(metrics={"cpu": 1}, diagnostics="hot"), 200))
    await kept(expect(await device.heartbeat(), 200))
    await valkey.flushall()
    seen = await world.owner.status(device.device_id)
    assert (seen["metrics"], seen["diagnostics"]) == (None, None)


async def test_a_device_that_falls_silent_is_offline(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_HEARTBEAT_TIMEOUT="1")
    device, owner = await world.device(), world.owner
    expect(await device.heartbeat(), 200)
    await eventually(lambda: owner.status(device.device_id), lambda seen: seen["status"] == "offline")
    listing = f"{API}/customer/devices?status=offline"
    await eventually(lambda: owner.get(listing), lambda reply: bool(reply.body["total"]))
    expect(await device.heartbeat(), 200)
    assert (await owner.status(device.device_id))["status"] == "online"


async def test_a_device_that_keeps_beating_stays_online(start_world: StartWorld, valkey: Redis) -> None:
    world = await start_world(AIZEN_HEARTBEAT_TIMEOUT="2")
    device, owner = await world.device(), world.owner
    for _ in range(6):
        expect(await device.heartbeat(), 200)
        await passes(valkey, 500)
        assert (await owner.status(device.device_id))["status"] == "online"
    assert expect(await owner.get(f"{API}/customer/devices?status=online"), 200)["total"] == 1


async def test_pending_commands_are_those_that_wait_to_be_claimed(world: World) -> None:
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    for _ in range(3):
        await world.owner.submit(session["id"], "ping")
    await world.owner.submit(session["id"], "restart_dhcp")
    assert expect(await device.heartbeat(), 200)["pendingCommands"] == 3
    (claimed,) = await device.claim()
    assert expect(await device.heartbeat(), 200)["pendingCommands"] == 2
    expect(await device.release(claimed), 200)
    assert expect(await device.heartbeat(), 200)["pendingCommands"] == 3
    await device.claim(limit=10)
    assert expect(await device.heartbeat(), 200)["pendingCommands"] == 0


async def test_a_command_whose_lease_ran_out_is_pending_again(world: World, valkey: Redis) -> None:
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    await world.owner.submit(session["id"], "ping")
    await device.claim(visibilityTimeout=1000)
    await passes(valkey, 1000)
    assert expect(await device.heartbeat(), 200)["pendingCommands"] == 1


async def test_null_counts_as_absent_and_unknown_fields_are_ignored(world: World) -> None:
    device = await world.device()
    body: dict[str, Any] = {
        "metrics": None,
        "diagnostics": None,
        "timestamp": None,
        "firmware": "2.0",
        "nested": {"any": [1]},
    }
    expect(await device.heartbeat(**body), 200)


async def test_a_device_may_tell_its_own_time(world: World) -> None:
    device = await world.device()
    for timestamp in ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.678+02:00"):
        expect(await device.heartbeat(timestamp=timestamp), 200)


async def test_diagnostics_are_any_json(world: World) -> None:
    device = await world.device()
    cases: list[Any] = [{"a": 1}, [1, 2], [[1], [2, 3]], "text", 5, 1.5, True, {}, [], ""]
    for diagnostics in cases:
        expect(await device.heartbeat(diagnostics=diagnostics), 200)
        assert (await world.owner.status(device.device_id))["diagnostics"] == diagnostics


async def test_a_heartbeat_that_is_not_well_formed_names_its_field(world: World) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "status"),
        ({"status": None}, "status"),
        ({"status": "sleeping"}, "status"),
        ({"status": "ONLINE"}, "status"),
        ({"status": 1}, "status"),
        ({"status": "online", "metrics": [1]}, "metrics"),
        ({"status": "online", "metrics": {"cpu": "high"}}, "metrics"),
        ({"status": "online", "metrics": {"cpu": True}}, "metrics"),
        ({"status": "online", "metrics": {"extra": {"deep": 1}}}, "metrics"),
        ({"status": "online", "timestamp": "yesterday"}, "timestamp"),
        ({"status": "online", "timestamp": 1_700_000_000}, "timestamp"),
        ({"status": "online", "timestamp": "2026-01-02T03:04:05"}, "timestamp"),
    ]
    device = await world.device()
    for body, field in cases:
        reply = await device.post(f"{API}/device/heartbeat", body)
        assert (reply.status, reply.code) == (400, "INVALID_REQUEST"), body
        assert reply.fields.keys() == {field}, body
        assert all(isinstance(problem, str) for problem in reply.fields[field]), body
    assert (await world.owner.status(device.device_id))["lastHeartbeat"] is None


async def test_a_new_life_of_a_device_shows_nothing_of_the_old(world: World) -> None:
    device = await world.device("router-1")
    expect(await device.heartbeat("error", metrics={"cpu": 1}), 200)
    assert (await world.owner.call("DELETE", f"{API}/customer/devices/router-1")).status == 204
    await world.device("router-1")
    seen = await world.owner.status("router-1")
    assert (seen["status"], seen["metrics"], seen["lastHeartbeat"]) == ("offline", None, None)
