"""PostgreSQL: statements, transactions, and one way to say that it is away. Nobody waits long for a silent server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, cast

import asyncpg
import orjson

from ..domain.errors import InDoubt, Unavailable
from ..domain.values import Origin
from .pool import Connection, Pool, PostgresOptions
from .transaction import Change, Transaction, columns

__all__ = ["BY_INDEX", "Change", "Connection", "Database", "PostgresOptions", "Transaction", "columns", "unavailable"]

# Faults of the line, of a server that is going away, or of the moment, as against faults of a statement.
_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
# A plan that was made while a table was small is kept until the table is analyzed, which may be a minute later: one
# that reads all of it by then takes a thousand times as long. Whatever is asked here has an index. Nor by a bitmap,
# which unlike a look through the index itself never finds out which of its entries are dead.
# Compiled plans are for statements that read much: here they would cost a tenth of a second, and save nothing.
BY_INDEX = "set enable_seqscan = off; set enable_mergejoin = off; set enable_bitmapscan = off; set jit = off"
# After these nobody knows what the server is still doing for the connection.
_ABANDONED = (TimeoutError, asyncio.CancelledError, GeneratorExit)


def unavailable(error: BaseException) -> BaseException:
    """`Unavailable` when PostgreSQL is away; the error itself when it is a fault of ours."""
    # The driver's own ValueErrors are about what it was given.
    away = isinstance(error, _AWAY) and not isinstance(error, ValueError)
    return Unavailable("The database is not reachable.") if away else error


class Database:
    """What PostgreSQL is asked. Connects when first used: a gateway starts and recovers with the database away."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options
        self._pool = Pool(options, self._prepare)

    @property
    def busy(self) -> int:
        """How many connections are in use."""
        return self._pool.in_use

    async def _prepare(self, connection: Connection) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(
                name, encoder=_encode, decoder=orjson.loads, schema="pg_catalog", format="text"
            )
        if self._options.statement_cache:
            # The server gives up just before we do, and frees the rows of an instance that stands still. In
            # milliseconds; not sent with the connection itself, where poolers refuse what they do not know.
            milliseconds = int(self._options.timeout * 1000)
            await connection.execute(
                f"set statement_timeout = {milliseconds * 9 // 10};"
                f"set idle_in_transaction_session_timeout = {milliseconds * 2};" + BY_INDEX
            )

    def connection(self) -> _Use:
        """A block with a connection outside a transaction. Raises `Unavailable`, also when none is free in time.

        A connection that its user had to abandon is not waited for.
        """
        return _Use(self._pool)

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Connection]:
        """A connection inside a transaction; on any error but `InDoubt` nothing is done. Raises `Unavailable`."""
        async with self.connection() as connection:
            # Not the driver's own block, which waits for a silent server once more before it ends.
            await connection.execute("begin")
            try:
                yield connection
            except _ABANDONED:
                raise
            except BaseException:
                # The error tells what happened; a connection that is lost has nothing to roll back.
                with suppress(*_AWAY):
                    await connection.execute("rollback")
                raise
            try:
                await connection.execute("commit")
            except _AWAY as error:
                raise InDoubt("The database is not reachable.") from error

    @asynccontextmanager
    async def transaction(self, now: datetime, origin: Origin) -> AsyncIterator[Transaction]:
        """A transaction at `now` (Redis's clock) on behalf of `origin`.

        After it, `Transaction.changes` holds what must be dispatched. Raises `Unavailable`; on any error but `InDoubt`
        nothing is done.
        """
        async with self.unit() as connection:
            transaction = Transaction(connection, now, origin)
            yield transaction
            await transaction.finish()

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Rows of one statement. Raises `Unavailable`."""
        async with self.connection() as connection:
            return cast("list[Any]", await connection.fetch(sql, *args))

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        """The first row of one statement, or None. Raises `Unavailable`."""
        async with self.connection() as connection:
            return await connection.fetchrow(sql, *args)

    async def execute(self, sql: str, *args: Any) -> Any:
        """Run one statement. Raises `Unavailable`."""
        async with self.connection() as connection:
            return await connection.execute(sql, *args)

    def connections(self) -> dict[str, int]:
        """How many connections are in use, and how many wait for use."""
        return self._pool.counts()

    async def close(self, seconds: float = 5.0) -> None:
        """Close all connections, for good; by force after `seconds`."""
        await self._pool.close(seconds)


class _Use:
    """What `Database.connection` returns: an object, since a generator would cost a good part of a statement."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: Connection = None

    async def __aenter__(self) -> Connection:
        try:
            self._connection = await self._pool.take()
        except _AWAY as error:
            raise unavailable(error) from error
        return self._connection

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        connection = self._connection
        # One whose transaction was left open is no more at rest than one that nobody waited for.
        if isinstance(error, _ABANDONED) or _is_busy(connection):
            self._pool.abandon(connection)
        else:
            self._pool.put_back(connection)
        if isinstance(error, Exception) and (away := unavailable(error)) is not error:
            raise away from error


def _is_busy(connection: Connection) -> bool:
    try:
        return bool(connection.is_in_transaction())
    except asyncpg.InterfaceError:
        return False


def _encode(value: Any) -> str:
    return orjson.dumps(value).decode()
