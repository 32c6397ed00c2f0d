"""The agent's socket frame by frame, with a server that says what no gateway of this version says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aizen_gateway.dev.agent_api import GatewayRefused, GatewayUnavailable
from aizen_gateway.dev.agent_socket import AgentSocket, NotAnswered, Pushes, SocketEnd, SocketRefused, Then

Script = Callable[[web.WebSocketResponse], Awaitable[object]]
GREETING = {"type": "connected", "payload": {"connectionId": "c", "heartbeatIntervalMs": 5000}}


async def answer_errors(ws: web.WebSocketResponse) -> None:
    """Answer every question with the error whose code it names."""
    await ws.send_json(GREETING)
    async for incoming in ws:
        asked = json.loads(incoming.data)
        payload = {"code": asked["payload"]["code"], "message": "no", "details": {"retryAfter": 7}}
        await ws.send_json({"type": "error", "requestId": asked["requestId"], "payload": payload})


@asynccontextmanager
async def server(script: Script) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    async def handle(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await script(ws)
        return ws

    app = web.Application()
    app.router.add_get("/", handle)
    async with TestServer(app) as running, aiohttp.ClientSession() as session:
        yield session, str(running.make_url("/"))


@asynccontextmanager
async def opened(script: Script, pushes: Pushes | None = None) -> AsyncIterator[tuple[AgentSocket, asyncio.Task[Any]]]:
    ignored = Pushes(lambda _: None, lambda _: None, lambda _: None)
    async with server(script) as (session, url):
        socket = await AgentSocket.open(session, url, "token")
        running = asyncio.create_task(socket.run(pushes or ignored))
        try:
            yield socket, running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(("code", "status"), [("INVALID_CLAIM_TOKEN", 403), ("COMMAND_CANCELED", 409)])
async def test_a_refusal_is_that_of_rest(code: str, status: int) -> None:
    async with opened(answer_errors) as (socket, _):
        with pytest.raises(GatewayRefused) as refused:
            await socket.ask("extend", {"code": code})
    assert (refused.value.code, refused.value.status) == (code, status)


async def test_what_passes_says_when_to_come_again() -> None:
    async with opened(answer_errors) as (socket, _):
        with pytest.raises(GatewayUnavailable) as unavailable:
            await socket.ask("extend", {"code": "UNAVAILABLE"})
    assert not isinstance(unavailable.value, NotAnswered)
    assert unavailable.value.retry_after_s == 7


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "A_CODE_OF_TOMORROW", None])
async def test_what_the_socket_does_not_settle_is_left_to_rest(code: str | None) -> None:
    async with opened(answer_errors) as (socket, _):
        with pytest.raises(NotAnswered):
            await socket.ask("extend", {"code": code})


async def test_a_message_that_no_frame_holds_is_left_to_rest_and_the_socket_goes_on() -> None:
    async with opened(answer_errors) as (socket, running):
        with pytest.raises(NotAnswered):
            await socket.ask("command_result", {"output": "x" * 256 * 1024})
        with pytest.raises(GatewayRefused):
            await socket.ask("extend", {"code": "CLAIM_EXPIRED"})
        assert not running.done()


async def test_whoever_waits_for_an_answer_hears_of_the_end() -> None:
    async def leave(ws: web.WebSocketResponse) -> None:
        await ws.send_json(GREETING)
        await ws.receive()
        await ws.close(code=1013)

    async with opened(leave) as (socket, running):
        with pytest.raises(NotAnswered):
            await socket.ask("extend", {})
        assert await running == SocketEnd(Then.AGAIN, "closed 1013", 1013)
        with pytest.raises(NotAnswered):
            await socket.ask("extend", {})


async def test_new_settings_are_taken_and_what_is_not_understood_is_passed_over() -> None:
    async def speak(ws: web.WebSocketResponse) -> None:
        await ws.send_json(GREETING)
        await ws.send_str("no JSON")
        await ws.send_str("[]")
        await ws.send_json({"type": "of tomorrow", "payload": {}})
        await ws.send_json({"type": "heartbeat_ack", "requestId": "of nobody", "payload": {}})
        await ws.send_json({"type": "config_update", "payload": {"unknown": 1}})
        await ws.send_json({"type": "config_update", "payload": {"heartbeatIntervalMs": 2000}})
        await ws.send_json({"type": "command_canceled", "payload": {"id": "x"}})
        await ws.receive()

    heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    pushes = Pushes(
        lambda data: heard.put_nowait(("command", data)),
        lambda data: heard.put_nowait(("canceled", data)),
        lambda data: heard.put_nowait(("pace", data)),
    )
    async with opened(speak, pushes) as (socket, _):
        assert socket.greeting["heartbeatIntervalMs"] == 5000
        assert await heard.get() == ("pace", 2000)
        assert await heard.get() == ("canceled", {"id": "x"})


async def test_a_pushed_command_is_acknowledged_before_it_is_begun() -> None:
    said: asyncio.Queue[Any] = asyncio.Queue()

    async def push(ws: web.WebSocketResponse) -> None:
        await ws.send_json(GREETING)
        await ws.send_json({"type": "command", "payload": {"id": "x"}})
        said.put_nowait(await ws.receive_json())
        await ws.receive()

    async with opened(push):
        assert await said.get() == {"type": "ping"}


@pytest.mark.parametrize(
    ("code", "then"),
    [
        (1000, Then.AGAIN),
        (1001, Then.AGAIN),
        (1008, Then.AGAIN),
        (4401, Then.SIGN_IN),
        (4403, Then.LATER),
        (4409, Then.ALOOF),
        (4429, Then.LATER),
    ],
)
async def test_a_close_code_decides_what_comes_next_before_and_after_the_greeting(code: int, then: Then) -> None:
    async def close(ws: web.WebSocketResponse) -> None:
        await ws.close(code=code)

    async def greet_and_close(ws: web.WebSocketResponse) -> None:
        await ws.send_json(GREETING)
        await ws.close(code=code)

    async with server(close) as (session, url):
        with pytest.raises(SocketRefused) as refused:
            await AgentSocket.open(session, url, "token")
    async with opened(greet_and_close) as (_, running):
        assert (await running).then is refused.value.end.then is then


async def test_a_socket_that_does_not_greet_like_a_gateway_is_none() -> None:
    async def echo(ws: web.WebSocketResponse) -> None:
        await ws.send_str("welcome")
        await ws.receive()

    async with server(echo) as (session, url):
        with pytest.raises(SocketRefused) as refused:
            await AgentSocket.open(session, url, "token")
    assert refused.value.end.then is Then.NOT_HERE


@pytest.mark.parametrize(
    ("status", "then"),
    [(401, Then.SIGN_IN), (403, Then.NOT_HERE), (404, Then.NOT_HERE), (429, Then.AGAIN), (503, Then.AGAIN)],
)
async def test_a_refusal_before_the_upgrade_decides_what_comes_next(status: int, then: Then) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": "9"})

    app = web.Application()
    app.router.add_get("/", refuse)
    async with TestServer(app) as running, aiohttp.ClientSession() as session:
        with pytest.raises(SocketRefused) as refused:
            await AgentSocket.open(session, str(running.make_url("/")), "token")
    assert (refused.value.end.then, refused.value.end.code, refused.value.end.retry_after_s) == (then, status, 9)
