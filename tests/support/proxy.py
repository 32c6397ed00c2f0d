"""Lines that can be cut, to a gateway and from one: TCP proxies that forward bytes, and stop as lines do."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from .gateway import RunningGateway

_REQUEST = re.compile(rb"(?:GET|POST) (\S+?)(?:\?\S*)? HTTP/1\.1\r\n")


@dataclass(eq=False, slots=True)
class _Pair:
    """A client's connection and the one to the gateway that belongs to it."""

    client: asyncio.StreamWriter
    gateway: asyncio.StreamWriter
    muted: bool = False

    def abort(self) -> None:
        for writer in (self.client, self.gateway):
            writer.transport.abort()


@dataclass(slots=True)
class Proxy:
    """Forwards to the gateway at `target`, and remembers the path of every request in `asked`.

    `no_sockets` is what is answered to a request for an upgrade, instead of forwarding it.
    """

    target: str
    url: str = ""
    asked: list[str] = field(default_factory=list)
    no_sockets: bytes | None = None
    _pairs: set[_Pair] = field(default_factory=set)

    def cut(self) -> None:
        """Cut every connection there is, without a goodbye in either direction."""
        for pair in self._pairs:
            pair.abort()

    def mute(self) -> None:
        """From now on nothing that the gateway says gets through on the connections that are open."""
        for pair in self._pairs:
            pair.muted = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.removeprefix("http://").split(":")
        try:
            gateway_reader, gateway_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, gateway_writer)
        self._pairs.add(pair)
        tasks = [
            asyncio.create_task(self._to_gateway(reader, pair)),
            asyncio.create_task(self._to_client(gateway_reader, pair)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in (pair.client, pair.gateway):
                end.close()
            self._pairs.discard(pair)

    async def _to_gateway(self, reader: asyncio.StreamReader, pair: _Pair) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if found := _REQUEST.match(data):
                    self.asked.append(found[1].decode())
                if self.no_sockets is not None and b"upgrade: websocket" in data.lower():
                    pair.client.write(self.no_sockets)
                    await pair.client.drain()
                    return
                pair.gateway.write(data)
                await pair.gateway.drain()

    @staticmethod
    async def _to_client(reader: asyncio.StreamReader, pair: _Pair) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if not pair.muted:
                    pair.client.write(data)
                    await pair.client.drain()


@pytest.fixture
async def proxy(gateway: RunningGateway) -> AsyncIterator[Proxy]:
    """A line to the default instance."""
    proxy = Proxy(gateway.url)
    handling: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy.serve(reader, writer))
        handling.add(task)
        task.add_done_callback(handling.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield proxy
    server.close()
    proxy.cut()
    await asyncio.gather(*handling, return_exceptions=True)
    await server.wait_closed()


class Wire:
    """A line to a server on this machine that breaks as networks break: `reset`, and `block` until `unblock`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._tried = asyncio.Event()
        self._ends: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def to(cls, target: int) -> AsyncIterator[Wire]:
        """Inside, `port` of 127.0.0.1 leads to the port `target` of 127.0.0.1."""
        wire = cls(target)
        wire._server = await asyncio.start_server(wire._connected, "127.0.0.1", 0)
        wire.port = wire._server.sockets[0].getsockname()[1]
        try:
            yield wire
        finally:
            wire._server.close()
            wire.reset()
            for task in wire._carrying:
                task.cancel()
            await asyncio.gather(*wire._carrying, return_exceptions=True)

    @classmethod
    def to_server(cls, url: str) -> AbstractAsyncContextManager[Wire]:
        """As `to`, for the server of `url`, which `through` leads to by way of this line."""
        port = urlsplit(url).port
        assert port is not None
        return cls.to(port)

    def through(self, url: str) -> str:
        """The URL of the server, by way of this line."""
        split = urlsplit(url)
        return split._replace(netloc=f"{split.netloc.rpartition(':')[0]}:{self.port}").geturl()

    def reset(self) -> None:
        """Reset every connection there is, at both ends."""
        for end in tuple(self._ends):
            _reset(end)

    def block(self) -> None:
        """From now on nothing gets through, in either direction, and nobody is told. Connecting seems to work."""
        self._open.clear()
        self._tried.clear()

    def refuse(self) -> None:
        """Reset every connection, and each new one until `accept`."""
        self._refusing = True
        self.reset()

    def accept(self) -> None:
        """Let connections through that are new."""
        self._refusing = False

    async def held_up(self) -> None:
        """Return when something has been sent, in either direction, that does not get through."""
        await self._tried.wait()

    def unblock(self, *, forgotten: bool = False) -> None:
        """Let everything through again, what was sent meanwhile too; connections are reset when `forgotten`."""
        if forgotten:
            self.reset()
        self._open.set()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._ends.add(writer)
        try:
            await self._open.wait()
            if self._refusing:
                _reset(writer)
                return
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            except OSError:
                _reset(writer)
                return
            ends.add(far_writer)
            self._ends.add(far_writer)
            ways = [
                asyncio.create_task(self._forward(reader, far_writer)),
                asyncio.create_task(self._forward(far_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._ends -= ends
            for end in ends:
                end.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if not self._open.is_set():
                    self._tried.set()
                await self._open.wait()
                writer.write(data)
                await writer.drain()
            await self._open.wait()


def _reset(end: asyncio.StreamWriter) -> None:
    """Break a connection off such that the other side is told by a reset."""
    if (line := end.get_extra_info("socket")) is not None:
        # To linger for no time is how a reset is asked for.
        with suppress(OSError):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()
