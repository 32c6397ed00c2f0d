"""Frames as they are written straight to the transport: every length, among control frames, and none after the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, web

from aizen_gateway.api.sockets.wire import FRAME_LIMIT, SocketWire, WebSocket

Talk = Callable[[SocketWire, WebSocket], Awaitable[None]]

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
CLOSE = b"\x88\x80\0\0\0\0"


@asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[int]:
    """The port of a server that does `talk` with each socket."""

    async def handle(request: web.Request) -> web.StreamResponse:
        socket = WebSocket(())
        writer = await socket.prepare(request)
        await talk(SocketWire(request, socket, writer), socket)
        return socket

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[ClientWebSocketResponse]:
    """A client of a server that does `talk` with each socket."""
    async with (
        serving(talk) as port,
        ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{port}/", autoping=False) as client,
    ):
        yield client


async def heard(talk: Talk) -> bytes:
    """All that a client hears which asks for a socket and then just closes."""
    async with serving(talk) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE + CLOSE)
        whole = await reader.read()
        writer.close()
        return whole


async def test_frames_of_every_length_arrive_whole_and_in_order_among_pings_and_pongs() -> None:
    lengths = (0, 1, 125, 126, 127, 65535, 65536, 65537, FRAME_LIMIT, FRAME_LIMIT + 1)

    async def talk(wire: SocketWire, socket: WebSocket) -> None:
        for length in lengths:
            wire.ping()
            wire.write(b"x" * length)
            wire.pong(b"p" * 125)
            if wire.full:
                await wire.drained()
        await wire.close(1001, "draining")

    async with talking(talk) as client:
        for length in lengths:
            assert (await client.receive()).type is WSMsgType.PING
            frame = await client.receive()
            assert (frame.type, frame.data) == (WSMsgType.TEXT, "x" * length)
            pong = await client.receive()
            assert (pong.type, bytes(pong.data)) == (WSMsgType.PONG, b"p" * 125)
        end = await client.receive()
        assert (end.type, end.data, end.extra) == (WSMsgType.CLOSE, 1001, "draining")


async def test_nothing_follows_a_close_frame() -> None:
    refused = asyncio.Event()

    async def talk(wire: SocketWire, socket: WebSocket) -> None:
        closing = asyncio.create_task(wire.close(4409, "superseded"))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionResetError):
            wire.write(b"late")
        with pytest.raises(ConnectionResetError):
            wire.ping()
        with pytest.raises(ConnectionResetError):
            wire.pong(b"")
        refused.set()
        await closing

    async with talking(talk) as client:
        async with asyncio.timeout(10):
            await refused.wait()
        end = await client.receive()
        assert (end.type, end.data) == (WSMsgType.CLOSE, 4409)
        assert (await client.receive()).type is WSMsgType.CLOSED


async def test_a_transport_that_is_full_still_keeps_the_order() -> None:
    async def talk(wire: SocketWire, socket: WebSocket) -> None:
        while not wire.full:
            sent.append(len(sent))
            wire.write(b"%d" % sent[-1] + b"." * 100_000)
        full.set()
        await wire.drained()
        assert not wire.full
        wire.write(b"last")
        await wire.close(1000, "")

    sent: list[int] = []
    full = asyncio.Event()
    async with talking(talk) as client:
        async with asyncio.timeout(10):
            await full.wait()
        for number in sent:
            assert str((await client.receive()).data).rstrip(".") == str(number)
        assert (await client.receive()).data == "last"


async def test_the_answer_to_the_handshake_and_the_first_frame_are_one_write() -> None:
    read = asyncio.Event()

    async def talk(wire: SocketWire, socket: WebSocket) -> None:
        # Time for what has been sent already to be read apart.
        await asyncio.sleep(0.05)
        wire.write(b"hello")
        await read.wait()
        wire.abort()

    async with serving(talk) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE)
        first = await reader.read(65536)
        read.set()
        assert await reader.read() == b""
        writer.close()
    head, _, frame = first.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert frame == b"\x81\x05hello"


@pytest.mark.parametrize("first", ["upgrade", "close"])
async def test_the_answer_to_the_handshake_comes_without_any_message(first: str) -> None:
    async def talk(wire: SocketWire, socket: WebSocket) -> None:
        if first == "upgrade":
            wire.upgrade()
            wire.upgrade()
        await wire.close(1013, "unavailable")
        wire.abort()

    head, _, frames = (await heard(talk)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert frames == b"\x88\x0d\x03\xf5unavailable"


async def test_an_end_before_any_message_leaves_nothing_unsaid_behind_it() -> None:
    async def talk(wire: SocketWire, socket: WebSocket) -> None:
        wire.abort()
        with pytest.raises(ConnectionResetError):
            wire.write(b"late")
        wire.upgrade()

    assert await heard(talk) == b""
