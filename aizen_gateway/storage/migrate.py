"""Applies the schema, so that `aizen-gateway migrate`, the tests and `dev` do it in one way."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import asyncpg
from pogo_core.error import BadMigrationError
from pogo_core.util import migrate as pogo_migrate
from pogo_core.util import sql as pogo_sql

SCHEMA = "aizen"
MIGRATIONS = Path(__file__).with_name("migrations")
# Any number, the same on every instance: two that migrate at once take turns.
LOCK = 0x41495A454E

_logger = logging.getLogger(__name__)


class MigrationFailed(Exception):
    """A migration could not be applied; the text names it, and nothing was changed."""


async def migrate(dsn: str, *, connect_timeout: float = 10.0) -> list[str]:
    """Bring the database at `dsn` to the newest schema and return the ids of the migrations applied now.

    Everything happens in one transaction under a lock: it is applied whole or not at all, and a second caller waits
    for the first. `connect_timeout` is seconds. Raises `MigrationFailed`, `asyncpg.PostgresError` or `OSError`.
    """
    connection = await asyncpg.connect(dsn, timeout=connect_timeout, statement_cache_size=0)
    try:
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", LOCK)
            await pogo_sql.ensure_pogo_sync(connection)
            before = await pogo_sql.get_applied_migrations(connection, schema_name=SCHEMA)
            await pogo_migrate.apply(connection, MIGRATIONS, schema_name=SCHEMA, logger=_logger)
            after = await pogo_sql.get_applied_migrations(connection, schema_name=SCHEMA)
            await _hide_bookkeeping(connection)
        return sorted(after - before)
    except BadMigrationError as error:
        raise MigrationFailed(f"{error}: {error.__cause__}") from error
    finally:
        await connection.close()


async def applied(connection: asyncpg.Connection) -> tuple[set[str], set[str]]:
    """Return (migrations the code knows, migrations the database has) by id."""
    known = {path.stem for path in await asyncio.to_thread(lambda: list(MIGRATIONS.glob("*.sql")))}
    if await connection.fetchval("select to_regclass('public._pogo_migration')") is None:
        return known, set()
    return known, await pogo_sql.get_applied_migrations(connection, schema_name=SCHEMA)


async def _hide_bookkeeping(connection: asyncpg.Connection) -> None:
    """The migration library keeps its own tables in `public`, which PostgREST exposes: lock them."""
    for table in ("_pogo_migration", "_pogo_version"):
        await connection.execute(f"alter table public.{table} enable row level security")
