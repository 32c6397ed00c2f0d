"""What the embedded servers have in common: a directory of their own, a port, a start that waits, a stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import ClassVar, Self

from . import child, unprivileged

HOST = "127.0.0.1"
# Below the range from which systems pick local ports of outgoing connections (32768 on Linux, 49152 elsewhere). A
# client that keeps trying a port of that range while the server is away can get connected to itself and keep the port.
_PORTS = range(16_000, 32_000)
_PORT_ATTEMPTS = 5
_PORT_TAKEN = "Address already in use"

# Recovery after a crash is part of a start.
START_S = 60.0
_STOP_S = 10.0
_PREDECESSOR_S = 10.0
_READY_POLL_S = 0.02


class EmbeddedServerError(Exception):
    """A server cannot be started. The text says why, with the last lines of the server's own log where it has any."""


class _PortTakenError(EmbeddedServerError):
    """Somebody else took the port between our choice and the server's start."""


class EmbeddedServer(ABC):
    """One server that runs as our child, and the directory that is its own.

    `data_dir` holds `data/` (what the server keeps), `server.log` (of its last start) and `lock` (held while this
    object runs it). Instances come from `start`.
    """

    title: ClassVar[str]
    _stop_signals: ClassVar[tuple[signal.Signals, ...]]

    def __init__(self, data_dir: Path, *, durable: bool) -> None:
        self.data_dir = data_dir.absolute()
        self.durable = durable
        self.port = 0
        self._store = self.data_dir / "data"
        # What is being made or being removed; a start that was cut short is never taken for complete data.
        self._unfinished = self.data_dir / "data.unfinished"
        self._log = self.data_dir / "server.log"
        self._password = secrets.token_urlsafe(24)
        self._account: unprivileged.Account | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    @classmethod
    async def start(cls, data_dir: Path, *, durable: bool = True, fresh: bool = False, port: int | None = None) -> Self:
        """Start a server on `data_dir`, which is made when missing, and return it once it answers.

        `durable` keeps data through a crash of the machine. Without it, which is for tests, PostgreSQL keeps them
        through a crash of its own, Valkey not at all, and the end of this process kills the server at once. `fresh`
        forgets what earlier runs left. `port` is tried first; a free one is taken when it is None or in use. Raises
        `EmbeddedServerError`.

        Call it from a thread that lives as long as the server is needed, such as the main thread.
        """
        server = cls(data_dir, durable=durable)
        try:
            server._take_lock()
            await server._await_predecessor()
            if fresh:
                await asyncio.to_thread(server._forget)
            await server._prepare()
            await server._launch_anywhere(port)
        except OSError as error:
            await server.stop()
            raise EmbeddedServerError(f"{cls.title} cannot be started in {server.data_dir}: {error}") from error
        except BaseException:
            await server.stop()
            raise
        return server

    @property
    @abstractmethod
    def url(self) -> str:
        """What clients connect to, the password included."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running server. Raises `EmbeddedServerError` when it has been stopped."""
        if self._process is None:
            raise EmbeddedServerError(f"{self.title} in {self.data_dir} is not running")
        return self._process

    @property
    def pid(self) -> int:
        """The server's own process id; a test may pause it by SIGSTOP or kill it."""
        return self.process.pid

    async def wait(self) -> int:
        """Wait until the server ends, by `stop` or by itself, and return its status (negative: the signal)."""
        status = await child.ended(self.process)
        assert status is not None
        return status

    async def stop(self) -> None:
        """End the server in order, and by force if that takes over 10 s; does nothing when it is not running."""
        try:
            await self._end()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def restart(self) -> None:
        """End the server, if it still runs, and start it on the same port with the same password.

        What a Valkey that is not durable held is gone. Raises `EmbeddedServerError`.
        """
        await self._end()
        await self._await_predecessor()
        await self._launch()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @abstractmethod
    async def _prepare(self) -> None:
        """Make the data directory what the server expects."""

    @abstractmethod
    def _command(self) -> tuple[list[str], bytes]:
        """The command line, and what the server reads from its standard input."""

    @abstractmethod
    async def _answers(self) -> bool:
        """Whether a client can work with the server now."""

    def _death_signal(self) -> signal.Signals:
        """What the kernel sends when we are gone. SIGKILL also ends a server that a test has paused."""
        return self._stop_signals[0] if self.durable else signal.SIGKILL

    def _take_lock(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 20).decode() or "unknown"
            raise EmbeddedServerError(
                f"{self.title} already runs on {self.data_dir}, started by process {holder}; "
                "stop that one or choose another directory"
            ) from None
        os.truncate(self._lock, 0)
        os.write(self._lock, str(os.getpid()).encode())

    def _forget(self) -> None:
        self._clear_unfinished()
        if self._store.exists():
            self._store.rename(self._unfinished)
            self._clear_unfinished()

    def _clear_unfinished(self) -> None:
        if self._unfinished.exists():
            shutil.rmtree(self._unfinished)

    async def _await_predecessor(self) -> None:
        """Let what a killed starter left finish its own end; two servers on the same data would destroy them."""
        deadline = monotonic() + _PREDECESSOR_S
        while left := await asyncio.to_thread(child.working_in, self._store, self._unfinished):
            if monotonic() > deadline:
                raise EmbeddedServerError(
                    f"another {self.title} works on {self.data_dir}, in process {left[0]}; stop it first"
                )
            await asyncio.sleep(_READY_POLL_S)

    async def _launch_anywhere(self, preferred: int | None) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            self.port = preferred if preferred and attempt == 0 else _free_port()
            with contextlib.suppress(_PortTakenError):
                return await self._launch()
        raise EmbeddedServerError(f"{self.title} found no free port on {HOST} in {_PORT_ATTEMPTS} attempts")

    async def _launch(self) -> None:
        command, stdin = self._command()
        self._process = process = child.spawn(
            command, log=self._log, death_signal=self._death_signal(), account=self._account, stdin=stdin
        )
        deadline = monotonic() + START_S
        while not await self._answers():
            if process.poll() is not None:
                await child.settle()
                taken = _PORT_TAKEN in child.tail(self._log)
                raise (_PortTakenError if taken else EmbeddedServerError)(
                    self._explained(f"{self.title} ended as soon as it was started (status {process.returncode})")
                )
            if monotonic() > deadline:
                raise EmbeddedServerError(self._explained(f"{self.title} does not answer after {START_S:.0f} s"))
            await asyncio.sleep(_READY_POLL_S)

    async def _end(self) -> None:
        if self._process is not None:
            await child.stop(self._process, self._stop_signals, _STOP_S)
            self._process = None

    def _explained(self, what: str) -> str:
        return f"{what}; the end of {self._log}:\n{child.tail(self._log)}"


def _free_port() -> int:
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise EmbeddedServerError(f"no free port on {HOST} between {_PORTS.start} and {_PORTS.stop}")
