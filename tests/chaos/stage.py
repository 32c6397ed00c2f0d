"""What is broken: gateways in processes of their own on one PostgreSQL and one Valkey.

The first gateway reaches its servers through lines that can be broken, the others directly; the last one's wall clock
is an hour ahead, where libfaketime is installed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import ClientError, ClientSession

from aizen_gateway.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from aizen_gateway.storage.migrate import migrate
from tests.support.clients import JWT_SECRET
from tests.support.processes import Process
from tests.support.programs import stable_port
from tests.support.proxy import Wire

GATEWAYS = 2
AHEAD_S = 3600.0
_READY_S = 30.0
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - what libfaketime makes in it is removed


def fake_clock() -> Mapping[str, str]:
    """The environment of a process whose wall clock is ahead; empty where libfaketime is missing."""
    for place in _LIBRARIES:
        for library in sorted(Path(place).glob("**/faketime/libfaketimeMT.so.1")):
            return {
                "LD_PRELOAD": str(library),
                "FAKETIME": f"+{AHEAD_S:.0f}s",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
    return {}


@dataclass(slots=True)
class Gateway:
    """One instance. It keeps its port when it is started again."""

    name: str
    port: int
    environment: Mapping[str, str]
    run: Process | None = None
    errors: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, and return when it listens."""
        self.run = await Process.start("serve", environment=self.environment)
        async with asyncio.timeout(_READY_S):
            while True:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                assert self.run.process.returncode is None, self.run.text
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """End it at once. What it logged as errors is kept."""
        if self.run is None:
            return
        await self.run.kill()
        self.errors += _errors(self.run.lines)
        _forget_clock(self.run.process.pid)
        self.run = None

    def complaints(self) -> list[str]:
        """What it logged as errors, in all its lives."""
        return [*self.errors, *(_errors(self.run.lines) if self.run else ())]


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs. `wires` are the first gateway's lines, to PostgreSQL and to Valkey."""

    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    gateways: Sequence[Gateway]
    postgres_wire: Wire
    valkey_wire: Wire
    http: ClientSession
    has_fake_clock: bool

    @classmethod
    @asynccontextmanager
    async def built(cls, directory: Path, http: ClientSession) -> AsyncIterator[Stage]:
        """Inside, all servers run; their data are in `directory`."""
        async with AsyncExitStack() as stack:
            postgres = await EmbeddedPostgres.start(directory / "postgres", durable=False)
            stack.push_async_callback(postgres.stop)
            valkey = await EmbeddedValkey.start(directory / "valkey", durable=False)
            stack.push_async_callback(valkey.stop)
            await migrate(postgres.url)
            postgres_wire = await stack.enter_async_context(Wire.to(postgres.port))
            valkey_wire = await stack.enter_async_context(Wire.to(valkey.port))
            clock = fake_clock()
            gateways = []
            for number in range(GATEWAYS):
                is_first, is_last = number == 0, number == GATEWAYS - 1
                servers = {
                    "DATABASE_URL": postgres_wire.through(postgres.url) if is_first else postgres.url,
                    "REDIS_URL": valkey_wire.through(valkey.url) if is_first else valkey.url,
                }
                gateway = _gateway(number + 1, {**servers, **(clock if is_last else {})})
                stack.push_async_callback(gateway.kill)
                gateways.append(gateway)
            stage = cls(postgres, valkey, gateways, postgres_wire, valkey_wire, http, bool(clock))
            await asyncio.gather(*(gateway.start() for gateway in gateways))
            await asyncio.gather(*map(stage._ready, gateways))
            yield stage

    @property
    def names(self) -> frozenset[str]:
        """The names of all gateways."""
        return frozenset(gateway.name for gateway in self.gateways)

    async def _ready(self, gateway: Gateway) -> None:
        async with asyncio.timeout(_READY_S):
            while True:
                with suppress(ClientError):
                    async with self.http.get(f"{gateway.url}/readyz") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)

    async def clock_of(self, gateway: Gateway) -> float:
        """How many seconds the gateway's wall clock is ahead of ours."""
        async with self.http.get(f"{gateway.url}/healthz") as answer:
            told = datetime.fromisoformat((await answer.json())["timestamp"])
        return (told - datetime.now(UTC)).total_seconds()


def _forget_clock(pid: int) -> None:
    """Remove what libfaketime leaves of a process that was killed."""
    for left in _SHARED_MEMORY.glob(f"*faketime_*_{pid}"):
        left.unlink(missing_ok=True)


def _errors(lines: Iterable[str]) -> list[str]:
    """What tells of the gateway's own faults: lines of level error, and those that are no log lines at all."""
    found = []
    for line in lines:
        entry = json.loads(line) if line.startswith("{") else {"level": "error", "event": line}
        if entry["level"] in ("error", "critical"):
            cause = entry.get("exception", "").strip().rpartition("\n")[2]
            found.append(" ".join(filter(None, (entry["event"], entry.get("part"), _ADDRESS.sub("0x", cause)))))
    return found


def _gateway(number: int, environment: Mapping[str, str]) -> Gateway:
    name, port = f"gateway-{number}", stable_port()
    common = {
        "SUPABASE_JWT_SECRET": JWT_SECRET,
        "AIZEN_INSTANCE_ID": name,
        "AIZEN_PORT": str(port),
        "AIZEN_LOG_LEVEL": "warning",
        "AIZEN_LOG_FORMAT": "json",
        "AIZEN_SESSION_TTL": "604800",
        # One program plays all the people and devices at once.
        "AIZEN_RATE_LIMIT_CUSTOMER": "0",
        "AIZEN_RATE_LIMIT_DEVICE": "0",
        "AIZEN_RATE_LIMIT_SOCKET": "0",
    }
    return Gateway(name, port, common | dict(environment))
