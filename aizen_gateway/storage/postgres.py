"""PostgreSQL: the pool, and one way to say that it is away. Nobody waits long for a server that is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import asyncpg
import orjson

from ..domain.errors import Unavailable
from ..domain.values import Origin
from .transaction import Change, Connection, Transaction, columns

__all__ = ["Change", "Connection", "Database", "PostgresOptions", "Transaction", "columns", "unavailable"]

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
# After these nobody knows what the server is still doing for the connection.
_ABANDONED = (TimeoutError, asyncio.CancelledError, GeneratorExit)
# Seconds in which an abandoned connection may still come to rest and be kept.
_REST_S = 1.0
# Statements that a connection keeps prepared: more than there are, so that none is ever dropped and the library's way
# of dropping one, which waits for the server without a bound, is never taken.
_PREPARED = 512


def unavailable(error: BaseException) -> BaseException:
    """`Unavailable` when PostgreSQL is away; the error itself when it is a fault of ours."""
    # The driver's own ValueErrors are about what it was given.
    away = isinstance(error, _AWAY) and not isinstance(error, ValueError)
    return Unavailable("The database is not reachable.") if away else error


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """How to connect; `timeout` is seconds for a connection, for a place in the pool, and for a statement.

    `statement_cache` is off behind a pooler in transaction mode, where a prepared statement may be met by another
    server connection, and so may a setting.
    """

    dsn: str
    pool_size: int = 10
    timeout: float = 5.0
    statement_cache: bool = True


class Database:
    """The pool. Connects when first used, so that a gateway starts and recovers with the database away."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening = asyncio.Lock()
        self._resting: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._closed = False

    @property
    def busy(self) -> int:
        """How many connections are in use."""
        return self._busy

    async def _open(self) -> asyncpg.Pool[Any]:
        async with self._opening:
            if self._closed:
                raise Unavailable("The database has been closed.")
            if self._pool is None:
                options = self._options
                self._pool = await asyncpg.create_pool(
                    options.dsn,
                    min_size=0,
                    max_size=options.pool_size,
                    timeout=options.timeout,
                    command_timeout=options.timeout,
                    statement_cache_size=_PREPARED if options.statement_cache else 0,
                    max_cached_statement_lifetime=0,
                    server_settings={"application_name": "aizen-gateway"},
                    init=self._prepare,
                    reset=_keep_as_it_is,
                )
        return self._pool

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
                f"set idle_in_transaction_session_timeout = {milliseconds * 2}"
            )

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection outside a transaction. Raises `Unavailable`, also when none is free in time.

        A connection that its user had to abandon is not waited for.
        """
        try:
            pool = self._pool or await self._open()
            connection = await pool.acquire(timeout=self._options.timeout)
        except _AWAY as error:
            raise unavailable(error) from error
        self._busy += 1
        try:
            yield connection
        except BaseException as error:
            # One whose transaction could not be undone is no more at rest than one that nobody waited for.
            if isinstance(error, _ABANDONED) or _is_busy(connection):
                self._abandon(pool, connection)
            else:
                await self._release(pool, connection)
            if isinstance(error, Exception) and (away := unavailable(error)) is not error:
                raise away from error
            raise
        else:
            await self._release(pool, connection)
        finally:
            self._busy -= 1

    async def _release(self, pool: asyncpg.Pool[Any], connection: Connection) -> None:
        # What was done is done: a connection that breaks here is replaced at its next use.
        with suppress(*_AWAY):
            await pool.release(connection)

    def _abandon(self, pool: asyncpg.Pool[Any], connection: Connection) -> None:
        """Let a connection come to rest behind the back of its user, and give it up when that takes long."""
        task = asyncio.create_task(_rest(pool, connection), name="connection-rest")
        self._resting.add(task)
        task.add_done_callback(self._resting.discard)

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Connection]:
        """A connection inside a transaction; on any error nothing is done. Raises `Unavailable`."""
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
            await connection.execute("commit")

    @asynccontextmanager
    async def transaction(self, now: datetime, origin: Origin) -> AsyncIterator[Transaction]:
        """A transaction at `now` (Redis's clock) on behalf of `origin`.

        After it, `Transaction.changes` holds what must be dispatched. Raises `Unavailable`; on any error nothing is
        done.
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
        """How many connections of the pool are in use, and how many wait for use."""
        if self._pool is None:
            return {"used": 0, "free": 0}
        free = self._pool.get_idle_size()
        return {"used": self._pool.get_size() - free, "free": free}

    async def close(self, seconds: float = 5.0) -> None:
        """Close the pool, for good; by force after `seconds`."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), seconds)
        except TimeoutError:
            pool.terminate()
        finally:
            for task in self._resting:
                task.cancel()
            await asyncio.gather(*self._resting, return_exceptions=True)


def _is_busy(connection: Connection) -> bool:
    try:
        return bool(connection.is_in_transaction())
    except asyncpg.InterfaceError:
        return False


async def _rest(pool: asyncpg.Pool[Any], connection: Connection) -> None:
    """Wait for the server to stop what it was doing, undo it, and put the connection back; else break it off."""
    try:
        if connection.is_in_transaction():
            await connection.execute("rollback", timeout=_REST_S)
        await pool.release(connection, timeout=_REST_S)
    except BaseException as error:
        # One that was given back or broken off meanwhile is the pool's already.
        with suppress(asyncpg.InterfaceError):
            connection.terminate()
        if not isinstance(error, Exception):
            raise


async def _keep_as_it_is(connection: Connection) -> None:
    """Between two users of a connection: nothing here locks, listens or changes settings, so nothing is reset."""


def _encode(value: Any) -> str:
    return orjson.dumps(value).decode()
