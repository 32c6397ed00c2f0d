"""A connection's transport in memory, for what only its writer and its clock decide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aizen_gateway.realtime.connection import Connection, ConnectionLimits


class Pipe:
    """A transport that takes nothing until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.sent: list[bytes] = []
        self._on_the_way: list[bytes] = []
        self.pings = 0
        self.closed: list[tuple[int, str]] = []
        self.aborted = asyncio.Event()

    @property
    def full(self) -> bool:
        return not self.opened.is_set()

    def write(self, frame: bytes) -> None:
        self._on_the_way.append(frame)
        if self.opened.is_set():
            self._arrive()

    def ping(self) -> None:
        self.pings += 1

    def pong(self, data: bytes) -> None: ...

    async def drained(self) -> None:
        await self.opened.wait()
        if self.aborted.is_set():
            raise ConnectionResetError
        self._arrive()

    def _arrive(self) -> None:
        self.sent += self._on_the_way
        self._on_the_way = []

    async def close(self, code: int, reason: str) -> None:
        if self.aborted.is_set():
            raise ConnectionResetError
        self._arrive()
        self.closed.append((code, reason))

    def abort(self) -> None:
        self.aborted.set()
        self.opened.set()


@asynccontextmanager
async def running(pipe: Pipe, limits: ConnectionLimits | None = None) -> AsyncIterator[Connection]:
    """A connection whose first frame is on its way, and takes the whole pipe unless it is open."""
    connection = Connection(pipe, limits or ConnectionLimits())
    pipe.write(b"first")
    await asyncio.sleep(0)
    try:
        yield connection
    finally:
        connection.abort()
        await connection.closed()
