"""What is old goes as the settings say, a little at a time, and nothing that is still open goes (section 7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.clock import from_ms
from aizen_gateway.services.retention import Retention
from aizen_gateway.storage import keys
from aizen_gateway.storage.postgres import Database
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from tests.support.clients import API, World, expect
from tests.support.gateway import StartGateway
from tests.support.inside import redis_ms
from tests.support.line import Line
from tests.support.waiting import eventually

_DAY_S = 86_400


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    opened = RedisStore.connect(RedisOptions(redis_url))
    yield opened
    await opened.close()


@pytest.fixture
def retention(database: Database, store: RedisStore) -> Retention:
    """Keeps sessions for 30 days and audit records for 60."""
    return Retention(database, store, sessions_s=30 * _DAY_S, audit_s=60 * _DAY_S)


@pytest.fixture
async def now(valkey: Redis) -> datetime:
    return from_ms(await redis_ms(valkey))


async def _age(database: Database, days: int) -> None:
    """Let all there is have happened so many days earlier than it did."""
    for table, column in (("sessions", "closed_at"), ("audit", "at")):
        statement = f"update aizen.{table} set {column} = {column} - $1::int * interval '1 day'"  # noqa: S608
        await database.execute(statement, days)


async def _count(database: Database, table: str) -> int:
    return int((await database.fetchrow(f"select count(*) from aizen.{table}"))["count"])  # noqa: S608


async def _close(line: Line) -> Any:
    return expect(await line.world.owner.post(f"{API}/customer/sessions/{line.session_id}/close"), 200)


async def test_a_gateway_forgets_by_its_settings(line: Line, start_gateway: StartGateway, database: Database) -> None:
    owner = line.world.owner
    await line.device.report(await line.claimed())
    await _close(line)
    await _age(database, 10)
    reads = f"{API}/customer/sessions/{line.session_id}"
    # The running gateway keeps sessions for 90 days and records for 400.
    expect(await owner.get(reads), 200)
    await start_gateway(AIZEN_COMMAND_RETENTION=str(9 * _DAY_S), AIZEN_AUDIT_RETENTION=str(20 * _DAY_S))
    await eventually(lambda: owner.get(reads), lambda reply: reply.status == 404)
    assert await _count(database, "commands") == 0
    # What happened is still told.
    records = expect(await owner.get(f"{API}/customer/audit?limit=200"), 200)["records"]
    assert {"session.opened", "command.succeeded", "session.completed"} <= {record["action"] for record in records}
    await start_gateway(AIZEN_AUDIT_RETENTION=str(9 * _DAY_S))
    audit = f"{API}/customer/audit"
    await eventually(lambda: owner.get(audit), lambda reply: reply.body["records"] == [])
    # The device is none the worse.
    again = await owner.open_session(line.device.device_id)
    command = await owner.submit(again["id"])
    (claimed,) = await line.device.claim()
    assert claimed["id"] == command["id"]


async def test_what_has_not_ended_is_kept_whatever_its_age(
    line: Line, retention: Retention, database: Database
) -> None:
    claimed = await line.claimed()
    await line.submit()
    await _age(database, 1_000)
    await retention.once()
    # The session is open.
    assert await _count(database, "commands") == 2
    await _close(line)
    await _age(database, 31)
    await retention.once()
    # A device is still at work on a command of it.
    assert (await line.seen(claimed))["status"] == "cancel_requested"
    expect(await line.device.report(claimed), 200)
    await retention.once()
    assert (await _count(database, "sessions"), await _count(database, "commands")) == (0, 0)


async def test_what_is_younger_than_its_time_is_kept(line: Line, retention: Retention, database: Database) -> None:
    await line.device.report(await line.claimed())
    await _close(line)
    audit = await _count(database, "audit")
    await _age(database, 29)
    await retention.once()
    assert (await _count(database, "sessions"), await _count(database, "commands")) == (1, 1)
    await _age(database, 2)
    await retention.once()
    assert (await _count(database, "sessions"), await _count(database, "commands")) == (0, 0)
    # Records have a time of their own.
    assert await _count(database, "audit") == audit
    await _age(database, 30)
    await retention.once()
    assert await _count(database, "audit") == 0


async def test_little_is_deleted_at_a_time(line: Line, retention: Retention, database: Database, now: datetime) -> None:
    await _close(line)
    await database.execute("delete from aizen.audit")
    await database.execute(
        "insert into aizen.sessions select (jsonb_populate_record(s, jsonb_build_object('id', gen_random_uuid()))).*"
        " from aizen.sessions s, generate_series(1, 49)"
    )
    await database.execute(
        "insert into aizen.audit (at, customer_id, action, resource, resource_id, actor, actor_type)"
        " select $1::timestamptz, $2::text::uuid, 'x.y', 'x', number::text, 'test', 'operator'"
        " from generate_series(1, 250) number",
        now,
        str(uuid4()),
    )
    await _age(database, 100)
    sessions: list[int] = []
    records: list[int] = []
    for found, step, table in ((sessions, retention.sessions, "sessions"), (records, retention.audit, "audit")):
        more = True
        while more:
            before = await _count(database, table)
            more = await step(now)
            found.append(before - await _count(database, table))
    assert sessions == [20, 20, 10]
    assert records == [100, 100, 50]


async def test_keys_of_calls_are_forgotten_after_a_day(
    line: Line, retention: Retention, database: Database, now: datetime
) -> None:
    path = f"{API}/customer/sessions/{line.session_id}/commands"
    first = expect(await line.world.owner.post(path, {"type": "ping"}, Idempotency_Key="key"), 201)
    await database.execute("update aizen.idempotency set created_at = created_at - interval '23 hours'")
    await retention.once()
    assert expect(await line.world.owner.post(path, {"type": "ping"}, Idempotency_Key="key"), 201) == first
    await database.execute("update aizen.idempotency set created_at = created_at - interval '2 hours'")
    await retention.once()
    assert await _count(database, "idempotency") == 0


async def test_events_are_kept_for_as_long_as_the_setting_says(
    world: World, start_gateway: StartGateway, valkey: Redis
) -> None:
    device = await world.device()
    stream = keys.customer_stream(UUID(world.customer_id))
    twenty_minutes_ago = await redis_ms(valkey) - 1_200_000
    for retention, gone in (("1800", False), ("600", True)):
        await valkey.delete(stream)
        async with valkey.pipeline() as pipeline:
            for number in range(1_500):
                pipeline.xadd(stream, {"p": "0-0", "r": "", "e": "{}"}, f"{twenty_minutes_ago}-{number + 1}")
            await pipeline.execute()
        world.owner.url = (await start_gateway(AIZEN_EVENT_RETENTION=retention)).url
        session = await world.owner.open_session(device.device_id)
        expect(await world.owner.post(f"{API}/customer/sessions/{session['id']}/close"), 200)
        assert (await valkey.xlen(stream) < 1_500) is gone
        assert await valkey.xlen(stream) > 1_000
        assert await valkey.pttl(stream) > int(retention) * 1000


async def test_other_customers_lose_nothing(world: World, retention: Retention, database: Database) -> None:
    old = await Line.open(world)
    await _close(old)
    await _age(database, 31)
    fresh = await Line.open(await world.another())
    await _close(fresh)
    await retention.once()
    expect(await fresh.world.owner.get(f"{API}/customer/sessions/{fresh.session_id}"), 200)
    assert await _count(database, "sessions") == 1
