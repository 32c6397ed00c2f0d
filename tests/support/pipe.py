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
        self.pings = 0
        self.closed: list[tuple[int, str]] = []
        self.aborted = asyncio.Event()

    async def send(self, frame: bytes) -> None:
        await self.opened.wait()
        if self.aborted.is_set():
            raise ConnectionResetError
        self.sent.append(frame)

    async def ping(self) -> None:
        self.pings += 1

    async def pong(self, data: bytes) -> None: ...

    async def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))

    def abort(self) -> None:
        self.aborted.set()
        self.opened.set()


@asynccontextmanager
async def running(pipe: Pipe, limits: ConnectionLimits | None = None) -> AsyncIterator[Connection]:
    """A connection whose writer runs, and already hangs in its first frame unless the pipe is open."""
    connection = Connection(pipe, limits or ConnectionLimits())
    writer = asyncio.create_task(connection.run())
    connection.send(b"first")
    await asyncio.sleep(0)
    try:
        yield connection
    finally:
        connection.abort()
        await writer
