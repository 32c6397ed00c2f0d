"""The pool against a PostgreSQL that is slow, silent or gone: nobody waits for long, and everything comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from time import monotonic
from uuid import UUID, uuid4

import asyncpg
import pytest

from aizen_gateway.domain.errors import Unavailable
from aizen_gateway.domain.values import NOWHERE
from aizen_gateway.storage.postgres import Database, PostgresOptions
from tests.support.outages import crash, hung
from tests.support.servers import FreshPostgres
from tests.support.waiting import eventually

_TIMEOUT_S = 0.5
# What may pass until the caller knows: the time-out of a statement or of a connection, and what a busy machine takes.
_BOUND_S = _TIMEOUT_S + 1.0
_NOW = datetime(2026, 1, 2, tzinfo=UTC)

OpenDatabase = Callable[..., Database]


@pytest.fixture
async def open_database(database_url: str) -> AsyncIterator[OpenDatabase]:
    """Call it for a pool with a short time-out on the test's database, or on `url`."""
    async with contextlib.AsyncExitStack() as stack:

        def open_pool(pool_size: int = 1, url: str = database_url, timeout: float = _TIMEOUT_S) -> Database:
            database = Database(PostgresOptions(url, pool_size=pool_size, timeout=timeout))
            stack.push_async_callback(database.close)
            return database

        yield open_pool


async def _customer(database: Database) -> UUID:
    customer = uuid4()
    await database.execute("insert into aizen.customers (id, name) values ($1, 'before')", customer)
    return customer


async def is_busy(database: Database) -> None:
    """Return once a connection of the pool is in use."""

    async def busy() -> int:
        return database.busy

    await eventually(busy, bool)


async def _rename(database: Database, customer: UUID, name: str = "after") -> None:
    async with database.transaction(_NOW, NOWHERE) as transaction:
        await transaction.execute("update aizen.customers set name = $2 where id = $1", customer, name)


async def _name(database: Database, customer: UUID) -> str:
    row = await database.fetchrow("select name from aizen.customers where id = $1", customer)
    return str(row["name"])


async def test_a_slow_statement_is_given_up_in_time(open_database: OpenDatabase) -> None:
    database = open_database()
    async with asyncio.timeout(_BOUND_S):
        with pytest.raises(Unavailable):
            await database.fetch("select pg_sleep(30)")
    assert (await database.fetchrow("select 1 as one"))["one"] == 1


async def test_a_slow_statement_is_stopped_on_the_server_too(open_database: OpenDatabase) -> None:
    database, other = open_database(), open_database()
    with pytest.raises(Unavailable):
        await database.fetch("select pg_sleep(30) as slow")
    active = "select 1 from pg_stat_activity where query like '%as slow' and state = 'active'"
    await eventually(lambda: other.fetch(active), lambda found: not found)


async def test_a_caller_that_gives_up_leaves_the_pool_whole(open_database: OpenDatabase) -> None:
    database = open_database(timeout=10)
    call = asyncio.create_task(database.fetch("select pg_sleep(30)"))
    await is_busy(database)
    call.cancel()
    async with asyncio.timeout(_BOUND_S):
        await asyncio.gather(call, return_exceptions=True)
        assert (await database.fetchrow("select 1 as one"))["one"] == 1


async def test_a_transaction_whose_caller_gives_up_changes_nothing_and_holds_nothing(
    open_database: OpenDatabase,
) -> None:
    database, other = open_database(timeout=10), open_database()
    customer = await _customer(other)
    inside = asyncio.Event()

    async def change() -> None:
        async with database.transaction(_NOW, NOWHERE) as transaction:
            await transaction.execute("update aizen.customers set name = 'lost' where id = $1", customer)
            inside.set()
            await asyncio.Event().wait()

    call = asyncio.create_task(change())
    await inside.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await _rename(other, customer)
    assert await _name(database, customer) == "after"


async def test_an_error_in_a_transaction_changes_nothing(open_database: OpenDatabase) -> None:
    database = open_database()
    customer = await _customer(database)

    async def change() -> None:
        async with database.transaction(_NOW, NOWHERE) as transaction:
            await transaction.execute("update aizen.customers set name = 'lost' where id = $1", customer)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await change()
    assert await _name(database, customer) == "before"
    await _rename(database, customer)
    assert await _name(database, customer) == "after"


async def test_a_transaction_that_was_left_open_is_undone_before_the_next_user(open_database: OpenDatabase) -> None:
    database, other = open_database(), open_database()
    customer = await _customer(other)
    async with database.connection() as connection:
        await connection.execute("begin")
        await connection.execute("update aizen.customers set name = 'lost' where id = $1", customer)
    async with database.connection() as connection:
        assert not connection.is_in_transaction()
    assert await _name(database, customer) == "before"


async def test_a_pool_with_nothing_free_says_so_in_time(open_database: OpenDatabase) -> None:
    database = open_database()
    async with database.connection(), asyncio.timeout(_BOUND_S):
        with pytest.raises(Unavailable):
            await database.fetch("select 1")


async def test_two_that_wait_for_each_other_are_told_to_try_again(open_database: OpenDatabase) -> None:
    database = open_database(pool_size=2, timeout=20)
    first, second = await _customer(database), await _customer(database)
    both = asyncio.Barrier(2)

    async def change(one: UUID, another: UUID) -> None:
        async with database.transaction(_NOW, NOWHERE) as transaction:
            await transaction.execute("update aizen.customers set name = 'x' where id = $1", one)
            await both.wait()
            await transaction.execute("update aizen.customers set name = 'x' where id = $1", another)

    outcomes = await asyncio.gather(change(first, second), change(second, first), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "Unavailable"]


async def test_a_fault_of_ours_is_not_taken_for_an_outage(open_database: OpenDatabase) -> None:
    database = open_database()
    with pytest.raises(asyncpg.PostgresError, match="invalid input"):
        await database.fetch("select $1::int", "no number")
    assert (await database.fetchrow("select 1 as one"))["one"] == 1


async def test_a_server_that_hangs_is_given_up_in_time(
    open_database: OpenDatabase, fresh_postgres: FreshPostgres
) -> None:
    server = await fresh_postgres()
    database = open_database(pool_size=2, url=server.url)
    customer = await _customer(database)
    with hung(server):
        for _ in range(3):
            async with asyncio.timeout(_BOUND_S):
                with pytest.raises(Unavailable):
                    await database.fetch("select 1")
            async with asyncio.timeout(_BOUND_S):
                with pytest.raises(Unavailable):
                    await _rename(database, customer, "unknown")
    await _rename(database, customer)
    assert await _name(database, customer) == "after"


async def test_a_server_that_hangs_within_a_transaction_is_given_up_in_time(
    open_database: OpenDatabase, fresh_postgres: FreshPostgres
) -> None:
    server = await fresh_postgres()
    database = open_database(url=server.url)
    customer = await _customer(database)

    async def change() -> None:
        async with database.transaction(_NOW, NOWHERE) as transaction:
            await transaction.execute("update aizen.customers set name = 'lost' where id = $1", customer)
            stack.enter_context(hung(server))
            await transaction.execute("select 1")

    with contextlib.ExitStack() as stack:
        async with asyncio.timeout(_BOUND_S):
            with pytest.raises(Unavailable):
                await change()
    await _rename(database, customer)
    assert await _name(database, customer) == "after"


async def test_closing_does_not_wait_for_a_server_that_hangs(
    open_database: OpenDatabase, fresh_postgres: FreshPostgres
) -> None:
    server = await fresh_postgres()
    database = open_database(url=server.url, timeout=30)
    await _customer(database)
    with hung(server):
        call = asyncio.create_task(database.fetch("select 1"))
        await is_busy(database)
        started = monotonic()
        await database.close(seconds=0.5)
        assert monotonic() - started < _BOUND_S
        with pytest.raises(Unavailable):
            await call


async def test_after_a_restart_the_first_statement_works(
    open_database: OpenDatabase, fresh_postgres: FreshPostgres
) -> None:
    server = await fresh_postgres()
    database = open_database(pool_size=3, url=server.url)
    # Several connections are open and idle.
    await asyncio.gather(*(database.fetch("select pg_sleep(0.05)") for _ in range(3)))
    await crash(server)
    with pytest.raises(Unavailable):
        await database.fetch("select 1")
    await server.restart()
    for _ in range(4):
        assert (await database.fetchrow("select 1 as one"))["one"] == 1


async def test_a_closed_database_opens_no_more(open_database: OpenDatabase) -> None:
    database = open_database()
    await database.fetch("select 1")
    await database.close()
    with pytest.raises(Unavailable):
        await database.fetch("select 1")


async def test_a_gateway_that_stands_still_in_a_transaction_does_not_hold_rows_for_ever(
    open_database: OpenDatabase,
) -> None:
    database, other = open_database(), open_database(timeout=20)
    customer = await _customer(other)

    async def change() -> None:
        async with database.transaction(_NOW, NOWHERE) as transaction:
            await transaction.execute("update aizen.customers set name = 'lost' where id = $1", customer)
            await _rename(other, customer)

    with pytest.raises(Unavailable):
        await change()
    assert await _name(other, customer) == "after"


async def test_behind_a_transaction_pooler_nothing_is_left_on_a_connection(database_url: str) -> None:
    database = Database(PostgresOptions(database_url, pool_size=1, statement_cache=False))
    customer = await _customer(database)
    await _rename(database, customer)
    assert await database.fetch("select from pg_prepared_statements") == []
    (settings,) = await database.fetch(
        "select current_setting('statement_timeout') a, current_setting('idle_in_transaction_session_timeout') b"
    )
    assert tuple(settings) == ("0", "0")
    await database.close()
