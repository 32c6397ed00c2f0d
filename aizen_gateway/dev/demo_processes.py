"""The programs of the demonstration: PostgreSQL, Valkey, the gateway and the device agent, each a child of ours.

None of them outlives this process (`child`), and none can end unnoticed: while something goes on in `watch_over`, the
end of any program ends it with a line that says which and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import aiohttp

from aizen_gateway.dev import child
from aizen_gateway.dev.demo_environment import DataFolder, DemoEnvironment, DemoFailed
from aizen_gateway.dev.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from aizen_gateway.redaction import redact_text

_T = TypeVar("_T")
_START_S = 20.0
_STOP_S = 10.0
_PREDECESSOR_S = 10.0
_POLL_S = 0.05
_WATCH_S = 0.1
_PROBE_S = 3.0


@dataclass(frozen=True, slots=True)
class Program:
    """One running child, what a person calls it, and where its log is."""

    title: str
    process: subprocess.Popen[bytes]
    log: Path

    def ending(self) -> str:
        """How it ended and what it said last."""
        return f"{self.title} ended with status {self.process.returncode}: {_last_words(self.log)}\nits log: {self.log}"


class Processes:
    """All programs of one demonstration. Leaving the block ends them, the newest first."""

    def __init__(self, folder: DataFolder, environment: DemoEnvironment) -> None:
        self._folder = folder
        self._environment = environment
        self._stack = contextlib.AsyncExitStack()
        self._watched: list[Program] = []

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watched.clear()
        await self._stack.aclose()

    async def start_postgres(self, *, fresh: bool) -> str:
        """Start the embedded PostgreSQL and return its URL. Raises `EmbeddedServerError`."""
        return await self._embedded(EmbeddedPostgres, "postgres", fresh)

    async def start_valkey(self, *, fresh: bool) -> str:
        """Start the embedded Valkey and return its URL. Raises `EmbeddedServerError`."""
        return await self._embedded(EmbeddedValkey, "valkey", fresh)

    async def _embedded(self, kind: type[EmbeddedPostgres] | type[EmbeddedValkey], name: str, fresh: bool) -> str:
        place = self._folder.path / name
        server: EmbeddedServer = await kind.start(place, fresh=fresh)
        self._stack.push_async_callback(server.stop)
        self._watched.append(Program(kind.title, server.process, place / "server.log"))
        return server.url

    async def start_gateway(self, http: aiohttp.ClientSession, variables: dict[str, str]) -> None:
        """Start the gateway and return once it is ready. Raises `DemoFailed`, which says what it waits for."""
        # Killed with us: what it has answered is durable, and its port is free at once.
        gateway = self._spawn("the gateway", ["serve"], variables, "gateway.log", death_signal=signal.SIGKILL)
        # The second signal cuts a drain short that waits for somebody's open request.
        self._stack.push_async_callback(child.stop, gateway.process, (signal.SIGTERM, signal.SIGTERM), _STOP_S / 2)
        self._watched.append(gateway)
        await self.watch_over(self._until_ready(http, gateway))

    async def _until_ready(self, http: aiohttp.ClientSession, gateway: Program) -> None:
        deadline = monotonic() + _START_S
        missing = "it does not answer"
        while monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                timeout = aiohttp.ClientTimeout(total=_PROBE_S)
                async with http.get(f"{self._environment.base_url}/readyz", timeout=timeout) as response:
                    if response.status == 200:
                        return
                    errors = (await response.json()).get("errors", {})
                    missing = "; ".join(f"{name}: {why}" for name, why in errors.items())
            await asyncio.sleep(_POLL_S)
        raise DemoFailed(f"the gateway is not ready after {_START_S:.0f} s: {missing}\nits log: {gateway.log}")

    async def start_agent(self, device_id: str, name: str, activation_code: str | None) -> Program:
        """Start the device agent. It is not watched before `watch`: it may be turned away. Raises `DemoFailed`."""
        await self._until_predecessor_is_gone()
        options = ["--gateway", self._environment.base_url, "--device-id", device_id, "--name", name]
        options += ["--state-dir", str(self._folder.agent), "--log-format", "json"]
        agent = self._spawn(
            "the device agent",
            ["agent", *options, *(["--code-stdin"] if activation_code else [])],
            self._environment.of_agent(),
            "agent.log",
            # In order, with the tools that it runs.
            death_signal=signal.SIGTERM,
            stdin=f"{activation_code or ''}\n".encode(),
        )
        self._stack.push_async_callback(child.stop, agent.process, (signal.SIGTERM,), _STOP_S)
        return agent

    def watch(self, program: Program) -> None:
        """From now on its end is trouble."""
        self._watched.append(program)

    async def watch_over(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do the work while all programs run. Raises `DemoFailed` when one ends before it is done."""
        working = asyncio.create_task(work)
        watching = asyncio.create_task(self._first_to_end())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                # It is the cause also when the work failed in the same moment.
                raise DemoFailed(watching.result().ending())
            try:
                return working.result()
            except DemoFailed:
                # What we were talking to may just have gone away.
                await asyncio.wait({watching}, timeout=3 * _WATCH_S)
                if watching.done():
                    raise DemoFailed(watching.result().ending()) from None
                raise
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _first_to_end(self) -> Program:
        while True:
            for program in self._watched:
                if program.process.poll() is not None:
                    await child.settle()
                    return program
            await asyncio.sleep(_WATCH_S)

    def _spawn(
        self,
        title: str,
        arguments: list[str],
        variables: dict[str, str],
        log: str,
        *,
        death_signal: signal.Signals,
        stdin: bytes = b"",
    ) -> Program:
        path = self._folder.path / log
        command = [sys.executable, "-m", "aizen_gateway", *arguments]
        process = child.spawn(
            command, log=path, death_signal=death_signal, account=None, stdin=stdin, environment=variables
        )
        return Program(title, process, path)

    async def _until_predecessor_is_gone(self) -> None:
        """Let the agent of a run that was killed finish its own end: two cannot have one state folder."""
        self._folder.agent.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self._folder.agent / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        deadline = monotonic() + _PREDECESSOR_S
        try:
            while monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                await asyncio.sleep(_POLL_S)
        finally:
            os.close(lock)


def _last_words(log: Path) -> str:
    """The last line of a log, without what only machines read."""
    lines = child.tail(log).splitlines() or ["it has said nothing"]
    try:
        entry = json.loads(lines[-1])
        words = [str(entry[name]) for name in ("event", "reason") if name in entry]
    except (ValueError, TypeError):
        return redact_text(lines[-1])
    return ": ".join(words) or redact_text(lines[-1])
