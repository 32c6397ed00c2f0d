"""The gateway as operators run it: `python -m aizen_gateway` in processes of its own, which no test leaves behind."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from .clients import JWT_SECRET

Found = TypeVar("Found")

ROOT = Path(__file__).parents[2]
# Seconds until what a test waits for is taken for lost: far more than it takes on a busy machine.
PATIENCE_S = 30.0
# Becomes the gateway; the kernel ends it with the tests on Linux. The process id is known here alone, so what the
# service manager would say about it is said here.
_LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
descriptor = int(sys.argv[1])
if descriptor >= 0:
    os.dup2(descriptor, 3)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-m", "aizen_gateway", *sys.argv[2:]])
"""
_NO_DESCRIPTOR = -1
_LONGEST_LINE = 1024 * 1024
_instances = itertools.count(1)


@dataclass(slots=True)
class Process:
    """`aizen-gateway` with some arguments. `lines` grows with what it writes to stderr; all ends with the test."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, *arguments: str, environment: Mapping[str, str], descriptor: int = _NO_DESCRIPTOR) -> Process:
        """Start it with `environment` alone; `descriptor` is passed as a service manager passes a socket."""
        inherited = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(descriptor), *arguments),
            env=inherited | dict(environment),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=() if descriptor < 0 else (descriptor,),
            limit=_LONGEST_LINE,
        )
        started = cls(process)
        started._reading = asyncio.create_task(started._read())
        return started

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode().rstrip("\n"))
            self._more.set()
        self._more.set()

    @property
    def text(self) -> str:
        """All of stderr so far."""
        return "\n".join(self.lines)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The log lines so far; every line of stderr must be one."""
        assert all(line.startswith("{") for line in self.lines), self.text
        return [json.loads(line) for line in self.lines]

    async def logged(self, event: str, after: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait for a log line of `event` with `fields`, among those from number `after` on."""

        def found() -> dict[str, Any] | None:
            lines = (entry for entry in self.entries[after:] if entry["event"] == event)
            return next((entry for entry in lines if fields.items() <= entry.items()), None)

        return await self._until(found, event)

    async def said(self, text: str) -> str:
        """Wait for a line that holds `text`, whatever its form."""
        return await self._until(lambda: next((line for line in self.lines if text in line), None), text)

    async def _until(self, find: Callable[[], Found | None], what: str) -> Found:
        assert self._reading is not None
        async with asyncio.timeout(PATIENCE_S):
            while (found := find()) is None:
                assert not self._reading.done(), f"it ended without saying {what!r}:\n{self.text}"
                self._more.clear()
                await self._more.wait()
        return found

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end and return its status; all it wrote to stderr is in `lines` then."""
        async with asyncio.timeout(PATIENCE_S):
            status = await self.process.wait()
            assert self._reading is not None
            await self._reading
        return status

    async def stop(self) -> int:
        """Ask it to stop, as a service manager does, and return its status."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        """End it at once, whatever it is doing; does nothing when it has ended."""
        with suppress(ProcessLookupError):
            self.process.kill()
        assert self.process.stdout is not None
        assert self._reading is not None
        await asyncio.gather(self.process.stdout.read(), self._reading, self.process.wait())


@dataclass(slots=True)
class GatewayProcess:
    """`aizen-gateway serve` that listens; `url` is empty for a unix socket."""

    run: Process
    url: str

    @property
    def pid(self) -> int:
        return self.run.process.pid


StartProcess = Callable[..., Awaitable[Process]]
StartGatewayProcess = Callable[..., Awaitable[GatewayProcess]]


@pytest.fixture
async def start_process() -> AsyncIterator[StartProcess]:
    """Call it with arguments of `aizen-gateway` and, by keyword, its environment and a descriptor to pass."""
    started: list[Process] = []

    async def start(*arguments: str, environment: Mapping[str, str], descriptor: int = _NO_DESCRIPTOR) -> Process:
        process = await Process.start(*arguments, environment=environment, descriptor=descriptor)
        started.append(process)
        return process

    yield start
    for process in started:
        await process.kill()


@pytest.fixture
def serving_environment(database_url: str, redis_url: str) -> dict[str, str]:
    """What an instance needs to serve: the worker's servers, and a free port."""
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SUPABASE_JWT_SECRET": JWT_SECRET,
        "AIZEN_PORT": "0",
    }


@pytest.fixture
def start_gateway_process(start_process: StartProcess, serving_environment: dict[str, str]) -> StartGatewayProcess:
    """Call it for an instance that listens; keyword arguments are environment variables."""

    async def start(descriptor: int = _NO_DESCRIPTOR, **variables: str) -> GatewayProcess:
        own = {"AIZEN_INSTANCE_ID": f"process-{next(_instances)}"}
        process = await start_process("serve", environment=serving_environment | own | variables, descriptor=descriptor)
        listening = await process.logged("listening")
        return GatewayProcess(process, listening["addresses"][0])

    return start


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command that has ended printed, and its status."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


async def finished(process: Process) -> Finished:
    """Wait for the end of a command."""
    assert process.process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        stdout = await process.process.stdout.read()
        status = await process.ended()
    return Finished(status, stdout.decode(), process.text)
