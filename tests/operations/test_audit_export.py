"""`aizen-gateway audit export`: the whole audit log, or a part of it, as JSON lines (section 4)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from aizen_gateway.cli import main
from aizen_gateway.dev.embedded import EmbeddedPostgres
from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, World, expect
from tests.support.line import Line

Export = Callable[..., Awaitable[list[dict[str, Any]]]]


@pytest.fixture
def export(serving_environment: dict[str, str]) -> Export:
    """Call it with options for the records that are exported."""

    async def run(*options: str) -> list[dict[str, Any]]:
        outcome = await asyncio.to_thread(
            CliRunner().invoke, main, ["audit", "export", *options], env=serving_environment
        )
        assert outcome.exit_code == 0, outcome.stderr
        assert outcome.stdout == "" or outcome.stdout.endswith("\n")
        return [json.loads(line) for line in outcome.stdout.splitlines()]

    return run


async def test_records_come_in_order_as_the_customer_sees_them_and_say_whose_they_are(
    export: Export, line: Line
) -> None:
    await line.device.report(await line.claimed())
    exported = await export()
    shown = expect(await line.world.owner.get(f"{API}/customer/audit?limit=200"), 200)["records"]
    for record, seen in zip(exported, reversed(shown), strict=True):
        assert seen.items() <= record.items()
        assert record["customerId"] == line.world.customer_id
    of_command = [record for record in exported if record["action"].startswith("command.")]
    assert [record["action"] for record in of_command] == ["command.submitted", "command.claimed", "command.succeeded"]
    assert {record["sessionId"] for record in of_command} == {line.session_id}
    assert len({record["commandId"] for record in of_command}) == 1


async def _fill(database: Database, customer_id: str, count: int) -> None:
    """So many records, a second apart, from the beginning of 2026 on."""
    await database.execute(
        "insert into aizen.audit (at, customer_id, action, resource, resource_id, actor, actor_type)"
        " select timestamptz '2026-01-01T00:00:00Z' + number * interval '1 second', $1::text::uuid, 'x.y', 'x',"
        " number::text, 'test', 'operator' from generate_series(0, $2::int - 1) number",
        customer_id,
        count,
    )


async def test_a_long_log_is_exported_whole(export: Export, database: Database) -> None:
    await _fill(database, str(uuid4()), 2_500)
    assert [record["resourceId"] for record in await export()] == [str(number) for number in range(2_500)]


async def test_a_part_is_chosen_by_customer_and_time(export: Export, database: Database) -> None:
    one, other = str(uuid4()), str(uuid4())
    await _fill(database, one, 10)
    await _fill(database, other, 10)
    assert len(await export()) == 20
    assert {record["customerId"] for record in await export("--customer", one)} == {one}
    # From a time on, and before one, in the form of the records too: an export goes on where another ended.
    first = await export("--customer", one, "--until", "2026-01-01T00:00:04")
    rest = await export("--customer", one, "--since", "2026-01-01T00:00:04.000Z")
    assert [record["resourceId"] for record in first + rest] == [str(number) for number in range(10)]
    assert first[-1]["resourceId"] == "3"
    assert await export("--since", "2026-01-02") == []


async def test_it_is_written_to_a_file_when_told(export: Export, database: Database, tmp_path: Path) -> None:
    await _fill(database, str(uuid4()), 3)
    assert await export("--output", str(tmp_path / "audit.jsonl")) == []
    assert len((tmp_path / "audit.jsonl").read_bytes().splitlines()) == 3


async def test_nothing_secret_is_in_it(export: Export, world: World) -> None:
    device = await world.device()
    text = json.dumps(await export())
    assert device.secret not in text
    assert device.token not in text


@pytest.mark.parametrize("away", [True, False])
async def test_a_database_that_cannot_be_asked_is_told_in_a_line(
    postgres_server: EmbeddedPostgres, serving_environment: dict[str, str], away: bool
) -> None:
    # One is away, the other was never migrated.
    url, told = ("postgresql://x@127.0.0.1:1/x", "UNAVAILABLE") if away else (postgres_server.url, "migrate")
    outcome = await asyncio.to_thread(
        CliRunner().invoke, main, ["audit", "export"], env=serving_environment | {"DATABASE_URL": url}
    )
    assert outcome.exit_code == 1
    assert isinstance(outcome.exception, SystemExit)
    assert len(outcome.stderr.splitlines()) == 1
    assert told in outcome.stderr
