"""WebSocket clients by the thousand: as little work a frame as can be, so that what is measured is the server."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

from .load import request

_PATIENCE_S = 20.0
_TEXT, _CLOSE, _PING = 1, 8, 9
_UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    # Whose answer nobody checks.
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
Heard = Callable[[bytes], None]


def handshake(path: str) -> bytes:
    """The request that opens a socket at `path`."""
    return request("GET", path, headers=_UPGRADE)


def masked_text(text: bytes) -> bytes:
    """A short text frame of a client."""
    return _masked(_TEXT, text)


def _masked(opcode: int, payload: bytes) -> bytes:
    # Masked with zeros, which change nothing.
    assert len(payload) < 126
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


class RawSocket(asyncio.Protocol):
    """One socket. `greeted` is done when the first text frame has come; `heard` gets each one after it.

    `greeted_after` is the seconds from the connection to that frame.
    """

    def __init__(self, opening: bytes, heard: Heard) -> None:
        self._opening = opening
        self.heard = heard
        self._data = b""
        self._upgraded = False
        self._transport: asyncio.Transport
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.close_code: int | None = None
        self.lost = False
        self._began = time.perf_counter()
        self.greeted_after = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._opening)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._fail(ConnectionError(f"the socket was closed: {self.close_code}"))

    def _fail(self, error: Exception) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(error)

    def tell(self, text: bytes) -> None:
        """Send a short text frame."""
        self._transport.write(masked_text(text))

    def cut(self) -> None:
        """End the connection without a word."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._data:
            data = self._data + data
        at = 0
        if not self._upgraded:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self._data = data
                return
            if not data.startswith(b"HTTP/1.1 101 "):
                self._fail(ConnectionError(f"refused: {data[:200]!r}"))
                return
            self._upgraded = True
        size = len(data)
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length == 126:
                start += 2
                length = int.from_bytes(data[at + 2 : start], "big")
            elif length == 127:
                start += 8
                length = int.from_bytes(data[at + 2 : start], "big")
            if start + length > size:
                break
            self._frame(data[at] & 15, data[start : start + length])
            at = start + length
        self._data = data[at:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == _TEXT:
            if self.greeted.done():
                self.heard(payload)
            else:
                self.greeted_after = time.perf_counter() - self._began
                self.greeted.set_result(None)
        elif opcode == _PING:
            self._transport.write(_masked(10, payload))
        elif opcode == _CLOSE and len(payload) >= 2:
            (self.close_code,) = struct.unpack("!H", payload[:2])


def _nothing(_payload: bytes) -> None:
    return


async def open_sockets(port: int, paths: Sequence[str], at_once: int, heard: Heard = _nothing) -> list[RawSocket]:
    """Open a socket at each path, `at_once` at a time, and return when all have been greeted. Raises `OSError`."""
    opened: list[RawSocket] = []
    waiting = iter(paths)
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(_open_some(port, waiting, opened, heard))
    return opened


async def _open_some(port: int, paths: Iterator[str], opened: list[RawSocket], heard: Heard) -> None:
    loop = asyncio.get_running_loop()
    for path in paths:
        make = partial(RawSocket, handshake(path), heard)
        async with asyncio.timeout(_PATIENCE_S):
            _, socket = await loop.create_connection(make, "127.0.0.1", port)
            opened.append(socket)
            await socket.greeted


@asynccontextmanager
async def sockets(
    port: int, paths: Sequence[str], at_once: int = 32, heard: Heard = _nothing
) -> AsyncIterator[list[RawSocket]]:
    """Inside, a socket is open at each path. Raises `ConnectionError` when one was closed meanwhile."""
    opened = await open_sockets(port, paths, at_once, heard)
    try:
        yield opened
        lost = [socket.close_code for socket in opened if socket.lost]
        if lost:
            raise ConnectionError(f"{len(lost)} sockets were closed, the first with {lost[0]}")
    finally:
        for socket in opened:
            socket.cut()
