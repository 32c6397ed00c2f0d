"""The pool: who comes first is served first, and no connection or place is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from aizen_gateway.storage.pool import Pool, PostgresOptions
from tests.support.waiting import eventually


async def _as_it_is(_connection: object) -> None:
    """Nothing has to be set up."""


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """One connection, for all."""
    opened = Pool(PostgresOptions(database_url, pool_size=1), _as_it_is)
    yield opened
    await opened.close(5.0)


async def test_who_comes_first_is_served_first(pool: Pool) -> None:
    served: list[int] = []

    async def use(number: int) -> None:
        connection = await pool.take()
        served.append(number)
        await connection.fetchval("select 1")
        pool.put_back(connection)

    held = await pool.take()
    users = [asyncio.create_task(use(number)) for number in range(6)]
    await asyncio.sleep(0)
    pool.put_back(held)
    # Comes just when the connection is free, and is the last all the same.
    await use(6)
    await asyncio.gather(*users)
    assert served == [0, 1, 2, 3, 4, 5, 6]
    assert pool.in_use == 0


async def test_the_same_connection_is_used_again(pool: Pool) -> None:
    async def process() -> int:
        connection = await pool.take()
        found: int = await connection.fetchval("select pg_backend_pid()")
        pool.put_back(connection)
        return found

    assert await process() == await process()
    assert pool.counts() == {"used": 0, "free": 1}


async def test_a_connection_for_one_who_has_given_up_goes_to_the_next(pool: Pool) -> None:
    held = await pool.take()
    gives_up, waits = asyncio.create_task(pool.take()), asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    pool.put_back(held)
    gives_up.cancel()
    connection = await waits
    assert await connection.fetchval("select 1") == 1
    pool.put_back(connection)
    assert gives_up.cancelled()
    assert pool.in_use == 0


async def test_one_who_gives_up_while_waiting_is_forgotten(pool: Pool) -> None:
    held = await pool.take()
    waits = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    pool.put_back(held)
    assert pool.in_use == 0
    pool.put_back(await pool.take())


async def test_whoever_waits_for_an_abandoned_connection_gets_another(pool: Pool) -> None:
    held = await pool.take()
    pid = await held.fetchval("select pg_backend_pid()")
    sleeping = asyncio.create_task(held.execute("select pg_sleep(60)"))
    await asyncio.sleep(0)
    waits = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    sleeping.cancel()
    await asyncio.gather(sleeping, return_exceptions=True)
    held.terminate()
    pool.abandon(held)
    connection = await waits
    assert await connection.fetchval("select pg_backend_pid()") != pid
    pool.put_back(connection)


async def test_what_broke_while_nobody_used_it_is_replaced(pool: Pool, database_url: str) -> None:
    held = await pool.take()
    pid = await held.fetchval("select pg_backend_pid()")
    pool.put_back(held)
    other = await asyncpg.connect(database_url)
    try:
        await other.execute("select pg_terminate_backend($1)", pid)
    finally:
        await other.close()

    await eventually(lambda: asyncio.sleep(0, pool.counts()["free"] == 0 or held._con is None), bool)
    connection = await pool.take()
    assert await connection.fetchval("select pg_backend_pid()") != pid
    pool.put_back(connection)


async def test_nobody_overtakes_who_waits_while_an_abandoned_connection_comes_to_rest(database_url: str) -> None:
    pool = Pool(PostgresOptions(database_url, pool_size=2), _as_it_is)
    abandoned, held = await pool.take(), await pool.take()
    served: list[str] = []

    async def use(name: str) -> None:
        connection = await pool.take()
        served.append(name)
        pool.put_back(connection)

    # Busy for a while yet, so that the place is free only then.
    sleeping = asyncio.create_task(abandoned.execute("select pg_sleep(0.3)"))
    await asyncio.sleep(0)
    pool.abandon(abandoned)
    waits = asyncio.create_task(use("first"))
    await asyncio.sleep(0)
    pool.put_back(held)
    await use("second")
    await waits
    assert served == ["first", "second"]
    await asyncio.gather(sleeping, return_exceptions=True)
    await pool.close(5.0)
    assert pool.in_use == 0


async def test_connections_that_broke_at_hand_are_not_counted(database_url: str) -> None:
    pool = Pool(PostgresOptions(database_url, pool_size=3), _as_it_is)
    held = [await pool.take() for _ in range(3)]
    pids = [await connection.fetchval("select pg_backend_pid()") for connection in held]
    for connection in held:
        pool.put_back(connection)
    assert pool.counts() == {"used": 0, "free": 3}
    other = await asyncpg.connect(database_url)
    try:
        await other.execute("select pg_terminate_backend(pid) from unnest($1::int[]) as pid", pids)
    finally:
        await other.close()

    await eventually(lambda: asyncio.sleep(0, pool.counts()), lambda found: found == {"used": 0, "free": 0})
    await pool.close(5.0)


async def test_a_failed_attempt_frees_its_place() -> None:
    pool = Pool(PostgresOptions("postgresql://nobody@127.0.0.1:1/none", pool_size=1), _as_it_is)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await pool.take()
    assert pool.in_use == 0
    await pool.close(1.0)
