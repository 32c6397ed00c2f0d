"""The servers of a soak: gateways in processes of their own on one PostgreSQL and one Valkey, and what they hold."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from aiohttp import ClientError, ClientSession
from redis.asyncio import Redis

from aizen_gateway.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from aizen_gateway.storage.migrate import migrate
from tests.support.clients import JWT_SECRET
from tests.support.processes import Process
from tests.support.programs import stable_port

GATEWAYS = 2
_READY_S = 30.0
_NUMBER = re.compile(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Level:
    """What one gateway holds at a moment. `channels` are its subscriptions, `connections` its connections to Redis."""

    rss_mib: float
    tasks: int
    channels: int
    connections: int
    sockets: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway and how it is reached."""

    name: str
    url: str
    metrics_url: str
    run: Process


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs."""

    database_url: str
    redis: Redis
    redis_port: int
    http: ClientSession
    gateways: Sequence[Gateway]

    @classmethod
    @asynccontextmanager
    async def built(cls, directory: Path) -> AsyncIterator[Stage]:
        """Inside, all servers run; their data are in `directory`."""
        async with AsyncExitStack() as stack:
            postgres = await EmbeddedPostgres.start(directory / "postgres", durable=False)
            stack.push_async_callback(postgres.stop)
            valkey = await EmbeddedValkey.start(directory / "valkey", durable=False)
            stack.push_async_callback(valkey.stop)
            await migrate(postgres.url)
            redis = await stack.enter_async_context(Redis.from_url(valkey.url, decode_responses=True))
            http = await stack.enter_async_context(ClientSession())
            gateways = []
            for number in range(GATEWAYS):
                gateway = await _start(f"soak-{number + 1}", postgres.url, valkey.url)
                stack.push_async_callback(gateway.run.kill)
                gateways.append(gateway)
            stage = cls(postgres.url, redis, valkey.port, http, gateways)
            await asyncio.gather(*map(stage._ready, gateways))
            yield stage

    async def _ready(self, gateway: Gateway) -> None:
        async with asyncio.timeout(_READY_S):
            while True:
                try:
                    async with self.http.get(f"{gateway.url}/readyz") as answer:
                        if answer.status == 200:
                            return
                except ClientError:
                    assert gateway.run.process.returncode is None, gateway.run.text
                await asyncio.sleep(0.1)

    async def levels(self) -> Mapping[str, Level]:
        """What each gateway holds now, by its name."""
        return {gateway.name: await self._level(gateway) for gateway in self.gateways}

    async def _level(self, gateway: Gateway) -> Level:
        numbers = await self._numbers(gateway)
        connections = psutil.Process(gateway.run.process.pid).net_connections("tcp")
        return Level(
            rss_mib=round(numbers["process_resident_memory_bytes"] / 2**20, 1),
            tasks=int(numbers["aizen_asyncio_tasks"]),
            channels=int(numbers["aizen_subscriber_channels"]),
            connections=sum(bool(found.raddr) and found.raddr.port == self.redis_port for found in connections),
            sockets=sum(int(numbers[f'aizen_sockets{{kind="{kind}"}}']) for kind in ("device", "customer")),
        )

    async def _numbers(self, gateway: Gateway) -> Mapping[str, float]:
        async with self.http.get(gateway.metrics_url) as answer:
            return {name: float(value) for name, value in _NUMBER.findall(await answer.text())}

    async def closes(self) -> Counter[str]:
        """How the sockets ended, by the gateways' close codes."""
        found: Counter[str] = Counter()
        for gateway in self.gateways:
            for name, value in (await self._numbers(gateway)).items():
                if name.startswith("aizen_sockets_closed_total"):
                    found["closed " + name.split('"')[1]] += int(value)
        return found

    async def subscriptions(self) -> int:
        """How many channels are subscribed to, by Redis's own account."""
        return len(await self.redis.pubsub_channels())

    def complaints(self) -> Counter[str]:
        """What the gateways logged as warnings and errors."""
        entries = (json.loads(line) for gateway in self.gateways for line in gateway.run.lines)
        return Counter(f"{entry['level']}: {entry['event']}" for entry in entries)


async def _start(name: str, database_url: str, redis_url: str) -> Gateway:
    port, metrics_port = stable_port(), stable_port()
    environment = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SUPABASE_JWT_SECRET": JWT_SECRET,
        "AIZEN_INSTANCE_ID": name,
        "AIZEN_PORT": str(port),
        "AIZEN_METRICS_BIND": f"127.0.0.1:{metrics_port}",
        "AIZEN_LOG_LEVEL": "warning",
        "AIZEN_LOG_FORMAT": "json",
        # One program plays all the people at once.
        "AIZEN_RATE_LIMIT_CUSTOMER": "0",
    }
    run = await Process.start("serve", environment=environment)
    return Gateway(name, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics", run)
