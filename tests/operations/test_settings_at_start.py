"""A process with wrong settings does not start, and says which are wrong without saying what is secret (section 7)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from aiohttp import ClientSession

from tests.support.clients import Client, expect
from tests.support.processes import Finished, StartProcess, finished

_PASSWORD = "pa55word-of-nobody"
_GOOD = {
    "DATABASE_URL": f"postgresql://user:{_PASSWORD}@127.0.0.1:1/name",
    "REDIS_URL": f"redis://:{_PASSWORD}@127.0.0.1:1/0",
    "SUPABASE_JWT_SECRET": f"the secret {_PASSWORD}",
    "AIZEN_PORT": "0",
}


async def _serve(start_process: StartProcess, environment: Mapping[str, str]) -> Finished:
    return await finished(await start_process("serve", environment=environment))


async def test_nothing_set_names_all_that_must_be(start_process: StartProcess) -> None:
    outcome = await _serve(start_process, {})
    assert outcome.status == 2
    lines = outcome.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "DATABASE_URL",
        "REDIS_URL",
        "SUPABASE_URL and SUPABASE_JWT_SECRET",
    ]
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AIZEN_PORT", "a port"),
        ("AIZEN_DRAIN_TIMEOUT", "0"),
        ("AIZEN_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("DATABASE_URL", f"mysql://user:{_PASSWORD}@host/name"),
        ("REDIS_URL", f"redis://:{_PASSWORD}@host:port/0"),
        ("SUPABASE_JWT_SECRET", _PASSWORD[:10]),
    ],
)
async def test_a_wrong_value_stops_the_start_with_a_line_that_names_it(
    start_process: StartProcess, variable: str, value: str
) -> None:
    outcome = await _serve(start_process, {**_GOOD, variable: value})
    assert outcome.status == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"aizen-gateway: {variable}: ")
    assert _PASSWORD not in line
    assert _PASSWORD[:10] not in line


async def test_all_wrong_values_are_named_at_once(start_process: StartProcess) -> None:
    wrong = {"AIZEN_PORT": "70000", "AIZEN_LOG_LEVEL": "loud", "AIZEN_SESSION_TTL": "-1"}
    outcome = await _serve(start_process, {**_GOOD, **wrong})
    assert outcome.status == 2
    assert {line.split(": ")[1] for line in outcome.stderr.splitlines()} == set(wrong)


@pytest.mark.parametrize("format_", ["json", "console"])
async def test_no_secret_of_the_settings_is_ever_printed(
    start_process: StartProcess, http: ClientSession, format_: str
) -> None:
    # Both servers are away, so both clients have something to say about their URLs.
    environment = {**_GOOD, "AIZEN_LOG_LEVEL": "debug", "AIZEN_LOG_FORMAT": format_, "AIZEN_PORT": "0"}
    process = await start_process("serve", environment=environment)
    line = await process.said("listening")
    url = "http://127.0.0.1:" + line.rpartition("http://127.0.0.1:")[2].split("'")[0].split('"')[0]
    expect(await Client(http, url).get("/readyz"), 503)
    await process.said("waits")
    assert await process.stop() == 0
    assert _PASSWORD not in process.text


async def test_a_wrong_value_for_a_command_is_told_in_one_line(start_process: StartProcess) -> None:
    environment = {"DATABASE_URL": f"mysql://user:{_PASSWORD}@host/name"}
    outcome = await finished(await start_process("customer", "list", environment=environment))
    assert outcome.status == 1
    (line,) = outcome.stderr.splitlines()
    assert "DATABASE_URL: must begin with postgresql://" in line
    assert _PASSWORD not in line
