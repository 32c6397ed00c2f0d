"""Clients that take their time, or never end: none holds more than a connection, and that not for long (section 7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from time import monotonic

import pytest
from aiohttp import ClientSession, web

from aizen_gateway.api.http_connection import TimeLimits
from aizen_gateway.api.server import GatewayRunner
from tests.api.bare import bare_app
from tests.support.waiting import eventually

# Seconds that a busy machine may take on top.
_SLACK_S = 1.5
_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\n"

Serve = Callable[..., Awaitable[tuple[GatewayRunner, int]]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Call it with an application and limits; the runner and its port."""
    async with AsyncExitStack() as stack:

        async def start(app: web.Application, **limits: float) -> tuple[GatewayRunner, int]:
            runner = GatewayRunner(app, limits=TimeLimits(**limits), shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return runner, runner.addresses[0][1]

        yield start


class Line:
    """A bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Line:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        """Send the pieces with `pause` seconds between them; a server that has gone is no failure."""
        with suppress(ConnectionError):
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()
                await asyncio.sleep(pause)

    async def answer(self) -> bytes:
        """The next answer, whose body has a length."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await self.reader.readexactly(length)

    async def closed(self) -> bytes:
        """What comes until the server closes."""
        try:
            return await asyncio.wait_for(self.reader.read(), 20)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._writer.close()


async def test_headers_that_never_end_are_given_up(serve: Serve) -> None:
    runner, port = await serve(bare_app(), head=0.5)
    line = await Line.open(port)
    drip = [b"GET /healthz HTTP/1.1\r\n", *(f"X-Header-{number}: x\r\n".encode() for number in range(200))]
    dripping = asyncio.create_task(line.send(*drip, pause=0.05))
    started = monotonic()
    assert await line.closed() == b""
    assert 0.4 < monotonic() - started < 0.5 + _SLACK_S
    dripping.cancel()
    line.close()
    assert runner.server is not None
    assert runner.server.connections == []


async def test_a_request_line_that_never_ends_is_given_up(serve: Serve) -> None:
    _, port = await serve(bare_app(), head=0.3)
    line = await Line.open(port)
    started = monotonic()
    await line.send(b"GET /heal")
    assert await line.closed() == b""
    assert monotonic() - started < 0.3 + _SLACK_S
    line.close()


async def test_headers_of_a_later_request_have_as_long_as_those_of_the_first(serve: Serve) -> None:
    _, port = await serve(bare_app(), head=0.5)
    line = await Line.open(port)
    await line.send(_HEALTH)
    assert (await line.answer()).startswith(_OK)
    started = monotonic()
    await line.send(_HEALTH[:20])
    assert await line.closed() == b""
    assert 0.4 < monotonic() - started < 0.5 + _SLACK_S
    line.close()


async def test_headers_that_come_in_pieces_in_time_are_answered(serve: Serve) -> None:
    _, port = await serve(bare_app(), head=1.2)
    line = await Line.open(port)
    for _ in range(2):
        # Each request alone is in time, all together are not.
        await line.send(*(bytes([byte]) for byte in _HEALTH), pause=0.02)
        assert (await line.answer()).startswith(_OK)
    line.close()


async def test_an_idle_connection_is_kept_far_longer_than_headers_may_take(serve: Serve) -> None:
    _, port = await serve(bare_app(), head=0.2)
    line = await Line.open(port)
    for _ in range(2):
        await asyncio.sleep(0.4)
        await line.send(_HEALTH)
        assert (await line.answer()).startswith(_OK)
    # Some clients end a body with a line too many.
    await line.send(b"\r\n")
    await asyncio.sleep(0.5)
    await line.send(_HEALTH)
    assert (await line.answer()).startswith(_OK)
    line.close()


async def test_an_idle_connection_is_closed_in_the_end(serve: Serve) -> None:
    _, port = await serve(bare_app(), idle=0.5)
    line = await Line.open(port)
    await line.send(_HEALTH)
    assert (await line.answer()).startswith(_OK)
    assert await line.closed() == b""
    line.close()


async def test_a_body_may_take_longer_than_headers(serve: Serve) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    _, port = await serve(bare_app(echo=echo), head=0.2)
    line = await Line.open(port)
    await line.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", b"a", b"b", b"c", b"d", pause=0.2)
    await line.send(b"e")
    assert (await line.answer()).endswith(b"abcde")
    line.close()


async def test_a_body_that_never_ends_is_answered_when_the_time_is_up(serve: Serve) -> None:
    _, port = await serve(bare_app(request_timeout_s=0.4))
    line = await Line.open(port)
    started = monotonic()
    await line.send(
        b"POST /api/v1/device/auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"deviceId":'
    )
    answer = await line.closed()
    # The answer, and 2 s in which the client may take it.
    assert monotonic() - started < 0.4 + 2.0 + _SLACK_S
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"UNAVAILABLE"' in answer
    assert b"Retry-After: " in answer
    line.close()


async def test_a_client_that_does_not_take_its_answer_is_broken_off(serve: Serve) -> None:
    async def much(request: web.Request) -> web.Response:
        return web.Response(body=bytes(64 * 1024 * 1024))

    runner, port = await serve(bare_app(much=much), exchange=0.5)
    line = await Line.open(port)
    await line.send(b"POST /much HTTP/1.1\r\nHost: x\r\n\r\n")
    await line.reader.readuntil(b"\r\n\r\n")
    assert runner.server is not None
    server = runner.server

    async def connections() -> int:
        return len(server.connections)

    await eventually(connections, lambda count: count == 0, within=0.5 + _SLACK_S)
    line.close()


async def test_a_body_that_came_after_its_answer_takes_no_time_from_the_next_request(serve: Serve) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(body=b"no")

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.8)
        return web.Response(body=b"slow")

    _, port = await serve(bare_app(refuse=refuse, slow=slow), exchange=1.0)
    line = await Line.open(port)
    await line.send(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
    assert (await line.answer()).endswith(b"no")
    await line.send(b"body", pause=0.5)
    await line.send(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert (await line.answer()).endswith(b"slow")
    # Nor is a connection broken off that merely waits.
    await line.send(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
    assert (await line.answer()).endswith(b"no")
    await line.send(b"body", pause=1.2)
    await line.send(_HEALTH)
    assert (await line.answer()).startswith(_OK)
    line.close()


async def test_an_open_socket_outlives_every_limit(serve: Serve) -> None:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str(message.data)
        return ws

    app = bare_app()
    app.router.add_get("/echo", echo)
    _, port = await serve(app, head=0.2, exchange=0.3, idle=0.4)
    async with ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}/echo") as ws:
        for _ in range(4):
            await asyncio.sleep(0.25)
            await ws.send_str("x")
            assert await ws.receive_str(timeout=5) == "x"


async def test_draining_closes_idle_connections_and_waits_for_answers(serve: Serve) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        asked.set()
        await may_answer.wait()
        return web.Response(body=b"done")

    runner, port = await serve(bare_app(slow=slow))
    idle, begun, busy = [await Line.open(port) for _ in range(3)]
    await begun.send(_HEALTH[:10])
    await busy.send(b"POST /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    await asked.wait()
    draining = asyncio.create_task(runner.drain())
    assert await idle.closed() == b""
    assert await begun.closed() == b""
    assert not draining.done()
    may_answer.set()
    answer = await busy.closed()
    assert answer.startswith(_OK)
    assert answer.endswith(b"done")
    assert b"Connection: close" in answer
    await draining
    for line in (idle, begun, busy):
        line.close()


async def test_a_request_that_crosses_the_beginning_of_a_drain_is_answered(serve: Serve) -> None:
    runner, port = await serve(bare_app())
    line = await Line.open(port)
    await line.send(_HEALTH)
    assert (await line.answer()).startswith(_OK)
    draining = asyncio.create_task(runner.drain())
    # As a proxy does that has not heard of the stop, on a connection that it uses all the time.
    await asyncio.sleep(0.2)
    await line.send(_HEALTH[:10])
    await asyncio.sleep(0.2)
    await line.send(_HEALTH[10:])
    answer = await line.closed()
    assert answer.startswith(_OK)
    assert b"Connection: close" in answer
    await draining
    line.close()


async def test_draining_waits_for_work_whose_client_has_gone(serve: Serve) -> None:
    asked, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        asked.set()
        await may_end.wait()
        ended.set()
        return web.Response()

    runner, port = await serve(bare_app(slow=slow))
    line = await Line.open(port)
    await line.send(b"POST /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    await asked.wait()
    line.close()
    draining = asyncio.create_task(runner.drain())
    await asyncio.sleep(0.2)
    assert not draining.done()
    may_end.set()
    await draining
    assert ended.is_set()
