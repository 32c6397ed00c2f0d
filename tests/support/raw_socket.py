"""WebSocket clients that do what no library does: bad frames, half a frame, half a connection, or nothing at all."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from .clients import DeviceClient
from .sockets import PATIENCE, Closed


class Opcode(IntEnum):
    """What a frame is."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


def frame_of(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame, masked as it must be (with zeros, which change nothing)."""
    length = len(payload)
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 1 << 16:
        size = bytes([0x80 | 126]) + struct.pack("!H", length)
    else:
        size = bytes([0x80 | 127]) + struct.pack("!Q", length)
    return bytes([(0x80 if fin else 0) | opcode]) + size + bytes(4) + payload


def text_of(type: str, payload: Mapping[str, Any] | None = None) -> bytes:
    """A message in a frame of its own."""
    return frame_of(Opcode.TEXT, json.dumps({"type": type, "payload": dict(payload or {})}).encode())


@dataclass(slots=True)
class RawSocket:
    """An upgraded connection. It answers nothing by itself: no ping, no close."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(
        cls, url: str, path: str, headers: Mapping[str, str] | None = None, *, receive_buffer: int | None = None
    ) -> RawSocket:
        """Upgrade at `path`. `receive_buffer` is bytes, for a client that is soon full when it does not read."""
        host, port = url.removeprefix("http://").split(":")
        # The stream of a client that does not read must not read for it.
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024 if receive_buffer else 2**20)
        if receive_buffer:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        lines = {
            "Host": f"{host}:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        return cls(reader, writer)

    async def send(self, *data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(b"".join(data))
        await self.writer.drain()

    async def send_for_ever(self, data: bytes) -> None:
        """Send `data` over and over, as fast as it is taken. Raises `ConnectionError` at the end of the connection."""
        while True:
            await self.send(data)

    async def receive(self) -> tuple[Opcode, bytes]:
        """The next frame. Raises `Closed` at the end of the connection, without a code."""
        try:
            async with asyncio.timeout(PATIENCE):
                first, second = await self.reader.readexactly(2)
                length = second & 0x7F
                if length == 126:
                    (length,) = struct.unpack("!H", await self.reader.readexactly(2))
                elif length == 127:
                    (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
                return Opcode(first & 0x0F), await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Closed(None) from error

    async def message(self) -> dict[str, Any]:
        """The next message; other frames than text are skipped. Raises `Closed`."""
        while True:
            opcode, payload = await self.receive()
            if opcode is Opcode.TEXT:
                return dict(json.loads(payload))
            if opcode is Opcode.CLOSE:
                raise Closed(struct.unpack("!H", payload[:2])[0] if payload else None)

    async def closed(self) -> int | None:
        """Wait for the end and return the close code, None when there was no close frame."""
        while True:
            try:
                await self.message()
            except Closed as closed:
                return closed.code

    async def gone(self) -> None:
        """Wait until the gateway has let go of the connection."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    if not await self.reader.read(65536):
                        return
                except ConnectionError:
                    return

    def cut(self) -> None:
        """End the connection at once, without a word."""
        self.writer.transport.abort()


@asynccontextmanager
async def raw_device(
    device: DeviceClient, query: str = "", *, receive_buffer: int | None = None
) -> AsyncIterator[RawSocket]:
    """A device's socket that has been upgraded; its greeting has not been read."""
    headers = {"X-Device-Token": device.token}
    socket = await RawSocket.open(device.url, f"/ws/device{query}", headers, receive_buffer=receive_buffer)
    try:
        yield socket
    finally:
        socket.cut()
