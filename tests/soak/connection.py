"""Sockets of many clients in one program: opened, left politely or without a word, and taken again."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import ClientError, ClientSession, ClientWebSocketResponse, WSMsgType

from tests.support.raw_socket import RawSocket
from tests.support.sockets import Closed

from .ledger import Ledger

# Seconds for which a flapping client is there, and for which it is away.
_STAY, _AWAY = (0.3, 4.0), (0.1, 1.5)
# Seconds until a frozen client gives up: some before the gateway has noticed them, some after.
_FROZEN = (10.0, 70.0)
# What a frozen client's kernel takes in, in bytes.
_FROZEN_BUFFER = 4096
# Seconds; one that is not polite is left to the kernel.
_GOODBYE = 5.0


@asynccontextmanager
async def connection(http: ClientSession, url: str, headers: dict[str, str]) -> AsyncIterator[ClientWebSocketResponse]:
    """An open socket, closed politely in the end, whatever state it is in."""
    socket = await http.ws_connect(url, headers=headers)
    try:
        yield socket
    finally:
        with suppress(ClientError, OSError, TimeoutError):
            await asyncio.wait_for(socket.close(), _GOODBYE)


async def receive(socket: ClientWebSocketResponse) -> dict[str, Any]:
    """The next message. Raises `Closed`."""
    incoming = await socket.receive()
    if incoming.type is WSMsgType.TEXT:
        return dict(json.loads(incoming.data))
    raise Closed(socket.close_code)


async def tell(socket: ClientWebSocketResponse, type: str, payload: dict[str, Any], request_id: str = "") -> None:
    """Send a message."""
    await socket.send_str(json.dumps({"type": type, "payload": payload, "requestId": request_id or type}))


async def for_a_moment(socket: ClientWebSocketResponse, talk: Awaitable[None]) -> None:
    """Talk until a flapping client goes: half of the times without a word."""
    with suppress(TimeoutError):
        await asyncio.wait_for(talk, random.uniform(*_STAY))
    if random.random() < 0.5 and (line := socket.get_extra_info("socket")) is not None:
        with suppress(OSError):
            line.shutdown(2)


async def away() -> None:
    """What lies between two connections."""
    await asyncio.sleep(random.uniform(*_AWAY))


async def freeze(url: str, headers: dict[str, str], there: asyncio.Event, *first: bytes) -> None:
    """Open a socket, send `first`, read nothing for a while, and give up without a word."""
    host, _, path = url.removeprefix("http://").partition("/")
    socket = await RawSocket.open(f"http://{host}", f"/{path}", headers, receive_buffer=_FROZEN_BUFFER)
    try:
        await socket.send(*first)
        there.set()
        await asyncio.sleep(random.uniform(*_FROZEN))
    finally:
        socket.cut()


async def keep_on(turn: Callable[[], Awaitable[None]], ledger: Ledger, who: str) -> None:
    """Take turn after turn until cancelled. What ends a turn is counted; what a client may not see is a failure."""
    while True:
        try:
            await turn()
        except Closed as closed:
            ledger.closes[f"{who}: {closed.code}"] += 1
            await away()
        except (ClientError, OSError, TimeoutError, AssertionError, asyncio.IncompleteReadError) as error:
            ledger.failures.append(f"{who}: {type(error).__name__} {error}")
            await away()
