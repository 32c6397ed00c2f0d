"""Callers of the same moment share a transaction: none is answered for another, none fails for another's sake."""

from __future__ import annotations

import asyncio
from uuid import UUID

from aizen_gateway.domain.errors import CommandNotFound, InvalidClaimToken
from aizen_gateway.storage import queries
from aizen_gateway.storage.postgres import Connection, Database
from aizen_gateway.storage.rows import command_of
from tests.support.bench import Bench
from tests.support.waiting import eventually

_READ = queries.load("commands")["read_command"]


async def _hold(connection: Connection, *commands: object) -> None:
    ids = [UUID(command["id"]) for command in commands]  # type: ignore[index]
    await connection.execute("select 1 from aizen.commands where id = any($1::uuid[]) for update", ids)


async def _waiting(database: Database) -> int:
    """The backend that waits for a lock, once there is one."""
    sql = """select pid from pg_stat_activity
             where datname = current_database() and wait_event_type = 'Lock' and query like '%lease_end%'"""
    row = await eventually(lambda: database.fetchrow(sql), lambda found: found is not None)
    return int(row["pid"])


async def test_a_device_that_reports_the_command_of_another_is_told_of_none_whoever_reports_with_it(
    bench: Bench, database_url: str, redis_url: str
) -> None:
    owner = await bench.device("groups-owner")
    await bench.submit(await bench.open_session(owner.device_id))
    (claimed,) = await owner.claim()
    elsewhere = await Bench.open(database_url, redis_url)
    stranger = await elsewhere.device("groups-stranger")
    stranger.bench = bench
    outcomes = await asyncio.gather(
        stranger.report(claimed), stranger.report(claimed | {"claimToken": "x"}), owner.report(claimed),
        return_exceptions=True,
    )  # fmt: skip
    assert [type(outcome) for outcome in outcomes[:2]] == [CommandNotFound] * 2
    assert outcomes[2] == {"success": True, "status": "succeeded", "duplicate": False, "late": False}
    await elsewhere.close()


async def test_of_results_at_once_with_an_old_and_the_latest_token_the_latest_counts(bench: Bench) -> None:
    device = await bench.device("groups-tokens")
    await bench.submit(await bench.open_session(device.device_id))
    (claimed,) = await device.claim()
    outcomes = await asyncio.gather(
        device.report(claimed | {"claimToken": "old"}), device.report(claimed), device.report(claimed),
        return_exceptions=True,
    )  # fmt: skip
    assert isinstance(outcomes[0], InvalidClaimToken)
    assert sorted(outcome["duplicate"] for outcome in outcomes[1:]) == [False, True]  # type: ignore[index]


async def test_a_command_that_cannot_be_written_fails_alone(bench: Bench) -> None:
    sessions = [await bench.open_session((await bench.device(f"groups-{name}")).device_id) for name in "abc"]
    reasons = [None, "\0", None]
    submissions = [bench.submit(session, reason=reason) for session, reason in zip(sessions, reasons, strict=True)]
    outcomes = await asyncio.gather(*submissions, return_exceptions=True)
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False, True, False]


async def test_commands_of_several_devices_given_at_once_keep_their_order(bench: Bench) -> None:
    devices = [await bench.device(f"groups-fifo-{number}") for number in range(3)]
    sessions = [await bench.open_session(device.device_id) for device in devices]
    given = await asyncio.gather(*(bench.submit(sessions[number % 3], reason=str(number)) for number in range(60)))
    for number, device in enumerate(devices):
        claimed = await device.claim(limit=20)
        assert [command["id"] for command in claimed] == [command["id"] for command in given[number::3]]


async def test_a_queue_is_filled_to_its_limit_and_not_beyond_by_many_at_once(bench: Bench) -> None:
    full, other = [await bench.device(f"groups-full-{number}") for number in range(2)]
    session, elsewhere = await bench.open_session(full.device_id), await bench.open_session(other.device_id)
    outcomes = await asyncio.gather(
        *(bench.submit(elsewhere if number % 4 == 3 else session) for number in range(160)), return_exceptions=True
    )
    assert sum(isinstance(outcome, dict) and outcome["deviceId"] == full.device_id for outcome in outcomes) == 100
    assert sum(isinstance(outcome, dict) for outcome in outcomes) == 140


async def test_a_claim_comes_in_the_queues_order_though_somebody_held_its_first_command(
    bench: Bench, database: Database
) -> None:
    device = await bench.device("groups-order")
    session = await bench.open_session(device.device_id)
    commands = [await bench.submit(session) for _ in range(3)]
    async with database.unit() as connection:
        await _hold(connection, commands[0])
        claim = asyncio.create_task(device.claim(limit=3))
        await _waiting(database)
    assert [claimed["id"] for claimed in await claim] == [command["id"] for command in commands]


async def test_what_a_claim_has_got_is_handed_out_when_the_rest_cannot_be_and_the_rest_waits_on(
    bench: Bench, database: Database
) -> None:
    device = await bench.device("groups-part")
    session = await bench.open_session(device.device_id)
    commands = [await bench.submit(session) for _ in range(3)]
    async with database.unit() as connection:
        await _hold(connection, commands[0])
        claim = asyncio.create_task(device.claim(limit=3))
        pid = await _waiting(database)
        await database.execute("select pg_terminate_backend($1)", pid)
        claimed = await claim
    assert [command["id"] for command in claimed] == [command["id"] for command in commands[1:]]
    (last,) = await eventually(lambda: device.claim(limit=3), bool)
    assert last["id"] == commands[0]["id"]


async def test_what_the_index_offers_in_vain_is_made_up_for_in_the_same_claim(bench: Bench) -> None:
    device = await bench.device("groups-stale")
    session = await bench.open_session(device.device_id)
    rows = []
    for _ in range(2):
        ended = await bench.submit(session)
        rows.append(await bench.parts.database.fetchrow(_READ, UUID(ended["id"])))
        (claimed,) = await device.claim()
        await device.report(claimed)
    for row in rows:
        # As somebody does who read it before it ended.
        await bench.index.enqueue(command_of(row))
    waiting = [(await bench.submit(session))["id"] for _ in range(3)]
    assert [claimed["id"] for claimed in await device.claim(limit=3)] == waiting
    assert await device.claim() == []
