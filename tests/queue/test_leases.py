"""Leases: extended, run out, redelivered, and used up (contract section 3, promises 1 to 3 and 8)."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.clock import from_ms
from aizen_gateway.domain.errors import ClaimExpired, CommandAlreadyCompleted, InvalidClaimToken
from tests.support.bench import Bench
from tests.support.clients import DeviceClient, World, expect
from tests.support.gateway import StartGateway
from tests.support.inside import comes_to, ended, passes, redis_ms
from tests.support.line import Line
from tests.support.waiting import TIME


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def next_of(device: DeviceClient) -> Any:
    """Wait for a command and claim it."""
    (claimed,) = await device.claim(waitMs=15_000)
    return claimed


async def test_an_extension_counts_from_now(line: Line, valkey: Redis) -> None:
    claimed = await line.claimed()
    for extension in (1_000, 300_000, 60_000):
        before = await redis_ms(valkey)
        answer = expect(await line.device.extend(claimed, extensionMs=extension), 200)
        after = await redis_ms(valkey)
        assert answer.keys() == {"success", "visibleUntil"}
        assert answer["success"] is True
        assert TIME.fullmatch(answer["visibleUntil"])
        ends = moment(answer["visibleUntil"])
        assert from_ms(before + extension) <= ends <= from_ms(after + extension)
        read = expect(await line.device.read(claimed["id"]), 200)["command"]
        assert read["visibleUntil"] == answer["visibleUntil"]
        assert read["claimToken"] == claimed["claimToken"]


async def test_an_extension_is_five_minutes_unless_it_says_otherwise(line: Line, valkey: Redis) -> None:
    claimed = await line.claimed()
    for fields in ({}, {"extensionMs": None}, {"unknown": 1}):
        before = await redis_ms(valkey)
        answer = expect(await line.device.extend(claimed, **fields), 200)
        assert moment(answer["visibleUntil"]) >= from_ms(before + 300_000)


async def test_bounds_of_an_extension_are_taken_and_what_is_beyond_is_400(line: Line) -> None:
    claimed = await line.claimed()
    for value in (999, 300_001, 0, -1, "5000", 1500.5, 2000.0, True):
        reply = await line.device.extend(claimed, extensionMs=value)
        assert (reply.status, reply.code) == (400, "INVALID_REQUEST"), value
        assert reply.fields.keys() == {"extensionMs"}
    for value in (1_000, 300_000):
        expect(await line.device.extend(claimed, extensionMs=value), 200)


@pytest.mark.parametrize("token", [None, "", 5, ["t"]])
async def test_a_claim_token_that_is_no_text_is_400_everywhere(line: Line, token: Any) -> None:
    claimed = {**await line.claimed(), "claimToken": token}
    for reply in (
        await line.device.extend(claimed),
        await line.device.release(claimed),
        await line.device.report(claimed),
    ):
        assert (reply.status, reply.code) == (400, "INVALID_REQUEST")
        assert reply.fields.keys() == {"claimToken"}


async def test_another_token_extends_nothing(line: Line) -> None:
    first, second = await line.claimed(), await line.claimed()
    for token in ("wrong", second["claimToken"], first["claimToken"] + "x", "é"):
        reply = await line.device.extend({**first, "claimToken": token}, extensionMs=1000)
        assert (reply.status, reply.code) == (403, "INVALID_CLAIM_TOKEN")
    read = expect(await line.device.read(first["id"]), 200)["command"]
    assert read["visibleUntil"] == first["visibleUntil"]


async def test_a_command_that_nobody_claimed_has_no_token_that_extends_it(line: Line) -> None:
    command = await line.submit()
    for token in ("", "None", "null"):
        reply = await line.device.extend({**command, "claimToken": token or "x"})
        assert (reply.status, reply.code) == (403, "INVALID_CLAIM_TOKEN")


async def test_an_ended_command_cannot_be_extended(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.report(claimed), 200)
    reply = await line.device.extend(claimed)
    assert (reply.status, reply.code) == (409, "COMMAND_ALREADY_COMPLETED")


async def test_a_command_is_redelivered_after_its_lease_with_a_new_token(line: Line) -> None:
    command = await line.submit()
    (first,) = await line.device.claim(visibilityTimeout=1000)
    assert await line.device.claim() == []
    second = await next_of(line.device)
    assert second["id"] == first["id"] == command["id"]
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert second["claimToken"] != first["claimToken"]
    assert moment(second["timestamp"]) >= moment(first["visibleUntil"])
    assert (await line.seen(command))["attempt"] == 2


async def test_a_lapsed_lease_is_redelivered_at_another_instance(line: Line, start_gateway: StartGateway) -> None:
    await line.submit()
    (first,) = await line.device.claim(visibilityTimeout=1000)
    second = await next_of(line.at(await start_gateway()))
    assert (second["id"], second["attempt"]) == (first["id"], 2)


async def test_a_lease_that_was_extended_does_not_run_out_at_its_first_end(line: Line) -> None:
    await line.submit()
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    expect(await line.device.extend(claimed, extensionMs=60_000), 200)
    assert await line.device.claim(waitMs=1500) == []
    assert expect(await line.device.report(claimed), 200)["late"] is False


async def test_a_lease_may_be_shortened(line: Line) -> None:
    claimed = await line.claimed()
    expect(await line.device.extend(claimed, extensionMs=1000), 200)
    assert (await next_of(line.device))["attempt"] == 2


async def test_a_lease_that_ran_out_cannot_be_extended_or_released(line: Line, valkey: Redis) -> None:
    command = await line.submit()
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    await passes(valkey, 1000)
    for _ in range(2):
        for reply in (await line.device.extend(claimed), await line.device.release(claimed)):
            assert (reply.status, reply.code) == (403, "CLAIM_EXPIRED")
        await comes_to(line.world, command, "queued")
    read = expect(await line.device.read(claimed["id"]), 200)["command"]
    assert not read.keys() & {"claimToken", "visibleUntil", "leaseMs"}


async def test_the_token_of_an_earlier_claim_is_worth_nothing_and_touches_nothing(line: Line) -> None:
    await line.submit()
    (old,) = await line.device.claim(visibilityTimeout=1000)
    new = await next_of(line.device)
    for reply in (await line.device.extend(old), await line.device.release(old), await line.device.report(old)):
        assert (reply.status, reply.code) == (403, "INVALID_CLAIM_TOKEN")
    read = expect(await line.device.read(new["id"]), 200)["command"]
    assert (read["claimToken"], read["visibleUntil"]) == (new["claimToken"], new["visibleUntil"])
    assert expect(await line.device.report(new), 200)["late"] is False


async def test_a_redelivered_command_keeps_its_original_place(line: Line, valkey: Redis) -> None:
    first, second, third = [await line.submit() for _ in range(3)]
    urgent = await line.submit(priority=1)
    taken = await line.device.claim(limit=3, visibilityTimeout=1000)
    assert [claimed["id"] for claimed in taken] == [urgent["id"], first["id"], second["id"]]
    late = await line.submit(priority=1)
    await passes(valkey, 1000)
    order = [claimed["id"] for claimed in await line.device.claim(limit=10)]
    assert order == [urgent["id"], late["id"], first["id"], second["id"], third["id"]]


async def test_a_stuck_command_never_blocks_the_others(line: Line) -> None:
    stuck = await line.submit(priority=1)
    (claimed,) = await line.device.claim(visibilityTimeout=3_600_000)
    assert claimed["id"] == stuck["id"]
    for _ in range(3):
        other = await line.submit(priority=10)
        (claimed,) = await line.device.claim()
        assert claimed["id"] == other["id"]
        expect(await line.device.report(claimed), 200)


async def test_a_diagnostic_is_delivered_five_times_at_most(bench: Bench) -> None:
    device = await bench.device("router-1")
    command = await bench.submit(await bench.open_session("router-1"))
    claims: list[Any] = []
    while claimed := await device.claim(visibility_ms=1):
        claims += claimed
        await bench.passes(claimed[0]["visibleUntil"])
    assert [claimed["attempt"] for claimed in claims] == [1, 2, 3, 4, 5]
    assert len({claimed["claimToken"] for claimed in claims}) == 5
    await bench.parts.sweep.commands()
    seen = await bench.command(command)
    assert (seen["status"], seen["attempt"]) == ("undeliverable", 5)


@pytest.mark.parametrize("deliveries", [1, 3, 20])
async def test_a_command_is_delivered_as_often_as_its_max_deliveries_says(bench: Bench, deliveries: int) -> None:
    device = await bench.device("router-1")
    session = await bench.open_session("router-1")
    command = await bench.submit(session, max_deliveries=deliveries)
    attempts = []
    while claimed := await device.claim(visibility_ms=1):
        attempts.append(claimed[0]["attempt"])
        await bench.passes(claimed[0]["visibleUntil"])
    assert attempts == list(range(1, deliveries + 1))
    await bench.parts.sweep.commands()
    assert (await bench.command(command))["status"] == "undeliverable"


async def test_a_remediation_is_never_run_twice_by_accident(line: Line) -> None:
    command = await line.approved()
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)
    assert await line.device.claim(waitMs=1500) == []
    seen = await ended(line.world, command)
    assert (seen["status"], seen["attempt"]) == ("undeliverable", 1)
    assert seen["completedAt"] >= claimed["visibleUntil"]
    assert await line.device.claim() == []


async def test_a_remediation_runs_again_where_its_max_deliveries_says_so(line: Line) -> None:
    await line.approved(maxDeliveries=2)
    (first,) = await line.device.claim(visibilityTimeout=1000)
    second = await next_of(line.device)
    assert (second["id"], second["attempt"]) == (first["id"], 2)


async def test_the_last_lease_counts_to_its_end(line: Line) -> None:
    await line.submit(maxDeliveries=1)
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    assert (await line.seen(claimed))["status"] == "claimed"
    expect(await line.device.extend(claimed, extensionMs=60_000), 200)
    assert await line.device.claim(waitMs=1200) == []
    assert (await line.seen(claimed))["status"] == "claimed"
    assert expect(await line.device.report(claimed), 200)["late"] is False


async def test_an_undeliverable_command_has_ended_for_its_device(bench: Bench) -> None:
    device = await bench.device("router-1")
    await bench.submit(await bench.open_session("router-1"), max_deliveries=1)
    (claimed,) = await device.claim(visibility_ms=1)
    await bench.passes(claimed["visibleUntil"])
    await bench.parts.sweep.commands()
    for call in (device.extend(claimed, 1000), device.release(claimed)):
        with pytest.raises(CommandAlreadyCompleted):
            await call


async def test_a_claim_on_one_instance_and_an_extension_on_another_are_of_one_lease(
    line: Line, start_gateway: StartGateway
) -> None:
    elsewhere = line.at(await start_gateway())
    await line.submit()
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    expect(await elsewhere.extend(claimed, extensionMs=60_000), 200)
    claims = await asyncio.gather(*(device.claim(waitMs=1300) for device in (line.device, elsewhere)))
    assert claims == [[], []]


async def test_leases_end_by_the_clock_of_redis_even_where_the_index_has_forgotten_them(
    bench: Bench, valkey: Redis
) -> None:
    device = await bench.device("router-1")
    await bench.submit(await bench.open_session("router-1"))
    (claimed,) = await device.claim(visibility_ms=300_000)
    await valkey.flushall()
    await bench.parts.recovery.look()
    await device.sign_in()
    assert await device.claim() == []
    await bench.passes((await device.extend(claimed, 1))["visibleUntil"])
    (again,) = await device.claim()
    assert (again["id"], again["attempt"]) == (claimed["id"], 2)
    with pytest.raises(InvalidClaimToken):
        await device.extend(claimed, 1000)


async def test_the_lease_that_is_left_is_told_in_milliseconds(world: World, valkey: Redis) -> None:
    line = await Line.open(world)
    await line.submit()
    (claimed,) = await line.device.claim(visibilityTimeout=10_000)
    await passes(valkey, 50)
    read = expect(await line.device.read(claimed["id"]), 200)["command"]
    assert read["leaseMs"] <= 10_000 - 50
    left = moment(read["visibleUntil"]) - moment(read["timestamp"])
    assert left == timedelta(milliseconds=read["leaseMs"])


async def test_an_expired_lease_is_so_to_the_millisecond(bench: Bench) -> None:
    device = await bench.device("router-1")
    await bench.submit(await bench.open_session("router-1"))
    (claimed,) = await device.claim(visibility_ms=5)
    await bench.passes(claimed["visibleUntil"])
    with pytest.raises(ClaimExpired):
        await device.extend(claimed, 1000)
