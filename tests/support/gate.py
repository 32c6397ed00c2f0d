"""A gate before the commit of a claim: what happens just then happens when the test wants it to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from .waiting import eventually

_GATE = 4711
# At the commit of a claim: it waits as long as somebody else holds the gate, and no request to stop comes in time.
_WAIT_AT_COMMIT = f"""
create function wait_at_the_gate() returns trigger language plpgsql as
$$ begin
  loop
    begin
      perform pg_advisory_xact_lock_shared({_GATE});
      return null;
    exception when query_canceled then
    end;
  end loop;
end $$;
create constraint trigger waits after update on aizen.commands
deferrable initially deferred for each row
when (new.status = 'claimed' and old.status = 'queued' and new.reason = 'gate') execute function wait_at_the_gate()
"""
_WAITING = """select count(*) from pg_stat_activity
              where datname = current_database() and wait_event = 'advisory' and query = 'commit'"""


@asynccontextmanager
async def commits_wait(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Inside, who commits a claim of a command whose reason is `gate` waits. Yields a connection of the test's own."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_WAIT_AT_COMMIT)
        await connection.execute("select pg_advisory_lock($1)", _GATE)
        yield connection
    finally:
        # Whatever happened before: nothing else could end.
        await connection.execute("select pg_advisory_unlock_all()")
        await connection.close()


async def commits(connection: asyncpg.Connection) -> None:
    """Return once a claim waits at the gate."""
    await eventually(lambda: connection.fetchval(_WAITING), lambda count: count == 1)
