"""Answers on the wire, whichever way they are written: each is whole, and in its order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import pytest
from aiohttp import web

from aizen_gateway.api.responses import json_response, no_content
from tests.api.bare import PORTAL, bare_app, exchange, served

_LARGE = "x" * 200_000
# Requests that are answered in different ways, with the body that each is answered with.
_ASKED = {
    "plain": (b"GET /small HTTP/1.1\r\nHost: x\r\n", b'{"a":1}'),
    "posted": (b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n", b'{"a":1}'),
    "head": (b"HEAD /small HTTP/1.1\r\nHost: x\r\n", b""),
    "nothing": (b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n", b""),
    "large": (b"GET /large HTTP/1.1\r\nHost: x\r\n", b'{"a":"%b"}' % _LARGE.encode()),
    "page": (b"GET /small HTTP/1.1\r\nHost: x\r\nOrigin: " + PORTAL.encode() + b"\r\n", b'{"a":1}'),
    "nowhere": (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n", b'"code":"NOT_FOUND"'),
}


def _app() -> web.Application:
    async def small(request: web.Request) -> web.Response:
        return json_response({"a": 1})

    async def large(request: web.Request) -> web.Response:
        return json_response({"a": _LARGE})

    async def nothing(request: web.Request) -> web.Response:
        return no_content()

    app = bare_app(unread=small, nothing=nothing)
    app.router.add_get("/small", small)
    app.router.add_get("/large", large)
    return app


def _request(name: str, number: int, **headers: str) -> bytes:
    head = _ASKED[name][0] + f"X-Request-ID: r{number}\r\n".encode()
    head += b"".join(f"{header}: {value}\r\n".encode() for header, value in headers.items())
    return head + b"\r\n" + (b"body" if name == "posted" else b"")


def _answers(received: bytes, names: list[str]) -> list[tuple[Mapping[str, str], bytes]]:
    """The answers to requests of these names, as their heads and bodies; nothing may be left over."""
    found: list[tuple[Mapping[str, str], bytes]] = []
    for name in names:
        head, _, received = received.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
        headers = {header.lower(): value for header, value in lines}
        assert len(headers) == len(lines)
        length = 0 if name in ("head", "nothing") else int(headers["content-length"])
        found.append((headers, received[:length]))
        received = received[length:]
    assert received == b""
    return found


async def test_requests_sent_ahead_are_answered_whole_and_in_order_each_with_its_own_id() -> None:
    names = [*_ASKED, *reversed(_ASKED), *_ASKED]
    async with served(_app()) as port:
        sent = [_request(name, number) for number, name in enumerate(names)]
        received = await exchange(port, b"".join([*sent, _request("plain", 99, Connection="close")]))
    *answers, (last, _) = _answers(received, [*names, "plain"])
    for number, (name, (headers, body)) in enumerate(zip(names, answers, strict=True)):
        assert headers["x-request-id"] == f"r{number}"
        assert "connection" not in headers
        assert _ASKED[name][1] in body if name == "nowhere" else body == _ASKED[name][1]
    assert last["connection"] == "close"


@pytest.mark.parametrize("name", _ASKED)
async def test_every_answer_says_the_same_of_the_gateway(name: str) -> None:
    async with served(_app()) as port:
        received = await exchange(port, _request(name, 1) + _request(name, 2, Connection="close"))
    for headers, _ in _answers(received, [name, name]):
        assert headers["server"] == "aizen-gateway"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["vary"] == "Origin"
        assert "date" in headers


@pytest.mark.parametrize("keep", [False, True])
async def test_a_client_of_http_1_0_is_answered_in_it(keep: bool) -> None:
    async with served(_app()) as port:
        again = b"Connection: keep-alive\r\n\r\nGET /small HTTP/1.0\r\n" if keep else b""
        async with asyncio.timeout(10):
            received = await exchange(port, b"GET /small HTTP/1.0\r\n" + again + b"\r\n")
    answers = _answers(received, ["plain"] * (1 + keep))
    assert received.count(b"HTTP/1.0 200 OK") == 1 + keep
    assert answers[0][0].get("connection") == ("keep-alive" if keep else None)


async def test_a_client_that_sends_ahead_leaves_others_their_turn() -> None:
    count, turns = 500, 0
    ended = asyncio.Event()

    async def others() -> None:
        nonlocal turns
        while not ended.is_set():
            await asyncio.sleep(0)
            turns += 1

    async with served(_app()) as port:
        sent = _request("plain", 1) * count + _request("plain", 2, Connection="close")
        counting = asyncio.create_task(others())
        # All of it comes at once, and no answer to any of it waits for anything.
        received = await exchange(port, sent)
        ended.set()
        await counting
    assert received.count(b"HTTP/1.1 200 OK") == count + 1
    assert turns >= count


async def test_what_becomes_of_one_requests_cancellation_is_no_business_of_the_next() -> None:
    async def swallows(request: web.Request) -> web.Response:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return json_response({"cancelling": task.cancelling()})

    async def looks(request: web.Request) -> web.Response:
        task = asyncio.current_task()
        assert task is not None
        return json_response({"cancelling": task.cancelling()})

    async with served(bare_app(swallows=swallows, looks=looks)) as port:
        sent = [f"POST /{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" for name in ("swallows", "looks")]
        received = await exchange(port, f"{sent[0]}\r\n{sent[1]}Connection: close\r\n\r\n".encode())
    assert b'{"cancelling":1}' in received
    assert b'{"cancelling":0}' in received
