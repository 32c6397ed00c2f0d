"""The schema: applied once, by whoever comes first, closed to everybody but its owner (section 7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from aiohttp import ClientSession

from aizen_gateway.storage import migrate as migrate_module
from aizen_gateway.storage.migrate import MIGRATIONS, MigrationFailed, migrate
from aizen_gateway.storage.postgres import Database, PostgresOptions
from tests.support.clients import World, expect
from tests.support.processes import Process, StartGatewayProcess, StartProcess, finished
from tests.support.servers import FreshPostgres

_TABLES = """
    select n.nspname as schema, c.relname as name, c.relrowsecurity as locked
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f')
      and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
    order by 1, 2
"""
_BOOKKEEPING = {"_pogo_migration", "_pogo_version"}


@pytest.fixture
async def bare_url(fresh_postgres: FreshPostgres) -> str:
    """A database without the schema, on a server of its own, whose owner is no superuser."""
    server = await fresh_postgres()
    connection = await asyncpg.connect(server.url)
    await connection.execute("create role gateway login password 'gateway' nosuperuser nocreatedb nocreaterole")
    await connection.execute("create role stranger login password 'stranger'")
    await connection.execute("create database bare owner gateway")
    await connection.close()
    return f"postgresql://gateway:gateway@127.0.0.1:{server.port}/bare"


@pytest.fixture
async def connection(bare_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(bare_url)
    yield opened
    await opened.close()


def ids() -> list[str]:
    """The migrations there are."""
    return sorted(path.stem for path in MIGRATIONS.glob("*.sql"))


async def test_an_owner_who_is_no_superuser_migrates_and_serves(
    bare_url: str, start_process: StartProcess, start_gateway_process: StartGatewayProcess, http: ClientSession
) -> None:
    environment = {"DATABASE_URL": bare_url}
    first = await finished(await start_process("migrate", "--json", environment=environment))
    assert (first.status, first.json) == (0, {"applied": ids()})
    again = await finished(await start_process("migrate", environment=environment))
    assert again.status == 0
    assert "up to date" in again.stdout
    gateway = await start_gateway_process(DATABASE_URL=bare_url)
    database = Database(PostgresOptions(bare_url, pool_size=1))
    world = await World.create(gateway.url, http, database)
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    await world.owner.submit(session["id"])
    (claimed,) = await device.claim()
    expect(await device.report(claimed), 200)
    await database.close()


async def test_migrating_twice_changes_nothing(bare_url: str, connection: asyncpg.Connection) -> None:
    assert await migrate(bare_url) == ids()
    await connection.execute("insert into aizen.customers (id, name) values (gen_random_uuid(), 'kept')")
    before = await connection.fetch(_TABLES)
    assert await migrate(bare_url) == []
    assert await connection.fetch(_TABLES) == before
    assert await connection.fetchval("select name from aizen.customers") == "kept"


async def test_of_many_that_migrate_at_once_one_does_it_and_the_others_wait(
    bare_url: str, start_process: StartProcess
) -> None:
    processes = [await start_process("migrate", "--json", environment={"DATABASE_URL": bare_url}) for _ in range(2)]

    async def by_process(process: Process) -> list[str]:
        return list((await finished(process)).json["applied"])

    applied = await asyncio.gather(*map(by_process, processes), *(migrate(bare_url) for _ in range(3)))
    assert sorted(applied) == [[], [], [], [], ids()]


async def test_a_gateway_starts_before_its_schema_and_serves_when_it_is_there(
    bare_url: str, start_gateway_process: StartGatewayProcess, http: ClientSession
) -> None:
    gateway = await start_gateway_process(DATABASE_URL=bare_url)

    async def ready() -> bool:
        async with http.get(f"{gateway.url}/readyz") as response:
            return response.status == 200

    assert not await ready()
    await migrate(bare_url)
    assert await ready()


async def test_row_level_security_is_on_for_every_table_and_nothing_is_elsewhere(
    bare_url: str, connection: asyncpg.Connection
) -> None:
    await migrate(bare_url)
    tables = await connection.fetch(_TABLES)
    ours = {row["name"] for row in tables if row["schema"] == "aizen"}
    assert ours >= {"customers", "members", "devices", "sessions", "commands", "audit", "outbox", "idempotency"}
    assert {row["name"] for row in tables if row["schema"] != "aizen"} == _BOOKKEEPING
    assert [row["name"] for row in tables if not row["locked"]] == []
    functions = """
        select proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname not in ('pg_catalog', 'information_schema', 'aizen')
    """
    assert await connection.fetch(functions) == []
    assert await connection.fetch("select extname from pg_extension where extname <> 'plpgsql'") == []


async def test_another_role_reads_nothing_even_when_it_is_granted_all(
    bare_url: str, connection: asyncpg.Connection
) -> None:
    await migrate(bare_url)
    await connection.execute("insert into aizen.customers (id, name) values (gen_random_uuid(), 'secret')")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await _as_stranger(bare_url, "select * from aizen.customers")
    # Someone exposes the schema by mistake: the second lock holds.
    for schema in ("aizen", "public"):
        await connection.execute(f"grant usage on schema {schema} to public")
        await connection.execute(f"grant all on all tables in schema {schema} to public")
    for row in await connection.fetch(_TABLES):
        assert await _as_stranger(bare_url, f'select * from "{row["schema"]}"."{row["name"]}"') == []  # noqa: S608
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await _as_stranger(bare_url, "insert into aizen.customers (id, name) values (gen_random_uuid(), 'x')")


async def _as_stranger(owner_url: str, sql: str) -> list[asyncpg.Record]:
    """Run a statement as a role that owns nothing."""
    connection = await asyncpg.connect(owner_url.replace("gateway:gateway@", "stranger:stranger@"))
    try:
        return list(await connection.fetch(sql))
    finally:
        await connection.close()


async def test_a_migration_that_fails_changes_nothing(
    bare_url: str, connection: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (MIGRATIONS / f"{ids()[0]}.sql").read_text()
    (tmp_path / f"{ids()[0]}.sql").write_text(good)
    (tmp_path / "29990101_01_broken.sql").write_text(
        f"-- breaks\n-- depends: {ids()[0]}\n\n-- migrate: apply\n\nselect no_such_function();\n\n"
        "-- migrate: rollback\n\nselect 1;\n"
    )
    monkeypatch.setattr(migrate_module, "MIGRATIONS", tmp_path)
    with pytest.raises(MigrationFailed, match="29990101_01_broken"):
        await migrate(bare_url)
    assert await connection.fetch(_TABLES) == []
