"""Gateways for tests: real ones, in this process, on the worker's PostgreSQL and Valkey, reached over real sockets."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from aiohttp import ClientSession, web

from aizen_gateway.api.server import GatewayRunner
from aizen_gateway.app import create_app
from aizen_gateway.settings import Settings
from aizen_gateway.storage.postgres import Database, PostgresOptions

from .clients import JWT_SECRET, World

_instances = itertools.count(1)


@dataclass(slots=True)
class RunningGateway:
    """One instance that listens. `stop` ends it as a drained process would end, and may be called twice."""

    url: str
    app: web.Application
    runner: GatewayRunner
    stopped: bool = False

    async def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            await self.runner.cleanup()


StartGateway = Callable[..., Awaitable[RunningGateway]]
StartWorld = Callable[..., Awaitable[World]]


async def run_gateway(environment: dict[str, str]) -> RunningGateway:
    """Start an instance with the settings of `environment` on a free port."""
    app = create_app(Settings.from_env(environment))
    runner = GatewayRunner(app, shutdown_timeout=2.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    return RunningGateway(f"http://{host}:{port}", app, runner)


@pytest.fixture
async def start_gateway(database_url: str, redis_url: str) -> AsyncIterator[StartGateway]:
    """Call it for an instance; keyword arguments are environment variables. All of them share one Redis."""
    async with AsyncExitStack() as stack:

        async def start(**variables: str) -> RunningGateway:
            environment = {
                "DATABASE_URL": database_url,
                "REDIS_URL": redis_url,
                "SUPABASE_JWT_SECRET": JWT_SECRET,
                "AIZEN_INSTANCE_ID": f"test-{next(_instances)}",
            } | variables
            gateway = await run_gateway(environment)
            stack.push_async_callback(gateway.stop)
            return gateway

        yield start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> RunningGateway:
    """One instance with the default settings."""
    return await start_gateway()


@pytest.fixture
async def http() -> AsyncIterator[ClientSession]:
    """A client of HTTP that belongs to nobody."""
    async with ClientSession() as session:
        yield session


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The gateway's own way to the test's database, for operators' work and for looking inside."""
    opened = Database(PostgresOptions(database_url, pool_size=2))
    yield opened
    await opened.close()


@pytest.fixture
async def world(gateway: RunningGateway, http: ClientSession, database: Database) -> World:
    """One instance, one customer with an owner, an admin, a viewer and a service, and devices on demand."""
    return await World.create(gateway.url, http, database)


@pytest.fixture
def start_world(start_gateway: StartGateway, http: ClientSession, database: Database) -> StartWorld:
    """As `world`, at an instance with settings of the test's own; keyword arguments are environment variables."""

    async def start(**variables: str) -> World:
        return await World.create((await start_gateway(**variables)).url, http, database)

    return start
