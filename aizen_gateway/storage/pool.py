"""Connections to PostgreSQL: the driver's pool, and what was just used kept at hand for the next user.

A way through the pool and back costs a task, two time-outs and a turn of the event loop, which is more than the
statement itself costs here; and whoever waits at the pool is overtaken by those who come just when something is free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from ..domain.errors import Unavailable

Connection = Any  # asyncpg.Connection or the pool's proxy of one: the same methods, no common type

# Seconds in which an abandoned connection may still come to rest and be kept.
_REST_S = 1.0
# What nobody has needed for so many seconds goes back to the pool, which closes it some minutes later.
_AT_HAND_S = 60.0
# Statements that a connection keeps prepared: more than there are, so that none is ever dropped and the library's way
# of dropping one, which waits for the server without a bound, is never taken.
_PREPARED = 512


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


class Pool:
    """Connects when first used. `prepare` is called with each new connection; `in_use` is how many are taken."""

    def __init__(self, options: PostgresOptions, prepare: Callable[[Connection], Coroutine[Any, Any, None]]) -> None:
        self._options = options
        self._prepare = prepare
        self._driver: asyncpg.Pool[Any] | None = None
        self._opening = asyncio.Lock()
        # The one that was used last is taken first, so that those which are not needed stay at the front.
        self._at_hand: list[Connection] = []
        self._unneeded = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self.in_use = 0
        self._returning: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(self) -> Connection:
        """A connection, to be `put_back` or to `abandon`; who comes first is served first.

        Raises `Unavailable`, and the driver's errors; `TimeoutError` when none was free in time.
        """
        connection = self._take_at_hand()
        if connection is not None:
            self.in_use += 1
            return connection
        loop = asyncio.get_running_loop()
        until = loop.time() + self._options.timeout
        if self.in_use < self._options.pool_size:
            self.in_use += 1
        elif (connection := await self._handed_over(until)) is not None:
            return connection
        try:
            driver = self._driver or await self._open()
            return await driver.acquire(timeout=max(0.0, until - loop.time()))
        except BaseException:
            self._hand_over(None)
            raise

    def _take_at_hand(self) -> Connection | None:
        while self._at_hand:
            connection = self._at_hand.pop()
            self._unneeded = min(self._unneeded, len(self._at_hand))
            if not _is_closed(connection):
                return connection
            self._begin(self._release(connection))
        return None

    async def _handed_over(self, until: float) -> Connection | None:
        """Wait for another user's connection; None to take one from the pool in that user's place."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Connection | None] = loop.create_future()
        self._waiting.append(waiter)
        timer = loop.call_at(until, _expire, waiter)
        try:
            return await waiter
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was handed over in the moment in which its new user gave up.
                self._hand_over(waiter.result())
            raise
        finally:
            timer.cancel()

    def _hand_over(self, connection: Connection | None) -> None:
        """A user is done with its connection, or with its place when that has come to nothing."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self.in_use -= 1
        if connection is not None:
            self._at_hand.append(connection)
            if self._timer is None:
                self._begin_to_look()

    def put_back(self, connection: Connection) -> None:
        """Take back a connection at rest."""
        if self._closed or _is_closed(connection):
            self._hand_over(None)
            self._begin(self._release(connection))
        else:
            self._hand_over(connection)

    def abandon(self, connection: Connection) -> None:
        """Let a connection come to rest behind the back of its user, and give it up when that takes long."""
        self._begin(self._rest(connection))

    def counts(self) -> dict[str, int]:
        """How many connections are in use, and how many wait for use."""
        if self._driver is None:
            return {"used": 0, "free": 0}
        free = self._driver.get_idle_size() + sum(not _is_closed(connection) for connection in self._at_hand)
        return {"used": self._driver.get_size() - free, "free": free}

    async def close(self, seconds: float) -> None:
        """Close all, for good; by force after `seconds`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        driver, at_hand = self._driver, self._at_hand
        if driver is None:
            return
        self._at_hand = []
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*map(self._release, at_hand))
                await driver.close()
        except BaseException as error:
            driver.terminate()
            if not isinstance(error, TimeoutError):
                raise
        finally:
            for task in self._returning:
                task.cancel()
            await asyncio.gather(*self._returning, return_exceptions=True)

    async def _open(self) -> asyncpg.Pool[Any]:
        async with self._opening:
            if self._closed:
                raise Unavailable("The database has been closed.")
            if self._driver is None:
                options = self._options
                self._driver = await asyncpg.create_pool(
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
        return self._driver

    def _begin_to_look(self) -> None:
        self._unneeded = len(self._at_hand)
        self._timer = asyncio.get_running_loop().call_later(_AT_HAND_S, self._look)

    def _look(self) -> None:
        """Give back to the driver's pool what nobody has needed since the last look."""
        self._timer = None
        unneeded, self._at_hand = self._at_hand[: self._unneeded], self._at_hand[self._unneeded :]
        if self._at_hand:
            # The one that works most as well: the driver replaces those that have served long.
            unneeded.append(self._at_hand.pop())
        for connection in unneeded:
            self._begin(self._release(connection))
        if self._at_hand:
            self._begin_to_look()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="connection-returns")
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _release(self, connection: Connection) -> None:
        assert self._driver is not None
        # What was done is done: a connection that breaks here is replaced at its next use.
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await self._driver.release(connection)

    async def _rest(self, connection: Connection) -> None:
        """Wait for the server to stop what it was doing, undo it, and put the connection back; else break it off."""
        assert self._driver is not None
        try:
            if connection.is_in_transaction():
                await connection.execute("rollback", timeout=_REST_S)
            await self._driver.release(connection, timeout=_REST_S)
        except BaseException as error:
            # One that was given back or broken off meanwhile is the pool's already.
            with suppress(asyncpg.InterfaceError):
                connection.terminate()
            if not isinstance(error, Exception):
                raise
        finally:
            # Not before: whoever got its place would wait at the pool, where nobody hands anything over.
            self._hand_over(None)


def _expire(waiter: asyncio.Future[Connection | None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError("No connection was free in time."))


def _is_closed(connection: Connection) -> bool:
    """Whether a connection is of no use any more."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        # The pool has noticed it before.
        return True


async def _keep_as_it_is(connection: Connection) -> None:
    """Between two users of a connection: nothing here locks, listens or changes settings, so nothing is reset."""
