"""A claim that was confirmed for nobody is handed back at once, and its command waits on (contract section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from aizen_gateway.domain.errors import Unavailable
from tests.support.bench import Bench, BenchDevice
from tests.support.proxy import Wire
from tests.support.waiting import eventually

_GATE = 4711
# At the commit of a claim: it waits as long as somebody else holds the gate.
_WAIT_AT_COMMIT = f"""
create function wait_at_the_gate() returns trigger language plpgsql as
$$ begin perform pg_advisory_xact_lock_shared({_GATE}); return null; end $$;
create constraint trigger waits after update on aizen.commands deferrable initially deferred
for each row when (new.status = 'claimed' and old.status = 'queued') execute function wait_at_the_gate()
"""
_WAITING = """select count(*) from pg_stat_activity
              where datname = current_database() and wait_event = 'advisory' and query = 'commit'"""


@asynccontextmanager
async def _commits_wait(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Inside, who commits a claim waits. Yields a connection of the test's own."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_WAIT_AT_COMMIT)
        await connection.execute("select pg_advisory_lock($1)", _GATE)
        yield connection
    finally:
        # Whatever happened before: nothing else could end.
        await connection.execute("select pg_advisory_unlock_all()")
        await connection.close()


async def _commits(connection: asyncpg.Connection) -> None:
    await eventually(lambda: connection.fetchval(_WAITING), lambda count: count == 1)


async def _waits_again(connection: asyncpg.Connection, device: BenchDevice) -> None:
    """The command has been handed back, no delivery is counted, and the device gets it."""
    status = "select status || ' ' || attempt from aizen.commands"
    await eventually(lambda: connection.fetchval(status), lambda found: found == "queued 0")
    actions = [row["action"] for row in await connection.fetch("select action from aizen.audit order by id")]
    assert actions[-2:] == ["command.claimed", "command.released"]
    (claimed,) = await eventually(device.claim, lambda commands: len(commands) == 1)
    assert claimed["attempt"] == 1
    assert (await device.report(claimed))["status"] == "succeeded"


async def test_a_claim_that_is_broken_off_while_it_commits_is_handed_back(bench: Bench) -> None:
    device = await bench.device("lost-broken-off")
    await bench.submit(await bench.open_session(device.device_id))
    async with _commits_wait(bench.database_url) as connection:
        claim = asyncio.create_task(device.claim())
        await _commits(connection)
        claim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claim
        await connection.execute("select pg_advisory_unlock_all()")
        await _waits_again(connection, device)


async def test_a_claim_whose_commit_is_not_answered_is_handed_back(bench: Bench, redis_url: str) -> None:
    device = await bench.device("lost-answer")
    await bench.submit(await bench.open_session(device.device_id))
    url = urlsplit(bench.database_url)
    assert url.port is not None
    async with Wire.to(url.port) as wire, _commits_wait(bench.database_url) as connection:
        through = urlunsplit(url._replace(netloc=url.netloc.replace(f":{url.port}", f":{wire.port}")))
        elsewhere = await Bench.open(through, redis_url, bench.customer_id)
        device.bench = elsewhere
        claim = asyncio.create_task(device.claim())
        await _commits(connection)
        wire.reset()
        with pytest.raises(Unavailable):
            await claim
        await connection.execute("select pg_advisory_unlock_all()")
        await _waits_again(connection, device)
        await elsewhere.close()
