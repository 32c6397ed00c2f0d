"""Where the bench plays: a PostgreSQL, a Valkey, a gateway and the ceiling, each on its core, and devices to speak for.

The servers under test have one core to themselves, where there are two; the load generator, Valkey and PostgreSQL
share the other.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import psutil
from aiohttp import ClientError, ClientSession
from redis.asyncio import Redis

from aizen_gateway.dev.embedded import EmbeddedPostgres
from aizen_gateway.domain import secrets
from aizen_gateway.storage.device_sessions import DeviceSessions, SessionRules
from aizen_gateway.storage.migrate import migrate
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from tests.support.clients import JWT_SECRET, token_for
from tests.support.programs import stable_port

from .valkey import BenchValkey

_READY_S = 30.0
# A limit that nobody reaches still has to be counted.
_NO_LIMIT = "1000000000"
# Devices that are signed in at a time.
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Device:
    """A registered device that has signed in, and its open session."""

    id: str
    uid: UUID
    secret: str
    token: str
    session_id: UUID


@dataclass(frozen=True, slots=True)
class Server:
    """A process under test."""

    name: str
    port: int
    metrics_port: int
    process: asyncio.subprocess.Process

    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        return cpu_of(self.process.pid)

    def rss(self) -> int:
        """Bytes that it holds in memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def connections_to(self, port: int) -> int:
        """How many connections it has to a server on `port`."""
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return sum(one.raddr.port == port for one in found if one.raddr)

    async def end(self) -> None:
        """End it before the others."""
        await _end(self.process)


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@dataclass(slots=True)
class Stage:
    """Everything that runs. `jwt` is the token of the customer's owner, `valkey` a client of the bench's own."""

    database_url: str
    redis_url: str
    valkey: Redis
    valkey_pid: int
    valkey_port: int
    postgres_pid: int
    customer_id: UUID
    jwt: str
    cores: set[int]
    _directory: Path
    _stack: AsyncExitStack
    _store: RedisStore

    @classmethod
    @asynccontextmanager
    async def built(cls, directory: Path, cores: set[int] | None = None) -> AsyncIterator[Stage]:
        """Inside, the databases run, on `cores` or whatever there is; their data are in `directory`."""
        before = os.sched_getaffinity(0)
        everything = cores or before
        # What is started from here on inherits it; the servers under test are given theirs.
        os.sched_setaffinity(0, everything - {min(everything)} or everything)
        async with AsyncExitStack() as stack:
            stack.callback(os.sched_setaffinity, 0, before)
            postgres = await EmbeddedPostgres.start(directory / "postgres", durable=False)
            stack.push_async_callback(postgres.stop)
            valkey = await BenchValkey.start(directory / "valkey", durable=False)
            stack.push_async_callback(valkey.stop)
            await migrate(postgres.url)
            client = await stack.enter_async_context(Redis.from_url(valkey.url, decode_responses=True))
            store = RedisStore.connect(RedisOptions(valkey.url))
            stack.push_async_callback(store.close)
            customer_id, user_id = uuid4(), str(uuid4())
            stage = cls(
                database_url=postgres.url,
                redis_url=valkey.url,
                valkey=client,
                valkey_pid=_listener(valkey.port),
                valkey_port=valkey.port,
                postgres_pid=_listener(postgres.port),
                customer_id=customer_id,
                jwt=token_for(user_id, customer=str(customer_id), role="owner", ttl=86_400),
                cores=everything,
                _directory=directory,
                _stack=stack,
                _store=store,
            )
            async with stage.database() as database:
                await database.execute("insert into aizen.customers (id, name) values ($1, 'Bench')", customer_id)
            yield stage

    @asynccontextmanager
    async def another(self) -> AsyncIterator[Stage]:
        """Inside, other databases run beside these, on the same cores."""
        async with Stage.built(self._directory / "another", self.cores) as stage:
            yield stage

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the bench's own."""
        connection = await asyncpg.connect(self.database_url)
        try:
            yield connection
        finally:
            await connection.close()

    @property
    def server_cores(self) -> set[int]:
        """The core of the servers under test."""
        return {min(self.cores)}

    @property
    def store(self) -> RedisStore:
        """The gateway's own way to Valkey, at the bench's side."""
        return self._store

    @property
    def sessions(self) -> DeviceSessions:
        """Sessions of devices, as the gateway opens them."""
        return DeviceSessions(self._store, SessionRules(604_800, 2_592_000, 0))

    def valkey_cpu(self) -> float:
        """Seconds of CPU that Valkey has used."""
        return cpu_of(self.valkey_pid)

    def postgres_cpu(self) -> float:
        """Seconds of CPU that PostgreSQL has used, its connections' processes included."""
        server = psutil.Process(self.postgres_pid)
        times = server.cpu_times()
        used = cpu_of(server.pid) + float(times.children_user + times.children_system)
        for child in server.children():
            with suppress(psutil.NoSuchProcess):
                used += cpu_of(child.pid)
        return used

    async def devices(self, prefix: str, count: int) -> Sequence[Device]:
        """Make `count` registered devices, signed in, each with an active session."""
        now = datetime.now(UTC)
        made: list[Device] = []
        names = iter([f"{prefix}-{number}" for number in range(count)])

        async def sign_in() -> None:
            for device_id in names:
                uid = uuid4()
                token = await self.sessions.open(device_id, uid, self.customer_id, 1)
                assert token is not None
                made.append(Device(device_id, uid, secrets.new_secret(), token, uuid4()))

        await asyncio.gather(*(sign_in() for _ in range(_AT_ONCE)))
        async with self.database() as database:
            await database.executemany(
                """insert into aizen.devices (uid, id, customer_id, name, secret_hash, secret_used_at, registered_at)
                   values ($1, $2, $3, $2, $4, $5, $5)""",
                [(one.uid, one.id, self.customer_id, secrets.hash_text(one.secret), now) for one in made],
            )
            await database.executemany(
                """insert into aizen.sessions (id, customer_id, device_uid, device_id, type, status, created_by,
                                               created_by_type, created_at, expires_at)
                   values ($1, $2, $3, $4, 'diagnostic', 'active', 'bench', 'user', $5, $6)""",
                [(one.session_id, self.customer_id, one.uid, one.id, now, now + timedelta(days=1)) for one in made],
            )
        return made

    async def gateway(self, name: str = "gateway", **variables: str) -> Server:
        """Start a gateway with its settings as they come, but for limits that nobody reaches."""
        limits = ("DEVICE", "CUSTOMER", "AUTH", "SOCKET")
        return await self._start(
            name,
            ["-m", "aizen_gateway", "serve"],
            {
                "AIZEN_INSTANCE_ID": name,
                **{f"AIZEN_RATE_LIMIT_{limit}": _NO_LIMIT for limit in limits},
                **variables,
            },
        )

    async def ceiling(self) -> Server:
        """Start the smallest application that does the same input and output."""
        return await self._start("ceiling", ["-m", "tests.bench.ceiling"], {})

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Server, Server]]:
        """Inside, a new gateway and a new ceiling run."""
        gateway, ceiling = await self.gateway(), await self.ceiling()
        try:
            yield gateway, ceiling
        finally:
            await gateway.end()
            await ceiling.end()

    async def _start(self, name: str, arguments: Sequence[str], variables: Mapping[str, str]) -> Server:
        port, metrics_port = stable_port(), stable_port()
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path[:1]),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "SUPABASE_JWT_SECRET": JWT_SECRET,
            "AIZEN_PORT": str(port),
            "AIZEN_METRICS_BIND": f"127.0.0.1:{metrics_port}",
            **variables,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._stack.push_async_callback(_end, process)
        os.sched_setaffinity(process.pid, self.server_cores)
        server = Server(name, port, metrics_port, process)
        await _ready(server)
        return server


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


async def _ready(server: Server) -> None:
    async with asyncio.timeout(_READY_S), ClientSession() as http:
        while True:
            try:
                async with http.get(f"http://127.0.0.1:{server.port}/readyz") as answer:
                    if answer.status == 200:
                        return
            except ClientError:
                assert server.process.returncode is None, f"{server.name} ended with {server.process.returncode}"
            await asyncio.sleep(0.1)


def _listener(port: int) -> int:
    for found in psutil.net_connections("tcp"):
        if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid is not None:
            return found.pid
    raise LookupError(f"nobody listens on {port}")
