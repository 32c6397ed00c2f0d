"""The PostgreSQL and the Valkey of a test worker, and what a test gets of them: a database and an empty Valkey.

Each worker has its own pair, since tests empty Valkey and pub/sub knows no databases. Servers start when the first test
asks for one and belong to no event loop; they are killed with the worker, however it ends.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import asyncpg
import psutil
import pytest
import redis

from aizen_gateway.dev.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from aizen_gateway.storage.migrate import migrate

FreshPostgres = Callable[[], Awaitable[EmbeddedPostgres]]
FreshValkey = Callable[[], Awaitable[EmbeddedValkey]]

_Server = TypeVar("_Server", bound=EmbeddedServer)
_TEMPLATE = "template_migrated"

_PREFIX = "aizen-tests-"
_MEMORY = Path("/dev/shm")  # noqa: S108 - what is made in it has a random name
# Bytes; a worker uses a fifth of it, and more while tests run servers of their own.
_ROOM = 2 * 1024**3


class Databases:
    """Makes databases with the schema by copying one that was migrated once. Lives in the loop it was opened in."""

    def __init__(self, server: EmbeddedPostgres, connection: asyncpg.Connection) -> None:
        self._server = server
        self._connection = connection
        self._numbers = itertools.count(1)

    @classmethod
    async def open(cls, server: EmbeddedPostgres) -> Databases:
        """Connect to the server and migrate the template."""
        connection = await asyncpg.connect(server.url)
        await connection.execute(f"create database {_TEMPLATE}")
        databases = cls(server, connection)
        await migrate(databases._url(_TEMPLATE))
        return databases

    async def create(self) -> str:
        """Return the URL of a new database that holds the schema and nothing else."""
        name = f"test_{next(self._numbers)}"
        # As fast as the other strategy, which makes checkpoints for the whole server.
        await self._connection.execute(f"create database {name} template {_TEMPLATE} strategy wal_log")
        return self._url(name)

    async def drop(self, url: str) -> None:
        """Remove the database, and cut the connections a failed test may have left."""
        await self._connection.execute(f"drop database {url.rpartition('/')[2]} with (force)")

    async def close(self) -> None:
        await self._connection.close()

    def _url(self, name: str) -> str:
        return f"{self._server.url.rpartition('/')[0]}/{name}"


@pytest.fixture(scope="session")
def session_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that outlives each test's own, for what is made once. It never becomes the current one."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """Where the servers keep their data: in memory where there is room for it, and open to an unprivileged server.

    A database is some 300 files, and disk file systems can be slow at making files soon after others were deleted:
    on ext4 a test's database takes 80 ms on disk and 10 ms in memory.
    """
    place = _MEMORY if _has_room(_MEMORY) else Path(tempfile.gettempdir())
    for left in place.glob(f"{_PREFIX}*"):
        if not psutil.pid_exists(int(left.name.split("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=place) as directory:
        path = Path(directory)
        path.chmod(0o711)
        yield path


def _has_room(place: Path) -> bool:
    return os.access(place, os.W_OK) and shutil.disk_usage(place).free > _ROOM


@pytest.fixture(scope="session")
def postgres_server(session_loop: asyncio.AbstractEventLoop, server_dir: Path) -> Iterator[EmbeddedPostgres]:
    """The worker's PostgreSQL; `database_url` is what most tests want."""
    server = session_loop.run_until_complete(EmbeddedPostgres.start(server_dir / "postgres", durable=False))
    yield server
    session_loop.run_until_complete(server.stop())


@pytest.fixture(scope="session")
def valkey_server(session_loop: asyncio.AbstractEventLoop, server_dir: Path) -> Iterator[EmbeddedValkey]:
    """The worker's Valkey; `redis_url` is what most tests want."""
    server = session_loop.run_until_complete(EmbeddedValkey.start(server_dir / "valkey", durable=False))
    yield server
    session_loop.run_until_complete(server.stop())


@pytest.fixture(scope="session")
def databases(session_loop: asyncio.AbstractEventLoop, postgres_server: EmbeddedPostgres) -> Iterator[Databases]:
    opened = session_loop.run_until_complete(Databases.open(postgres_server))
    yield opened
    session_loop.run_until_complete(opened.close())


@pytest.fixture
def database_url(session_loop: asyncio.AbstractEventLoop, databases: Databases) -> Iterator[str]:
    """A database of the test's own: migrated, empty, gone afterwards."""
    url = session_loop.run_until_complete(databases.create())
    yield url
    session_loop.run_until_complete(databases.drop(url))


@pytest.fixture(scope="session")
def _valkey_client(valkey_server: EmbeddedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_server.url) as client:
        yield client


@pytest.fixture
def redis_url(valkey_server: EmbeddedValkey, _valkey_client: redis.Redis) -> str:
    """The worker's Valkey, emptied, and without a script that another test has loaded."""
    _valkey_client.flushall()
    _valkey_client.script_flush()
    return valkey_server.url


@pytest.fixture
def fresh_valkey(session_loop: asyncio.AbstractEventLoop, server_dir: Path) -> Iterator[FreshValkey]:
    """Call it for a Valkey of the test's own, to be killed, paused or restarted."""
    with _own_servers(EmbeddedValkey, session_loop, server_dir) as start:
        yield start


@pytest.fixture
def fresh_postgres(session_loop: asyncio.AbstractEventLoop, server_dir: Path) -> Iterator[FreshPostgres]:
    """Call it for a migrated PostgreSQL of the test's own, to be killed, paused or restarted."""
    with _own_servers(EmbeddedPostgres, session_loop, server_dir) as start:

        async def start_migrated() -> EmbeddedPostgres:
            server = await start()
            await migrate(server.url)
            return server

        yield start_migrated


@contextmanager
def _own_servers(
    kind: type[_Server], loop: asyncio.AbstractEventLoop, directory: Path
) -> Iterator[Callable[[], Awaitable[_Server]]]:
    started: list[_Server] = []
    numbers = itertools.count(1)

    async def start() -> _Server:
        server = await kind.start(Path(own, str(next(numbers))), durable=False)
        started.append(server)
        return server

    with tempfile.TemporaryDirectory(dir=directory) as own:
        Path(own).chmod(0o711)
        yield start
        for server in started:
            loop.run_until_complete(server.stop())
