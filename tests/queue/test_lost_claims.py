"""A claim that was confirmed for nobody is handed back at once, and its command waits on (contract section 3)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import asyncpg
import pytest

from aizen_gateway.domain.errors import InvalidClaimToken, Unavailable
from aizen_gateway.domain.records import Command
from aizen_gateway.domain.values import NOWHERE
from aizen_gateway.services import returns
from aizen_gateway.services.claiming import Claim
from tests.support.bench import Bench, BenchDevice
from tests.support.gate import commits, commits_wait
from tests.support.proxy import Wire
from tests.support.waiting import eventually

_HELD_UP = """select count(*) from pg_stat_activity
              where datname = current_database() and wait_event_type = 'Lock' and query like '%lease_end%'"""


async def _claimed(bench: Bench, device: BenchDevice, *, pushed: bool = False) -> tuple[Claim, Command]:
    """A command is submitted and claimed, which nobody has told the device."""
    await bench.submit(await bench.open_session(device.device_id))
    claim = bench.parts.claiming.begin(device.token, 1, 300_000, NOWHERE, pushed=pushed)
    (command,) = await claim.attempt(counted=False)
    return claim, command


async def _give_up(bench: Bench, claim: Claim, command: Command) -> None:
    """Whatever can be handed back has been when this returns."""
    bench.parts.claiming.give_up(claim.caller, [command], NOWHERE)
    await bench.parts.returns.close()


async def _waits_again(connection: asyncpg.Connection, device: BenchDevice) -> None:
    """The command has been handed back, no delivery is counted, and the device gets it."""
    last = "select action || ' by ' || actor_type from aizen.audit order by id desc limit 2"
    told = await eventually(
        lambda: connection.fetch(last), lambda rows: rows[0]["?column?"] == "command.released by gateway"
    )
    assert told[1]["?column?"] == "command.claimed by device"
    (claimed,) = await eventually(device.claim, lambda commands: len(commands) == 1)
    assert claimed["attempt"] == 1
    assert (await device.report(claimed))["status"] == "succeeded"


async def test_a_claim_that_is_broken_off_while_it_commits_is_handed_back(bench: Bench) -> None:
    device = await bench.device("lost-broken-off")
    await bench.submit(await bench.open_session(device.device_id), reason="gate")
    async with commits_wait(bench.database_url) as connection:
        claim = asyncio.create_task(device.claim())
        await commits(connection)
        claim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claim
        await connection.execute("select pg_advisory_unlock_all()")
        await _waits_again(connection, device)


async def test_a_claim_whose_commit_is_not_answered_is_handed_back(bench: Bench, redis_url: str) -> None:
    device = await bench.device("lost-answer")
    await bench.submit(await bench.open_session(device.device_id), reason="gate")
    async with Wire.to_server(bench.database_url) as wire, commits_wait(bench.database_url) as connection:
        elsewhere = await Bench.open(wire.through(bench.database_url), redis_url, bench.customer_id)
        device.bench = elsewhere
        claim = asyncio.create_task(device.claim())
        await commits(connection)
        wire.reset()
        with pytest.raises(Unavailable):
            await claim
        await connection.execute("select pg_advisory_unlock_all()")
        await _waits_again(connection, device)
        await elsewhere.close()


async def test_the_part_of_a_claim_whose_commit_is_not_answered_is_handed_back(bench: Bench, redis_url: str) -> None:
    device = await bench.device("lost-part")
    session = await bench.open_session(device.device_id)
    first, second = await bench.submit(session), await bench.submit(session, reason="gate")
    async with Wire.to_server(bench.database_url) as wire, commits_wait(bench.database_url) as connection:
        elsewhere = await Bench.open(wire.through(bench.database_url), redis_url, bench.customer_id)
        device.bench = elsewhere
        holder = await asyncpg.connect(bench.database_url)
        async with holder.transaction():
            # Left out where several are confirmed together, and confirmed after it, alone.
            await holder.execute("select 1 from aizen.commands where id = $1 for update", UUID(second["id"]))
            claim = asyncio.create_task(device.claim(limit=2))
            await eventually(lambda: connection.fetchval(_HELD_UP), lambda count: count == 1)
        await holder.close()
        await commits(connection)
        wire.reset()
        assert [claimed["id"] for claimed in await claim] == [first["id"]]
        await connection.execute("select pg_advisory_unlock_all()")
        (claimed,) = await eventually(device.claim, lambda commands: len(commands) == 1)
        assert (claimed["id"], claimed["attempt"]) == (second["id"], 1)
        await elsewhere.close()


async def test_what_a_claim_has_found_does_not_wait_for_a_database_that_goes_silent_meanwhile(bench: Bench) -> None:
    device = await bench.device("lost-meanwhile")
    session = await bench.open_session(device.device_id)
    there, gone = await bench.submit(session), await bench.submit(session)
    # The index still offers it.
    await bench.parts.database.execute(
        "update aizen.commands set status = 'canceled', completed_at = now(), due_at = null where id = $1",
        UUID(gone["id"]),
    )
    async with Wire.to_server(bench.database_url) as sql, Wire.to_server(bench.redis_url) as redis:
        elsewhere = await Bench.open(sql.through(bench.database_url), redis.through(bench.redis_url), bench.customer_id)
        device.bench = elsewhere
        assert await elsewhere.parts.database.fetch("select 1")
        sql.block()
        claim = asyncio.create_task(device.claim(limit=3))
        # It has leased both, and is about to confirm them.
        await sql.held_up()
        redis.block()
        sql.unblock()
        # It has confirmed one of them, and is about to tell of it.
        await redis.held_up()
        sql.block()
        statement = asyncio.create_task(elsewhere.parts.database.fetch("select 1"))
        await sql.held_up()
        redis.unblock()
        first, _ = await asyncio.wait({claim, statement}, return_when=asyncio.FIRST_COMPLETED)
        assert first == {claim}
        assert [claimed["id"] for claimed in await claim] == [there["id"]]
        with pytest.raises(Unavailable):
            await statement
        sql.unblock(forgotten=True)
        await elsewhere.close()


async def test_a_claim_that_its_device_has_extended_is_not_handed_back(bench: Bench) -> None:
    device = await bench.device("lost-not")
    claim, command = await _claimed(bench, device, pushed=True)
    claimed = {"id": str(command.id), "claimToken": command.claim_token}
    await device.extend(claimed, 200_000)
    await _give_up(bench, claim, command)
    assert await device.claim() == []
    assert (await device.report(claimed))["status"] == "succeeded"


async def test_a_claim_whose_turn_comes_too_late_is_not_handed_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind others that could not be handed back, say: by then its device may be at work."""
    monkeypatch.setattr(returns, "_TRY_FOR", 0.0)
    device = await bench.device("lost-late-turn")
    claim, command = await _claimed(bench, device)
    await _give_up(bench, claim, command)
    assert await device.claim() == []
    assert (await device.report({"id": str(command.id), "claimToken": command.claim_token}))["status"] == "succeeded"


async def test_a_claim_that_commits_while_the_gateway_ends_is_handed_back(bench: Bench) -> None:
    device = await bench.device("lost-at-the-end")
    await bench.submit(await bench.open_session(device.device_id), reason="gate")
    elsewhere = await Bench.open(bench.database_url, bench.redis_url, bench.customer_id)
    async with commits_wait(bench.database_url) as connection:
        claim = asyncio.create_task(replace(device, bench=elsewhere).claim())
        await commits(connection)
        await elsewhere.parts.claiming.close()
        with pytest.raises(Unavailable):
            await claim
        await connection.execute("select pg_advisory_unlock_all()")
        await _waits_again(connection, device)
    await elsewhere.close()


async def test_a_claim_that_is_broken_off_before_it_has_anything_says_so(bench: Bench) -> None:
    device = await bench.device("lost-nothing")
    claim = bench.parts.claiming.begin(device.token, 1, 300_000, NOWHERE)
    attempt = asyncio.create_task(claim.attempt(counted=False))
    await asyncio.sleep(0)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt


async def test_what_is_handed_back_while_another_claim_mends_the_index_is_offered_again(
    bench: Bench, redis_url: str
) -> None:
    device = await bench.device("lost-mended")
    submitted = await bench.submit(await bench.open_session(device.device_id))
    claim = bench.parts.claiming.begin(device.token, 1, 300_000, NOWHERE)
    (command,) = await claim.attempt(counted=False)
    connection = await asyncpg.connect(bench.database_url)
    async with Wire.to_server(redis_url) as wire:
        elsewhere = await Bench.open(bench.database_url, wire.through(redis_url), bench.customer_id)
        device.bench = elsewhere
        # As the index is when a lease there was a short one.
        await bench.index.give_back(device.device_id, [command.id])
        async with connection.transaction():
            await connection.execute("select 1 from aizen.commands for update")
            other = asyncio.create_task(device.claim())
            watcher = bench.parts.database
            await eventually(lambda: watcher.fetchrow(_HELD_UP), lambda row: row["count"] == 1)
            # What it tells the index comes late: after the hand-back.
            wire.block()
        await eventually(lambda: watcher.fetchrow(_HELD_UP), lambda row: row["count"] == 0)
        await _give_up(bench, claim, command)
        wire.unblock()
        found = await other or await eventually(device.claim, lambda commands: len(commands) == 1)
        assert [(one["id"], one["attempt"]) for one in found] == [(submitted["id"], 1)]
        await elsewhere.close()
    await connection.close()


async def test_a_device_that_comes_late_with_a_claim_that_was_handed_back_is_told(bench: Bench) -> None:
    device = await bench.device("lost-late")
    claim, command = await _claimed(bench, device)
    await _give_up(bench, claim, command)
    with pytest.raises(InvalidClaimToken):
        await device.extend({"id": str(command.id), "claimToken": command.claim_token}, 1_000)
