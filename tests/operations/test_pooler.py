"""Behind a pooler in transaction mode all is as without one, with AIZEN_DATABASE_STATEMENT_CACHE off (section 7)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from aiohttp import ClientSession

from aizen_gateway.storage.migrate import migrate
from aizen_gateway.storage.postgres import Database, PostgresOptions
from tests.support.clients import API, DeviceClient, World, expect
from tests.support.pgbouncer import Pgbouncer
from tests.support.processes import StartGatewayProcess, StartProcess, finished
from tests.support.programs import WITH_INSTALLATION

pytestmark = pytest.mark.timeout(WITH_INSTALLATION)

_DEVICES = 8
_EACH = 10


@pytest.fixture
def pooled_url(pgbouncer: Pgbouncer, database_url: str) -> str:
    """The test's database, through the pooler."""
    return pgbouncer.at(database_url)


@pytest.fixture
async def pooled_world(
    start_gateway_process: StartGatewayProcess, pooled_url: str, http: ClientSession, database: Database
) -> World:
    """A customer at an instance that reaches its database through the pooler alone."""
    gateway = await start_gateway_process(
        DATABASE_URL=pooled_url, AIZEN_DATABASE_STATEMENT_CACHE="off", AIZEN_RATE_LIMIT_CUSTOMER="0"
    )
    return await World.create(gateway.url, http, database)


async def test_many_jobs_at_once_are_done_as_without_a_pooler(pooled_world: World, database: Database) -> None:
    world = pooled_world
    devices = [await world.device() for _ in range(_DEVICES)]
    sessions = [(await world.owner.open_session(device.device_id))["id"] for device in devices]
    runs: Counter[str] = Counter()

    async def work(device: DeviceClient) -> None:
        while sum(runs.values()) < _DEVICES * _EACH:
            for command in await device.claim(limit=3, waitMs=500):
                runs[command["id"]] += 1
                expect(await device.report(command), 200)

    async def ask(session_id: str) -> None:
        for number in range(_EACH):
            command = await world.owner.submit(session_id, "restart_dhcp" if number % 3 == 0 else "ping")
            if command["status"] == "pending_approval":
                expect(await world.admin.decide(session_id, commandId=command["id"]), 200)
            expect(await world.owner.get(f"{API}/customer/sessions/{session_id}"), 200)

    await asyncio.gather(*map(work, devices), *map(ask, sessions))
    rows = await database.fetch("select id, status from aizen.commands")
    assert {row["status"] for row in rows} == {"succeeded"}
    assert runs == {str(row["id"]): 1 for row in rows}


async def test_one_of_many_calls_with_the_same_key_is_done(pooled_world: World, database: Database) -> None:
    world = pooled_world
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    path, key = f"{API}/customer/sessions/{session['id']}/commands", str(uuid4())
    calls = [world.owner.post(path, {"type": "ping"}, Idempotency_Key=key) for _ in range(20)]
    replies = await asyncio.gather(*calls)
    assert {reply.status for reply in replies} <= {201, 409}
    made = [reply for reply in replies if reply.status == 201]
    assert [reply.headers.get("Idempotent-Replay") for reply in made].count(None) == 1
    assert len(await database.fetch("select from aizen.commands")) == 1
    assert expect(await world.owner.post(path, {"type": "ping"}, Idempotency_Key=key), 201) == made[0].body


async def test_statements_that_share_connections_do_not_get_in_each_other_s_way(pooled_url: str) -> None:
    database = Database(PostgresOptions(pooled_url, pool_size=10, statement_cache=False))

    async def ask(number: int) -> None:
        for _ in range(20):
            # Of different shapes, so that one that met another's preparation would show.
            if number % 2:
                assert (await database.fetchrow("select $1::int as found", number))["found"] == number
            else:
                rows = await database.fetch("select $1::text as a, $2::int as b", str(number), number)
                assert [tuple(row) for row in rows] == [(str(number), number)]

    await asyncio.gather(*map(ask, range(20)))
    await database.close()


async def test_operators_commands_and_the_schema_go_through_it(
    pgbouncer: Pgbouncer, database_url: str, start_process: StartProcess, serving_environment: dict[str, str]
) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("create database unmigrated template template0")
    bare = database_url.rpartition("/")[0] + "/unmigrated"
    try:
        environment = serving_environment | {"DATABASE_URL": pgbouncer.at(bare)}
        applied: Sequence[Any] = (await _command(start_process, environment, "migrate", "--json"))["applied"]
        assert applied
        assert (await _command(start_process, environment, "migrate", "--json"))["applied"] == []
        # Directly it is the same.
        assert await migrate(bare) == []
        made = await _command(start_process, environment, "customer", "create", "--name", "Pooled", "--json")
        listed = await _command(start_process, environment, "customer", "list", "--json")
        assert [customer["id"] for customer in listed["customers"]] == [made["customer"]["id"]]
        looked_at = await _command(start_process, environment, "doctor", "--json")
        verdicts = {finding["check"]: finding["verdict"] for finding in looked_at["findings"]}
        assert (verdicts["database"], verdicts["schema"]) == ("ok", "ok")
    finally:
        await connection.execute("drop database unmigrated with (force)")
        await connection.close()


async def _command(start_process: StartProcess, environment: dict[str, str], *arguments: str) -> Any:
    outcome = await finished(await start_process(*arguments, environment=environment))
    assert outcome.status == 0, outcome.stderr
    return outcome.json
