"""Makes PostgreSQL and Redis ready for the demonstration, or says which variable names one that cannot be used."""

from __future__ import annotations

import contextlib
from uuid import UUID

import asyncpg
from redis.exceptions import RedisError

from aizen_gateway.dev.demo_customer import Identities
from aizen_gateway.dev.demo_environment import DemoFailed
from aizen_gateway.domain.errors import GatewayError, Unavailable
from aizen_gateway.domain.values import Role
from aizen_gateway.redaction import redact_text
from aizen_gateway.services.operators import CustomerExists, Operators
from aizen_gateway.storage.migrate import MigrationFailed, migrate
from aizen_gateway.storage.postgres import Database, PostgresOptions
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore

CUSTOMER_NAME = "Demo customer"


async def prepare_database(url: str, identities: Identities) -> list[str]:
    """Apply the schema, make the customer and its members, and return the migrations that were applied.

    Raises `DemoFailed`.
    """
    try:
        applied = await migrate(url)
        database = Database(PostgresOptions(url, pool_size=1, statement_cache=False))
        try:
            await _make_customer(Operators(database), identities)
        finally:
            await database.close()
    except (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DemoFailed(f"DATABASE_URL: the database cannot be used: {_words(error)}") from None
    except (MigrationFailed, GatewayError) as error:
        raise DemoFailed(f"the database cannot be prepared: {_words(error)}") from None
    return applied


async def check_redis(url: str) -> None:
    """Make sure that Redis can be used. Raises `DemoFailed`."""
    store = RedisStore.connect(RedisOptions(url))
    try:
        await store.call("PING")
    except Unavailable as error:
        raise DemoFailed(f"REDIS_URL: Redis cannot be used: {_words(error.__cause__ or error)}") from None
    except (RedisError, ValueError) as error:
        raise DemoFailed(f"REDIS_URL: Redis cannot be used: {_words(error)}") from None
    finally:
        await store.close()


async def _make_customer(operators: Operators, identities: Identities) -> None:
    """Make them where they are missing."""
    customer = UUID(identities.customer_id)
    with contextlib.suppress(CustomerExists):
        await operators.create_customer(CUSTOMER_NAME, customer, second_approver=True)
    await operators.add_member(customer, UUID(identities.owner_id), Role.OWNER)
    await operators.add_member(customer, UUID(identities.admin_id), Role.ADMIN)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {redact_text(str(error))}".splitlines()[0]
