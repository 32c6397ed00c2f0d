"""Claiming: what a device gets, in which order, and what it costs (contract section 3, promises 1 and 2)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import rfc8785
from redis.asyncio import Redis

from aizen_gateway.domain.clock import from_ms
from tests.support.bench import Bench
from tests.support.clients import API, World, expect
from tests.support.gateway import StartGateway
from tests.support.inside import redis_ms
from tests.support.line import Line
from tests.support.waiting import TIME

CLAIM = f"{API}/device/commands/claim"


async def test_a_claimed_command_carries_all_that_its_device_needs(line: Line, valkey: Redis) -> None:
    parameters = {"host": "10.0.0.1", "count": 4}
    command = await line.submit("ping", parameters=parameters, priority=3, timeoutMs=60_000)
    before = await redis_ms(valkey)
    (claimed,) = await line.device.claim(visibilityTimeout=20_000)
    after = await redis_ms(valkey)
    token, timestamp = claimed.pop("claimToken"), claimed.pop("timestamp")
    visible_until = claimed.pop("visibleUntil")
    assert claimed == {
        "id": command["id"],
        "type": "ping",
        "parameters": parameters,
        "priority": 3,
        "sessionId": line.session_id,
        "leaseMs": 20_000,
        "attempt": 1,
        "timeoutMs": 60_000,
        "expiresAt": command["expiresAt"],
        "digest": command["digest"],
    }
    assert isinstance(token, str)
    assert TIME.fullmatch(timestamp)
    assert TIME.fullmatch(visible_until)
    assert from_ms(before) <= datetime.fromisoformat(timestamp) <= from_ms(after)
    assert datetime.fromisoformat(visible_until) - datetime.fromisoformat(timestamp) == timedelta(seconds=20)


async def test_a_claim_is_for_one_command_and_five_minutes_unless_it_says_otherwise(line: Line) -> None:
    for _ in range(2):
        await line.submit()
    (claimed,) = expect(await line.device.post(CLAIM), 200)["commands"]
    assert claimed["leaseMs"] == 300_000
    (claimed,) = expect(await line.device.post(CLAIM, {"limit": None, "visibilityTimeout": None}), 200)["commands"]
    assert claimed["leaseMs"] == 300_000


async def test_a_claim_gets_as_many_commands_as_there_are_up_to_its_limit(line: Line) -> None:
    submitted = [(await line.submit())["id"] for _ in range(12)]
    first = await line.device.claim(limit=10)
    rest = await line.device.claim(limit=10)
    assert [command["id"] for command in first] == submitted[:10]
    assert [command["id"] for command in rest] == submitted[10:]
    assert len({command["claimToken"] for command in first + rest}) == 12


async def test_bounds_of_a_claim_are_taken_and_what_is_beyond_is_400_and_claims_nothing(line: Line) -> None:
    command = await line.submit()
    bounds = {"limit": (1, 10), "visibilityTimeout": (1_000, 3_600_000), "waitMs": (0, 30_000)}
    for name, (least, most) in bounds.items():
        for value in (least - 1, most + 1, -1, str(least), least + 0.5, float(least), True, [least], 2**53):
            reply = await line.device.post(CLAIM, {name: value})
            assert (reply.status, reply.code) == (400, "INVALID_REQUEST"), (name, value)
            assert reply.fields.keys() == {name}
    assert (await line.seen(command))["status"] == "queued"
    for name, values in bounds.items():
        for value in values:
            (claimed,) = await line.device.claim(**{name: value})
            expect(await line.device.release(claimed), 200)


async def test_fields_that_the_gateway_does_not_know_are_ignored(line: Line) -> None:
    command = await line.submit()
    (claimed,) = await line.device.claim(types=["ping"], agent={"version": 3})
    assert claimed["id"] == command["id"]


async def test_a_body_over_64_kib_is_too_large(line: Line) -> None:
    reply = await line.device.post(CLAIM, {"padding": "x" * 65_536})
    assert (reply.status, reply.code) == (413, "PAYLOAD_TOO_LARGE")


async def test_the_most_urgent_come_first_and_within_one_priority_the_first(line: Line) -> None:
    priorities = [5, 1, 10, 3, 1, 5, 2, 10, 1, 7]
    submitted = [await line.submit(priority=priority) for priority in priorities]
    expected = [command["id"] for command in sorted(submitted, key=lambda command: command["priority"])]
    got = [claimed["id"] for limit in (1, 4, 2, 10) for claimed in await line.device.claim(limit=limit)]
    assert got == expected


async def test_a_command_without_a_priority_has_five(line: Line) -> None:
    urgent, usual, slow = 4, None, 6
    ids = {}
    for priority in (slow, usual, urgent):
        fields: dict[str, Any] = {} if priority is None else {"priority": priority}
        ids[priority] = (await line.submit(**fields))["id"]
    claimed = await line.device.claim(limit=3)
    assert [(command["id"], command["priority"]) for command in claimed] == [
        (ids[urgent], 4),
        (ids[usual], 5),
        (ids[slow], 6),
    ]


async def test_an_urgent_command_overtakes_all_that_wait(line: Line) -> None:
    await line.submit(priority=2)
    urgent = await line.submit(priority=1)
    (claimed,) = await line.device.claim()
    assert claimed["id"] == urgent["id"]


async def test_commands_submitted_through_two_instances_keep_their_order(
    line: Line, start_gateway: StartGateway
) -> None:
    owners = [line.world.owner, replace(line.world.owner, url=(await start_gateway()).url)]
    submitted = [(await owners[number % 2].submit(line.session_id))["id"] for number in range(30)]
    claimed = [command["id"] for _ in range(3) for command in await line.device.claim(limit=10)]
    assert claimed == submitted


async def test_a_claimed_command_is_not_handed_out_again(line: Line, start_gateway: StartGateway) -> None:
    await line.claimed()
    assert await line.device.claim(limit=10) == []
    assert await line.at(await start_gateway()).claim(limit=10) == []


async def test_a_device_gets_its_own_commands_only(line: Line) -> None:
    command = await line.submit()
    stranger = await line.world.device()
    others = await (await line.world.another()).device()
    assert await stranger.claim(limit=10) == []
    assert await others.claim(limit=10) == []
    (claimed,) = await line.device.claim(limit=10)
    assert claimed["id"] == command["id"]


async def test_what_waits_for_approval_is_not_handed_out(line: Line) -> None:
    await line.submit("restart_dhcp")
    assert await line.device.claim(limit=10) == []
    approved = await line.approved("set_dns")
    (claimed,) = await line.device.claim(limit=10)
    assert claimed["id"] == approved["id"]


async def test_an_approved_command_takes_its_place_when_it_is_approved(line: Line) -> None:
    waiting = await line.submit("restart_dhcp")
    diagnostic = await line.submit()
    expect(await line.world.admin.decide(line.session_id, commandId=waiting["id"]), 200)
    assert [claimed["id"] for claimed in await line.device.claim(limit=2)] == [diagnostic["id"], waiting["id"]]


async def test_the_customer_sees_that_a_command_is_claimed(line: Line) -> None:
    claimed = await line.claimed()
    seen = await line.seen(claimed)
    assert (seen["status"], seen["attempt"], seen["claimedAt"]) == ("claimed", 1, claimed["timestamp"])


async def test_the_device_gets_the_parameters_as_they_were_approved_and_their_digest(line: Line) -> None:
    parameters: dict[str, Any] = {
        "ö": "\u2028 \U0001f600",
        "z": {"b": [1, 1.0, 2.5e-7, 1e21], "a": None},
        "n": 2**53,
        "": [True, []],
    }
    command = await line.submit("ping", parameters=parameters)
    (claimed,) = await line.device.claim()
    assert json.dumps(claimed["parameters"]) == json.dumps(parameters)
    canonical = rfc8785.dumps({"type": "ping", "parameters": {**parameters, "n": float(2**53)}})
    assert claimed["digest"] == command["digest"] == "sha256:" + hashlib.sha256(canonical).hexdigest()


async def test_a_device_reads_a_command_it_has_claimed_with_its_token_and_changes_nothing(line: Line) -> None:
    claimed = await line.claimed(parameters={"host": "h"})
    for _ in range(2):
        read = expect(await line.device.read(claimed["id"]), 200)["command"]
        assert 0 < read.pop("leaseMs") <= claimed["leaseMs"]
        assert read["status"] == "claimed"
        same = set(claimed) - {"leaseMs", "timestamp"}
        assert {name: read[name] for name in same} == {name: claimed[name] for name in same}
    expect(await line.device.report(claimed), 200)


async def test_a_device_reads_no_token_of_a_command_it_does_not_hold(line: Line) -> None:
    command = await line.submit()
    read = expect(await line.device.read(command["id"]), 200)["command"]
    assert read["status"] == "queued"
    assert not read.keys() & {"claimToken", "visibleUntil", "leaseMs"}
    (claimed,) = await line.device.claim()
    expect(await line.device.report(claimed), 200)
    read = expect(await line.device.read(command["id"]), 200)["command"]
    assert read["status"] == "succeeded"
    assert not read.keys() & {"claimToken", "visibleUntil", "leaseMs"}


async def test_a_claim_is_still_known_after_redis_was_emptied(line: Line, valkey: Redis) -> None:
    claimed = await line.claimed()
    await valkey.flushall()
    expect(await line.device.sign_in(), 200)
    read = expect(await line.device.read(claimed["id"]), 200)["command"]
    assert (read["claimToken"], read["visibleUntil"]) == (claimed["claimToken"], claimed["visibleUntil"])


async def test_a_command_of_another_device_or_customer_is_as_one_that_does_not_exist(line: Line) -> None:
    claimed = await line.claimed()
    stranger = await line.world.device()
    others = await (await line.world.another()).device()
    for device in (stranger, others, line.device):
        command = claimed if device is not line.device else {**claimed, "id": str(uuid4())}
        for reply in (
            await device.read(command["id"]),
            await device.extend(command),
            await device.report(command),
            await device.release(command),
        ):
            assert (reply.status, reply.code) == (404, "COMMAND_NOT_FOUND")
    expect(await line.device.report(claimed), 200)


async def test_an_id_that_is_none_is_a_command_that_does_not_exist(line: Line) -> None:
    for command_id in ("1", "not-a-uuid", str(uuid4()) + "0", uuid4().hex):
        reply = await line.device.read(command_id)
        assert (reply.status, reply.code) == (404, "COMMAND_NOT_FOUND"), command_id
        assert (await line.device.release({"id": command_id, "claimToken": "t"})).code == "COMMAND_NOT_FOUND"


async def test_a_command_of_an_earlier_life_of_the_device_is_not_this_ones(world: World) -> None:
    line = Line(world, await world.device("router-1"), (await world.owner.open_session("router-1"))["id"])
    claimed = await line.claimed()
    waiting = await line.submit()
    assert (await world.owner.call("DELETE", f"{API}/customer/devices/router-1")).status == 204
    device = await world.device("router-1")
    assert await device.claim(limit=10) == []
    for command in (claimed, waiting):
        assert (await device.read(command["id"])).code == "COMMAND_NOT_FOUND"
    assert (await device.report(claimed)).code == "COMMAND_NOT_FOUND"


async def test_a_device_holds_at_most_100_open_commands_those_that_wait_for_approval_included(line: Line) -> None:
    waiting = [await line.submit("restart_dhcp") for _ in range(10)]
    for _ in range(90):
        await line.submit()
    claimed = await line.device.claim(limit=10)
    path = f"{API}/customer/sessions/{line.session_id}/commands"
    for type in ("ping", "restart_dhcp"):
        reply = await line.world.owner.post(path, {"type": type})
        assert (reply.status, reply.code) == (409, "QUEUE_FULL")
    expect(await line.device.report(claimed[0]), 200)
    await line.submit()
    assert (await line.world.owner.post(path, {"type": "ping"})).code == "QUEUE_FULL"
    expect(await line.world.owner.cancel(waiting[0]), 200)
    await line.submit()
    assert (await line.world.owner.post(path, {"type": "ping"})).code == "QUEUE_FULL"
    other = await Line.open(line.world)
    await other.submit()


async def test_a_full_queue_is_handed_out_whole_and_in_order(line: Line) -> None:
    submitted = [(await line.submit(priority=number % 10 + 1))["id"] for number in range(100)]
    expected = [submitted[number] for number in sorted(range(100), key=lambda number: number % 10)]
    got = [claimed["id"] for _ in range(10) for claimed in await line.device.claim(limit=10)]
    assert got == expected


@asynccontextmanager
async def monitored(valkey: Redis) -> AsyncIterator[list[str]]:
    """After the block, the list holds the commands that clients sent to Redis inside it; a script is one."""
    commands: list[str] = []
    # A connection for the monitor, and one for the end mark, so that none is opened meanwhile.
    await asyncio.gather(valkey.ping(), valkey.ping())
    async with valkey.monitor() as monitor:
        yield commands
        end = f"end {uuid4()}"
        await valkey.echo(end)
        while end not in (seen := await monitor.next_command())["command"]:
            if seen["client_type"] != "lua":
                commands.append(seen["command"])


@asynccontextmanager
async def counting_server() -> AsyncIterator[tuple[int, list[object]]]:
    """A port that counts who connects to it and then hangs up."""
    connections: list[object] = []

    async def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], connections


async def test_an_empty_claim_is_one_round_trip_to_redis_and_no_sql(
    bench: Bench, redis_url: str, valkey: Redis
) -> None:
    device = await bench.device("router-1")
    async with counting_server() as (port, connections):
        instance = await Bench.open(f"postgresql://nobody@127.0.0.1:{port}/nothing", redis_url, bench.customer_id)
        try:
            device = replace(device, bench=instance)
            assert await device.claim() == []
            for limit in (1, 10):
                async with monitored(valkey) as commands:
                    assert await device.claim(limit=limit) == []
                assert len(commands) == 1, commands
                assert commands[0].startswith("EVALSHA")
        finally:
            await instance.close()
    assert connections == []


async def test_an_empty_claim_over_http_costs_no_more(line: Line, valkey: Redis) -> None:
    assert await line.device.claim() == []
    async with monitored(valkey) as commands:
        for _ in range(20):
            assert await line.device.claim() == []
    # The rest is what instances do now and then by themselves, for no device that has just been in touch.
    of_the_device = [command for command in commands if "{" + line.device.device_id + "}" in command]
    assert len(of_the_device) == 20
    assert {command.partition(" ")[0] for command in of_the_device} == {"EVALSHA"}


async def test_an_empty_claim_is_refused_without_sql_as_well(bench: Bench, valkey: Redis) -> None:
    device = await bench.device("router-1")
    # The server knows the script from now on.
    assert await device.claim() == []
    device = replace(device, token="router-1." + "A" * 43)
    async with monitored(valkey) as commands:
        outcome: list[Any] = await asyncio.gather(device.claim(), return_exceptions=True)
    assert [type(error).__name__ for error in outcome] == ["Unauthenticated"]
    assert [command.partition(" ")[0] for command in commands] == ["EVALSHA"], commands
