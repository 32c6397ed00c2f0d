"""`aizen-gateway doctor` says what is well, what is not, and what to do about it (section 7)."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from click.testing import CliRunner
from redis.asyncio import Redis

from aizen_gateway.cli import doctor as doctor_module
from aizen_gateway.cli import main
from aizen_gateway.dev.embedded import EmbeddedPostgres
from aizen_gateway.storage.postgres import Database
from tests.support.cluster import Cluster, client_of
from tests.support.processes import StartProcess, finished
from tests.support.servers import FreshValkey
from tests.support.supabase import SupabaseProject
from tests.support.waiting import eventually

Findings = dict[str, dict[str, Any]]
Examine = Callable[..., Awaitable[tuple[int, Findings]]]
_ALL = {
    *("settings", "database", "schema", "clock of the database"),
    *("redis", "redis eviction", "redis persistence", "clock of redis", "supabase keys", "file limit"),
}


@pytest.fixture
def examine(serving_environment: dict[str, str]) -> Examine:
    """Call it for the exit status and the findings by name; keyword arguments are environment variables."""

    async def run(**variables: str | None) -> tuple[int, Findings]:
        environment = {**serving_environment, **variables}
        outcome = await asyncio.to_thread(CliRunner().invoke, main, ["doctor", "--json"], env=environment)
        assert outcome.stdout.count("\n") == 1
        for secret in ("SUPABASE_JWT_SECRET", "DATABASE_URL", "REDIS_URL"):
            assert (value := environment.get(secret)) is None or value not in outcome.output
        findings = json.loads(outcome.stdout)["findings"]
        # What is not well comes with advice, and nothing else does.
        assert all((finding["verdict"] == "ok") == (finding["advice"] == "") for finding in findings)
        return outcome.exit_code, {finding["check"]: finding for finding in findings}

    return run


@pytest.fixture
def many_files() -> Iterator[Callable[[int], None]]:
    """Call it to set how many files may be open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_sound_system_is_found_sound(
    examine: Examine, supabase: SupabaseProject, fresh_valkey: FreshValkey, many_files: Callable[[int], None]
) -> None:
    many_files(16_384)
    valkey = await fresh_valkey()
    async with Redis.from_url(valkey.url) as client:
        await client.config_set("appendonly", "yes")
        # A server that is writing its first append-only file cannot be stopped.
        written = {"aof_rewrite_in_progress": 0, "aof_rewrite_scheduled": 0}
        await eventually(lambda: client.info("persistence"), lambda info: written.items() <= info.items())
    status, findings = await examine(SUPABASE_URL=supabase.url, REDIS_URL=valkey.url)
    assert findings.keys() == _ALL
    assert {finding["verdict"] for finding in findings.values()} == {"ok"}
    assert status == 0


async def test_a_person_reads_lines_with_advice(
    start_process: StartProcess, serving_environment: dict[str, str]
) -> None:
    outcome = await finished(await start_process("doctor", environment=serving_environment))
    assert outcome.status == 0
    lines = outcome.stdout.splitlines()
    assert any(line.startswith("ok      database: PostgreSQL ") for line in lines)
    place = next(number for number, line in enumerate(lines) if line.startswith("warning redis persistence: "))
    assert lines[place + 1].strip().startswith("-> ")


async def test_wrong_settings_are_all_it_speaks_of(examine: Examine) -> None:
    status, findings = await examine(AIZEN_SESSION_TTL="soon", AIZEN_PORT="no port")
    assert status == 1
    (finding,) = findings.values()
    assert finding["check"] == "settings"
    assert finding["verdict"] == "failed"
    # All of them, though the findings have one name.
    outcome = await asyncio.to_thread(
        CliRunner().invoke, main, ["doctor"], env={"AIZEN_SESSION_TTL": "soon", "AIZEN_PORT": "no port"}
    )
    for variable in ("AIZEN_SESSION_TTL", "AIZEN_PORT", "DATABASE_URL", "REDIS_URL"):
        assert f"{variable}: " in outcome.stdout


async def test_traces_that_cannot_be_had_are_found(examine: Examine) -> None:
    status, findings = await examine(OTEL_EXPORTER_OTLP_ENDPOINT="somewhere")
    assert (status, findings["settings"]["verdict"], findings["database"]["verdict"]) == (1, "failed", "ok")
    assert findings["settings"]["found"].startswith("OTEL_EXPORTER_OTLP_ENDPOINT: ")


async def test_servers_that_are_away_are_found_and_the_rest_is_looked_at(examine: Examine) -> None:
    status, findings = await examine(
        DATABASE_URL="postgresql://nobody:hidden@127.0.0.1:1/x",
        REDIS_URL="redis://:hidden@127.0.0.1:1/0",
        SUPABASE_URL="http://127.0.0.1:1",
    )
    assert status == 1
    failed = {name for name, finding in findings.items() if finding["verdict"] == "failed"}
    assert failed == {"database", "redis", "supabase keys"}
    assert "file limit" in findings
    assert "hidden" not in json.dumps(findings)


async def test_a_server_that_says_nothing_is_not_waited_for(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_WITHIN_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with asyncio.timeout(30):
            status, findings = await examine(DATABASE_URL=f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x")
    assert (status, findings["database"]["verdict"], findings["redis"]["verdict"]) == (1, "failed", "ok")


@asynccontextmanager
async def _pretending(url: str, real: bytes, told: bytes) -> AsyncIterator[str]:
    """The URL of a server that says `told` where that of `url` says `real`."""
    split = urlsplit(url)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data.replace(real, told))
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(split.hostname, split.port)
        with suppress(ConnectionError):
            await asyncio.gather(carry(reader, back), carry(there, writer))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield url.replace(f":{split.port}/", f":{server.sockets[0].getsockname()[1]}/")


async def test_a_postgresql_that_is_too_old_is_found(examine: Examine, database_url: str, database: Database) -> None:
    version = str((await database.fetchrow("show server_version_num"))["server_version_num"])
    async with _pretending(database_url, version.encode(), b"130022") as old:
        status, findings = await examine(DATABASE_URL=old)
    assert (status, findings["database"]["verdict"]) == (1, "failed")
    assert "PostgreSQL 14" in findings["database"]["advice"]


async def test_a_redis_that_is_too_old_is_found(examine: Examine, redis_url: str) -> None:
    async with _pretending(redis_url, b"\nvalkey_version:", b"\nother__version:") as redis:
        status, findings = await examine(REDIS_URL=redis)
        # Valkey says which Redis it is like.
        assert (status, findings["redis"]["verdict"]) == (0, "ok")
        assert findings["redis"]["found"].startswith("Redis 7.2")
    async with _pretending(redis_url, b"\nredis_version:7.", b"\nredis_version:5.") as unlike:
        status, findings = await examine(REDIS_URL=unlike)
        assert (status, findings["redis"]["verdict"]) == (0, "ok")
    async with (
        _pretending(redis_url, b"\nvalkey_version:", b"\nother__version:") as redis,
        _pretending(redis, b"\nredis_version:7.", b"\nredis_version:5.") as old,
    ):
        status, findings = await examine(REDIS_URL=old)
    assert (status, findings["redis"]["verdict"]) == (1, "failed")
    assert findings["redis"]["found"].startswith("Redis 5.")
    assert "Redis 6.2" in findings["redis"]["advice"]


async def test_a_wrong_password_is_found(examine: Examine, database_url: str) -> None:
    status, findings = await examine(DATABASE_URL=database_url.replace("postgres:", "postgres:not-", 1))
    assert (status, findings["database"]["found"]) == (1, "InvalidPasswordError")


async def test_a_schema_that_is_not_the_code_s_is_found(examine: Examine, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "insert into public._pogo_migration (migration_hash, migration_id, applied, schema_name)"
        " values ('x', '29990101_01_of_tomorrow', now(), 'aizen')"
    )
    status, findings = await examine()
    assert (status, findings["schema"]["verdict"]) == (0, "warning")
    assert "29990101_01_of_tomorrow" in findings["schema"]["found"]
    await connection.execute("delete from public._pogo_migration")
    status, findings = await examine()
    assert (status, findings["schema"]["verdict"]) == (1, "failed")
    assert "aizen-gateway migrate" in findings["schema"]["advice"]
    await connection.close()


async def test_a_database_without_the_schema_is_found(examine: Examine, postgres_server: EmbeddedPostgres) -> None:
    status, findings = await examine(DATABASE_URL=postgres_server.url)
    assert (status, findings["database"]["verdict"], findings["schema"]["verdict"]) == (1, "ok", "failed")


async def test_a_redis_that_may_forget_what_it_likes_is_found(examine: Examine, fresh_valkey: FreshValkey) -> None:
    valkey = await fresh_valkey()
    async with Redis.from_url(valkey.url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
    status, findings = await examine(REDIS_URL=valkey.url)
    assert status == 1
    assert (findings["redis eviction"]["verdict"], findings["redis eviction"]["found"]) == ("failed", "allkeys-lru")
    assert "noeviction" in findings["redis eviction"]["advice"]
    assert findings["redis persistence"]["verdict"] == "warning"


async def test_every_node_of_a_cluster_is_looked_at(examine: Examine, cluster: Cluster) -> None:
    status, findings = await examine(REDIS_URL=cluster.url)
    assert (status, findings["redis eviction"]["verdict"]) == (0, "ok")
    async with client_of(cluster.nodes[-1]) as client:
        await client.config_set("maxmemory-policy", "volatile-ttl")
        status, findings = await examine(REDIS_URL=cluster.url)
        await client.config_set("maxmemory-policy", "noeviction")
    assert (status, findings["redis eviction"]["verdict"]) == (1, "failed")
    assert findings["redis eviction"]["found"] == f"volatile-ttl at {cluster.nodes[-1].address}"


async def test_keys_that_cannot_be_had_are_found(examine: Examine, supabase: SupabaseProject) -> None:
    supabase.status = 500
    status, findings = await examine(SUPABASE_URL=supabase.url)
    assert (status, findings["supabase keys"]["verdict"]) == (1, "failed")
    supabase.status, supabase.keys = 200, []
    # The secret is left to check tokens with.
    status, findings = await examine(SUPABASE_URL=supabase.url)
    assert (status, findings["supabase keys"]["found"]) == (0, "0 published")
    status, findings = await examine(SUPABASE_URL=supabase.url, SUPABASE_JWT_SECRET=None)
    assert (status, findings["supabase keys"]["verdict"]) == (1, "failed")


async def test_clocks_that_disagree_are_found(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "time", SimpleNamespace(time=lambda: time.time() + 3600))
    status, findings = await examine()
    assert status == 0
    for name in ("clock of the database", "clock of redis"):
        assert findings[name]["verdict"] == "warning"
        assert findings[name]["found"].startswith(("3600.", "3599."))


async def test_few_open_files_are_found(examine: Examine, many_files: Callable[[int], None]) -> None:
    many_files(1024)
    status, findings = await examine()
    assert status == 0
    assert (findings["file limit"]["verdict"], findings["file limit"]["found"]) == ("warning", "1024")
