"""A line to a gateway that can be cut: a TCP proxy that forwards bytes, and stops as lines in the field do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

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
