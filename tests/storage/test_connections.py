"""Connections at hand: who comes first is served first, and no connection or place is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from aizen_gateway.storage.connections import Connections, PostgresOptions
from tests.support.waiting import eventually


async def _as_it_is(_connection: object) -> None:
    """Nothing has to be set up."""


@pytest.fixture
async def connections(database_url: str) -> AsyncIterator[Connections]:
    """One connection, for all."""
    opened = Connections(PostgresOptions(database_url, pool_size=1), _as_it_is)
    yield opened
    await opened.close(5.0)


async def test_who_comes_first_is_served_first(connections: Connections) -> None:
    served: list[int] = []

    async def use(number: int) -> None:
        connection = await connections.take()
        served.append(number)
        await connection.fetchval("select 1")
        connections.put_back(connection)

    held = await connections.take()
    users = [asyncio.create_task(use(number)) for number in range(6)]
    await asyncio.sleep(0)
    connections.put_back(held)
    # Comes just when the connection is free, and is the last all the same.
    await use(6)
    await asyncio.gather(*users)
    assert served == [0, 1, 2, 3, 4, 5, 6]
    assert connections.in_use == 0


async def test_the_same_connection_is_used_again(connections: Connections) -> None:
    async def process() -> int:
        connection = await connections.take()
        found: int = await connection.fetchval("select pg_backend_pid()")
        connections.put_back(connection)
        return found

    assert await process() == await process()
    assert connections.counts() == {"used": 0, "free": 1}


async def test_a_connection_for_one_who_has_given_up_goes_to_the_next(connections: Connections) -> None:
    held = await connections.take()
    gives_up, waits = asyncio.create_task(connections.take()), asyncio.create_task(connections.take())
    await asyncio.sleep(0)
    connections.put_back(held)
    gives_up.cancel()
    connection = await waits
    assert await connection.fetchval("select 1") == 1
    connections.put_back(connection)
    assert gives_up.cancelled()
    assert connections.in_use == 0


async def test_one_who_gives_up_while_waiting_is_forgotten(connections: Connections) -> None:
    held = await connections.take()
    waits = asyncio.create_task(connections.take())
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    connections.put_back(held)
    assert connections.in_use == 0
    connections.put_back(await connections.take())


async def test_whoever_waits_for_an_abandoned_connection_gets_another(connections: Connections) -> None:
    held = await connections.take()
    pid = await held.fetchval("select pg_backend_pid()")
    sleeping = asyncio.create_task(held.execute("select pg_sleep(60)"))
    await asyncio.sleep(0)
    waits = asyncio.create_task(connections.take())
    await asyncio.sleep(0)
    sleeping.cancel()
    await asyncio.gather(sleeping, return_exceptions=True)
    held.terminate()
    connections.abandon(held)
    connection = await waits
    assert await connection.fetchval("select pg_backend_pid()") != pid
    connections.put_back(connection)


async def test_what_broke_while_nobody_used_it_is_replaced(connections: Connections, database_url: str) -> None:
    held = await connections.take()
    pid = await held.fetchval("select pg_backend_pid()")
    connections.put_back(held)
    other = await asyncpg.connect(database_url)
    try:
        await other.execute("select pg_terminate_backend($1)", pid)
    finally:
        await other.close()

    async def noticed() -> bool:
        return connections.counts()["free"] == 0 or held._con is None

    await eventually(noticed, bool)
    connection = await connections.take()
    assert await connection.fetchval("select pg_backend_pid()") != pid
    connections.put_back(connection)


async def test_a_failed_attempt_frees_its_place() -> None:
    connections = Connections(PostgresOptions("postgresql://nobody@127.0.0.1:1/none", pool_size=1), _as_it_is)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await connections.take()
    assert connections.in_use == 0
    await connections.close(1.0)
