"""`aizen-gateway doctor`: looks at everything a gateway needs, and says for each what to do about it."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import asyncpg
import click
import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout

from ..services.supabase import issuer_of
from ..settings import Settings, SettingsError
from ..storage.cluster import ClusterClient
from ..storage.migrate import applied
from ..storage.redis_store import RedisOptions, RedisStore
from ..tracing import TracingError, asked_for
from .output import as_json

# Seconds for each check; milliseconds that clocks may be apart; descriptors that a busy instance wants.
_WITHIN_S = 5.0
_CLOCKS_MS = 1_000
_FILES = 16_384
_OLDEST_POSTGRES, _OLDEST_REDIS = 140_000, (6, 2)


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


_SEVERITY = tuple(Verdict)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it, '' when nothing."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Verdict.WARNING, found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Verdict.FAILED, found, advice)


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Check settings, database, Redis, keys, clocks and limits; exit status 1 when something must be mended."""
    findings = asyncio.run(examine())
    if as_json:
        click.echo(orjson.dumps({"findings": findings}).decode())
    else:
        for finding in findings:
            click.echo(f"{finding.verdict.value:8}{finding.check}: {finding.found}")
            if finding.advice:
                click.echo(f"{'':8}-> {finding.advice}")
    sys.exit(1 if any(finding.verdict is Verdict.FAILED for finding in findings) else 0)


async def examine() -> list[Finding]:
    """Make every check; without good settings there is nothing further to check."""
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        return [
            failed("settings", f"{variable}: {problem}", "Set it in the environment; README.md lists the settings.")
            for variable, problem in error.problems.items()
        ]
    findings = [_traces()]
    for check in (_database, _redis, _keys):
        findings += await _bounded(check, settings)
    return [*findings, _files()]


def _traces() -> Finding:
    """What is read from elsewhere than the settings has its place with them."""
    try:
        asked_for(os.environ)
    except TracingError as error:
        return failed("settings", str(error), "See the chapter on traces in docs/operations.md.")
    return ok("settings", "all are valid")


async def _bounded(check: Callable[[Settings], Awaitable[list[Finding]]], settings: Settings) -> list[Finding]:
    name = check.__name__.removeprefix("_")
    try:
        return await asyncio.wait_for(check(settings), _WITHIN_S)
    except TimeoutError:
        return [failed(name, "no answer in time", f"Is it reachable from here? It had {_WITHIN_S:.0f} s.")]
    except Exception as error:  # a check that cannot be made is a finding, whatever stopped it
        return [failed(name, type(error).__name__, "Check the address, the credentials and the network between.")]


async def _database(settings: Settings) -> list[Finding]:
    connection = await asyncpg.connect(settings.database_url, timeout=_WITHIN_S, statement_cache_size=0)
    try:
        number = int(await connection.fetchval("show server_version_num"))
        name = await connection.fetchval("show server_version")
        known, present = await applied(connection)
        now = await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
    finally:
        await connection.close()
    findings = [
        ok("database", f"PostgreSQL {name}")
        if number >= _OLDEST_POSTGRES
        else failed("database", f"PostgreSQL {name}", "The gateway needs PostgreSQL 14 or newer.")
    ]
    if missing := sorted(known - present):
        findings.append(failed("schema", f"lacks {', '.join(missing)}", "Run `aizen-gateway migrate`."))
    elif newer := sorted(present - known):
        findings.append(warning("schema", f"has {', '.join(newer)}", "A newer gateway migrated it: upgrade this one."))
    else:
        findings.append(ok("schema", f"{len(known)} migrations, all applied"))
    return [*findings, _clock("clock of the database", now * 1000)]


async def _redis(settings: Settings) -> list[Finding]:
    store = RedisStore.connect(RedisOptions(settings.redis_url, timeout=_WITHIN_S))
    try:
        servers = [_redis_server(info, where) for where, info in await _infos(store)]
        now = await store.time_ms()
    finally:
        await store.close()
    # Of the nodes of a cluster the one that is worst off.
    worst = [
        max(findings, key=lambda finding: _SEVERITY.index(finding.verdict)) for findings in zip(*servers, strict=True)
    ]
    return [*worst, _clock("clock of redis", now)]


async def _infos(store: RedisStore) -> list[tuple[str, dict[str, Any]]]:
    """What each server says of itself, and where it is when there are several."""
    client = store.client
    if not isinstance(client, ClusterClient):
        return [("", await store.info())]
    nodes = [(host, port, client.node((host, port))) for host, port in await client.addresses()]
    return [(f" at {host}:{port}", dict(await node.execute_command("INFO"))) for host, port, node in nodes]


def _redis_server(info: dict[str, Any], where: str) -> list[Finding]:
    name, version = _redis_version(info)
    oldest = "Redis 6.2 or Valkey 7.2"
    findings = [
        ok("redis", f"{name} {version}{where}")
        if tuple(int(part) for part in version.split(".")[:2]) >= _OLDEST_REDIS
        else failed("redis", f"{name} {version}{where}", f"The gateway needs {oldest} or newer.")
    ]
    policy = str(info.get("maxmemory_policy", "noeviction"))
    findings.append(
        ok("redis eviction", f"{policy}{where}")
        if policy == "noeviction"
        else failed(
            "redis eviction",
            f"{policy}{where}",
            "Set maxmemory-policy noeviction: sessions and queues must not vanish.",
        )
    )
    durable = int(info.get("aof_enabled", 0)) == 1
    findings.append(
        ok("redis persistence", f"append-only file{where}")
        if durable
        else warning(
            "redis persistence",
            f"no append-only file{where}",
            "No command can be lost, but after a restart every device signs in again: consider appendonly yes.",
        )
    )
    return findings


def _redis_version(info: dict[str, Any]) -> tuple[str, str]:
    if "valkey_version" in info:
        return "Valkey", str(info["valkey_version"])
    return "Redis", str(info["redis_version"])


async def _keys(settings: Settings) -> list[Finding]:
    if settings.supabase_url is None:
        return [ok("supabase keys", "not used: SUPABASE_URL is not set, tokens are checked with SUPABASE_JWT_SECRET")]
    url = f"{issuer_of(settings.supabase_url)}/.well-known/jwks.json"
    advice = "Check SUPABASE_URL and the network; without keys only tokens signed with the secret are good."
    try:
        async with ClientSession(timeout=ClientTimeout(total=_WITHIN_S)) as session, session.get(url) as response:
            keys = orjson.loads(await response.read())["keys"] if response.status == 200 else None
    except (ClientError, OSError, ValueError, KeyError, TypeError) as error:
        return [failed("supabase keys", type(error).__name__, advice)]
    if keys is None:
        return [failed("supabase keys", "not served at the project's address", advice)]
    if not keys and settings.supabase_jwt_secret is None:
        return [failed("supabase keys", "none", "Create a signing key in the project, or set SUPABASE_JWT_SECRET.")]
    return [ok("supabase keys", f"{len(keys)} published")]


def _clock(check: str, theirs_ms: float) -> Finding:
    apart = abs(theirs_ms - time.time() * 1000)
    if apart <= _CLOCKS_MS:
        return ok(check, "agrees with this machine's")
    return warning(
        check, f"{apart / 1000:.1f} s from this machine's", "Run a time service (chrony, timesyncd) on both."
    )


def _files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FILES:
        return ok("file limit", str(soft))
    return warning("file limit", str(soft), "Raise it (LimitNOFILE= in the unit, ulimit -n): every socket takes one.")
