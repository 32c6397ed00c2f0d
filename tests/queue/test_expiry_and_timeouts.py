"""What time alone does to commands: they expire, they time out, their sessions end (contract section 3, promise 6)."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.errors import CommandAlreadyCompleted
from tests.support.bench import Bench
from tests.support.clients import API, expect
from tests.support.gateway import StartWorld
from tests.support.inside import comes_to, ended, passes
from tests.support.line import Line
from tests.support.waiting import until_past


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_command_past_its_expiry_is_not_handed_out_though_nothing_has_swept(bench: Bench) -> None:
    device = await bench.device("router-1")
    session = await bench.open_session("router-1")
    command = await bench.submit(session, expires_in_ms=1)
    other = await bench.submit(session)
    await bench.passes(command["expiresAt"])
    (claimed,) = await device.claim(limit=10)
    assert claimed["id"] == other["id"]
    assert (await bench.command(command))["status"] == "queued"
    await bench.parts.sweep.commands()
    seen = await bench.command(command)
    assert (seen["status"], seen["attempt"]) == ("expired", 0)
    assert seen["completedAt"] >= seen["expiresAt"]


async def test_expired_commands_do_not_use_up_the_limit_of_a_claim(bench: Bench) -> None:
    device = await bench.device("router-1")
    session = await bench.open_session("router-1")
    expired = [await bench.submit(session, priority=1, expires_in_ms=1) for _ in range(5)]
    good = [await bench.submit(session, priority=9) for _ in range(3)]
    await bench.passes(expired[-1]["expiresAt"])
    assert [claimed["id"] for claimed in await device.claim(limit=3)] == [command["id"] for command in good]


async def test_an_index_filled_again_does_not_hand_out_what_has_expired(bench: Bench, valkey: Redis) -> None:
    device = await bench.device("router-1")
    command = await bench.submit(await bench.open_session("router-1"), expires_in_ms=1)
    await bench.passes(command["expiresAt"])
    await valkey.flushall()
    await bench.parts.recovery.look()
    await device.sign_in()
    assert await device.claim() == []


async def test_the_index_is_never_believed_about_the_time(bench: Bench) -> None:
    """What Redis holds for claimable, PostgreSQL refuses past the expiry: the claim is empty, not wrong."""
    device = await bench.device("router-1")
    command = await bench.submit(await bench.open_session("router-1"), expires_in_ms=600_000)
    await bench.parts.database.execute(
        "update aizen.commands set claim_by = now() - interval '1 second' where id = $1", command["id"]
    )
    assert await device.claim() == []
    assert await device.claim() == []


async def test_an_expired_command_shows_as_expired_within_ten_seconds(line: Line) -> None:
    command = await line.submit(expiresInMs=1000)
    assert moment(command["expiresAt"]) - moment(command["createdAt"]) == timedelta(seconds=1)
    seen = await ended(line.world, command)
    assert seen["status"] == "expired"
    assert await line.device.claim(limit=10) == []
    assert (await line.device.read(command["id"])).body["command"]["status"] == "expired"


async def test_a_claimed_command_is_not_stopped_by_its_expiry(line: Line) -> None:
    command = await line.submit(expiresInMs=1000)
    (claimed,) = await line.device.claim()
    assert claimed["expiresAt"] == command["expiresAt"]
    await until_past(command["expiresAt"])
    # A sweep of everything that is due has run once this one has expired.
    await ended(line.world, await line.submit(expiresInMs=1000))
    expect(await line.device.extend(claimed), 200)
    answer = expect(await line.device.report(claimed), 200)
    assert (answer["status"], answer["late"]) == ("succeeded", False)


async def test_a_lease_that_runs_out_past_the_expiry_is_not_redelivered(line: Line) -> None:
    command = await line.submit(expiresInMs=1000)
    (claimed,) = await line.device.claim(visibilityTimeout=1100)
    assert await line.device.claim(waitMs=1500) == []
    assert (await ended(line.world, command))["status"] == "expired"
    reply = await line.device.report(claimed)
    assert (reply.status, reply.code) == (409, "COMMAND_ALREADY_COMPLETED")


async def test_a_command_expires_with_its_session_unless_it_says_otherwise(line: Line) -> None:
    session = await line.world.owner.session(line.session_id)
    assert (await line.submit())["expiresAt"] == session["expiresAt"]


async def test_a_command_that_is_not_claimed_expires_with_its_session(start_world: StartWorld) -> None:
    line = await Line.open(await start_world(AIZEN_SESSION_TTL="1"))
    claimed = await line.claimed()
    waiting, unapproved = await line.submit(), await line.submit("restart_dhcp", expiresInMs=600_000)
    assert (await ended(line.world, waiting))["status"] == "expired"
    assert (await ended(line.world, unapproved))["status"] == "expired"
    assert (await line.world.owner.session(line.session_id))["status"] == "expired"
    assert (await line.seen(claimed))["status"] == "claimed"
    assert await line.device.claim(limit=10) == []
    answer = expect(await line.device.report(claimed), 200)
    assert (answer["status"], answer["late"]) == ("succeeded", False)


async def test_an_approved_command_must_be_claimed_within_the_approvals_time(bench: Bench) -> None:
    """Checked at the claim: the sweep has not run."""
    approver = await Bench.open(bench.database_url, bench.redis_url, bench.customer_id, AIZEN_APPROVAL_TTL="1")
    device = await bench.device("router-1")
    command = await bench.submit(await bench.open_session("router-1"), "restart_dhcp")
    try:
        approved = await approver.approve(command)
    finally:
        await approver.close()
    await bench.passes(approved["approval"]["expiresAt"])
    assert await device.claim() == []
    assert (await bench.command(command))["status"] == "queued"
    await bench.parts.sweep.commands()
    assert (await bench.command(command))["status"] == "expired"


async def test_a_command_times_out_its_time_after_the_claim(line: Line) -> None:
    command = await line.submit(timeoutMs=1000)
    (claimed,) = await line.device.claim()
    assert claimed["timeoutMs"] == 1000
    seen = await ended(line.world, command)
    assert (seen["status"], seen["attempt"]) == ("timed_out", 1)
    assert moment(seen["completedAt"]) >= moment(claimed["timestamp"]) + timedelta(seconds=1)
    assert await line.device.claim(limit=10) == []
    for reply in (await line.device.extend(claimed), await line.device.release(claimed)):
        assert (reply.status, reply.code) == (409, "COMMAND_ALREADY_COMPLETED")


async def test_extending_the_lease_does_not_extend_the_execution(line: Line) -> None:
    command = await line.submit(timeoutMs=1500)
    (claimed,) = await line.device.claim(visibilityTimeout=1000)
    expect(await line.device.extend(claimed, extensionMs=300_000), 200)
    assert (await ended(line.world, command))["status"] == "timed_out"


async def test_the_time_for_execution_begins_anew_with_each_claim(line: Line) -> None:
    await line.submit(timeoutMs=1500)
    (first,) = await line.device.claim(visibilityTimeout=1000)
    (second,) = await line.device.claim(waitMs=10_000)
    assert second["id"] == first["id"]
    assert await line.device.claim(waitMs=700) == []
    answer = expect(await line.device.report(second), 200)
    assert (answer["status"], answer["late"]) == ("succeeded", False)


async def test_waiting_in_the_queue_is_not_execution(line: Line, valkey: Redis) -> None:
    await line.submit(timeoutMs=1000)
    await passes(valkey, 1200)
    (claimed,) = await line.device.claim()
    assert expect(await line.device.report(claimed), 200)["late"] is False


async def test_a_result_past_the_time_for_execution_is_late_whether_or_not_anything_has_swept(bench: Bench) -> None:
    device = await bench.device("router-1")
    session = await bench.open_session("router-1")
    for swept in (False, True):
        await bench.submit(session, timeout_ms=1)
        (claimed,) = await device.claim()
        await bench.passes(claimed["timestamp"], 1)
        with pytest.raises(CommandAlreadyCompleted):
            await device.extend(claimed, 1000)
        if swept:
            await bench.parts.sweep.commands()
        answer = await device.report(claimed)
        assert (answer["status"], answer["late"]) == ("succeeded", True)


async def test_a_canceled_command_whose_time_is_over_is_not_handed_out(line: Line) -> None:
    command = await line.submit(timeoutMs=1000)
    (claimed,) = await line.device.claim()
    expect(await line.world.owner.cancel(command), 200)
    seen = await ended(line.world, command)
    assert seen["status"] in ("timed_out", "canceled")
    assert await line.device.claim(limit=10) == []
    assert (await line.device.read(claimed["id"])).status == 200


async def test_what_has_expired_makes_room_in_the_queue(line: Line) -> None:
    for _ in range(99):
        await line.submit(priority=9)
    last = await line.submit(expiresInMs=1000)
    path = f"{API}/customer/sessions/{line.session_id}/commands"
    reply = await line.world.owner.post(path, {"type": "ping"})
    assert (reply.status, reply.code) == (409, "QUEUE_FULL")
    await comes_to(line.world, last, "expired")
    await line.submit()
