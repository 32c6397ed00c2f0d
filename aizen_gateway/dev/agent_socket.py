"""One WebSocket to the gateway (contract section 6) as the agent uses it: questions with answers, and what is pushed.

It lives from its greeting to its end and then says what the end means for the next try; whether and when there is one
is `agent_line`'s to decide. What it cannot bring across is left to the single calls of `agent_api`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Self
from uuid import uuid4

import aiohttp
from aiohttp import WSCloseCode, WSMsgType

from aizen_gateway.dev.agent_api import USER_AGENT, GatewayRefused, GatewayUnavailable, seconds

# Seconds. The gateway pings too; ours find the line that is dead on the way to it.
_OPEN_S = 10.0
_PING_S = 20.0
_ANSWER_S = 15.0
_CLOSE_S = 2.0
# The gateway takes no more in one frame, and sends nothing near that much.
_MOST_SENT = 256 * 1024
_MOST_RECEIVED = 1024 * 1024
_MOST_WAITING = 64

# The gateway's refusals, with the statuses that REST gives them. A code that is not here is asked for again over REST.
_REFUSALS: Mapping[str, int] = {
    "INVALID_REQUEST": 400,
    "INVALID_CLAIM_TOKEN": 403,
    "CLAIM_EXPIRED": 403,
    "COMMAND_NOT_FOUND": 404,
    "COMMAND_ALREADY_COMPLETED": 409,
    "COMMAND_CANCELED": 409,
    "PAYLOAD_TOO_LARGE": 413,
}
_PASSING = frozenset({"RATE_LIMITED", "INTERNAL_ERROR", "UNAVAILABLE"})


class Then(Enum):
    """What the end of a socket, or of a try to have one, asks of this device."""

    AGAIN = auto()
    """Try again before long."""
    SIGN_IN = auto()
    """The token is not good any more."""
    LATER = auto()
    """The gateway wants this device to stay away for a while."""
    NOT_HERE = auto()
    """Something on the way knows no sockets."""
    ALOOF = auto()
    """Another copy of this device has taken over."""


_AFTER_CLOSE: Mapping[int, Then] = {
    4401: Then.SIGN_IN,
    4403: Then.LATER,
    4409: Then.ALOOF,
    4429: Then.LATER,
}


@dataclass(frozen=True, slots=True)
class SocketEnd:
    """Why a socket ended, or could not be had. `code` is the close code, or the status before the upgrade."""

    then: Then
    reason: str
    code: int | None = None
    retry_after_s: float | None = None


class SocketRefused(Exception):
    """There is no socket to be had now; `end` says why."""

    def __init__(self, end: SocketEnd) -> None:
        super().__init__(end.reason)
        self.end = end


class NotAnswered(GatewayUnavailable):
    """The socket brought no answer that settles the question; the same may be asked over REST."""


@dataclass(frozen=True, slots=True)
class Pushes:
    """Who is told what the gateway says by itself: a claimed command, a cancel, the milliseconds between heartbeats."""

    command: Callable[[Any], None]
    canceled: Callable[[Any], None]
    pace: Callable[[Any], None]


class AgentSocket:
    """An open, greeted socket. `run` it once; `ask` meanwhile."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, greeting: Mapping[str, Any]) -> None:
        self.greeting = greeting
        self._ws = ws
        self._asked: dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        # One task writes: a send that is cancelled would break the others.
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue(_MOST_WAITING)
        self._silent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._over = False

    @classmethod
    async def open(cls, session: aiohttp.ClientSession, url: str, token: str) -> Self:
        """Connect to `url` (`ws` or `wss`) and wait for the greeting. Raises `SocketRefused`."""
        ws: aiohttp.ClientWebSocketResponse | None = None
        try:
            async with asyncio.timeout(_OPEN_S):
                ws = await session.ws_connect(
                    url,
                    headers={"X-Device-Token": token, "User-Agent": USER_AGENT},
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                    heartbeat=_PING_S,
                    max_msg_size=_MOST_RECEIVED,
                )
                socket = cls(ws, await _greeting(ws))
                ws = None
                return socket
        except aiohttp.WSServerHandshakeError as error:
            raise SocketRefused(_refused(error)) from None
        except TimeoutError:
            raise SocketRefused(SocketEnd(Then.AGAIN, f"no greeting within {_OPEN_S:g} s")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise SocketRefused(SocketEnd(Then.AGAIN, f"not reached: {type(error).__name__}")) from None
        finally:
            if ws is not None:
                await _close(ws)

    async def run(self, pushes: Pushes) -> SocketEnd:
        """Read and write until the end, and return why it came. Closes the socket, also when cancelled."""
        reading = asyncio.create_task(self._read(pushes))
        writing = asyncio.create_task(self._write())
        try:
            await asyncio.wait({reading, writing, self._silent}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._over = True
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_exception(NotAnswered("the socket ended before the answer came"))
            await _close(self._ws)
        if self._silent.done():
            return SocketEnd(Then.AGAIN, f"no answer within {_ANSWER_S:g} s")
        return _ended(self._ws)

    async def ask(self, type: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message and return the payload of its answer.

        Raises `GatewayRefused` and `GatewayUnavailable` as REST does, and `NotAnswered`.
        """
        request_id = str(uuid4())
        answered: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[request_id] = answered
        try:
            self._post({"type": type, "requestId": request_id, "payload": payload})
            async with asyncio.timeout(_ANSWER_S):
                message = await answered
        except TimeoutError:
            if not self._silent.done():
                self._silent.set_result(None)
            raise NotAnswered("no answer over the socket") from None
        finally:
            del self._asked[request_id]
        return _judge(message)

    def _post(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        if len(data) > _MOST_SENT or self._outbox.full() or self._over:
            raise NotAnswered("the socket does not take it")
        self._outbox.put_nowait(data)

    async def _write(self) -> None:
        while True:
            await self._ws.send_frame(await self._outbox.get(), WSMsgType.TEXT)

    async def _read(self, pushes: Pushes) -> None:
        async for incoming in self._ws:
            if incoming.type is not WSMsgType.TEXT:
                return
            message = _parsed(incoming.data)
            payload = message.get("payload")
            match message.get("type"):
                case "command":
                    # A word back, whatever it is, tells the gateway that the command has arrived: a line that is cut
                    # now does not make it hand out again what is already being done.
                    with contextlib.suppress(NotAnswered):
                        self._post({"type": "ping"})
                    pushes.command(payload)
                case "command_canceled":
                    pushes.canceled(payload)
                case "config_update" if isinstance(payload, dict) and "heartbeatIntervalMs" in payload:
                    pushes.pace(payload["heartbeatIntervalMs"])
                case _:
                    asked = self._asked.get(str(message.get("requestId")))
                    if asked is not None and not asked.done():
                        asked.set_result(message)


def no_redirects() -> aiohttp.TraceConfig:
    """For the session: a handshake that is redirected would take the token to wherever it is told."""

    async def refuse(_: aiohttp.ClientSession, __: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        redirect.response.close()
        raise aiohttp.ClientConnectionError("redirected")

    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(refuse)
    return tracing


async def _greeting(ws: aiohttp.ClientWebSocketResponse) -> Mapping[str, Any]:
    incoming = await ws.receive()
    message = _parsed(incoming.data) if incoming.type is WSMsgType.TEXT else {}
    payload = message.get("payload")
    if message.get("type") == "connected" and isinstance(payload, dict):
        return payload
    raise SocketRefused(_ended(ws) if ws.closed else SocketEnd(Then.NOT_HERE, "this is not the gateway's greeting"))


async def _close(ws: aiohttp.ClientWebSocketResponse) -> None:
    """Close in a task of its own and in bounded time: on a line that is stuck it could wait, or fail in any way."""
    closing = asyncio.create_task(ws.close())
    try:
        await asyncio.wait({closing}, timeout=2 * _CLOSE_S)
    finally:
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)


def _ended(ws: aiohttp.ClientWebSocketResponse) -> SocketEnd:
    code = ws.close_code if ws.close_code is not None else WSCloseCode.ABNORMAL_CLOSURE
    return SocketEnd(_AFTER_CLOSE.get(code, Then.AGAIN), f"closed {int(code)}", int(code))


def _refused(error: aiohttp.WSServerHandshakeError) -> SocketEnd:
    retry_after_s = seconds(error.headers.get("Retry-After") if error.headers is not None else None)
    if error.status == 401:
        then = Then.SIGN_IN
    elif error.status in (408, 425, 429) or error.status >= 500:
        then = Then.AGAIN
    else:
        then = Then.NOT_HERE
    return SocketEnd(then, f"answered {error.status} instead of a socket", error.status, retry_after_s)


def _parsed(data: str) -> Mapping[str, Any]:
    """A frame as a message; what is none is as good as nothing."""
    try:
        message = json.loads(data)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _judge(message: Mapping[str, Any]) -> dict[str, Any]:
    """Tell an answer from a refusal by its code, as `agent_api` does by its status."""
    payload = message.get("payload")
    if not isinstance(payload, dict):
        raise NotAnswered("an answer without a payload")
    if message.get("type") != "error":
        return payload
    code, details = payload.get("code"), payload.get("details")
    if isinstance(code, str) and code in _REFUSALS:
        raise GatewayRefused(_REFUSALS[code], code, str(payload.get("message", "")))
    if code in _PASSING:
        asked = details.get("retryAfter") if isinstance(details, dict) else None
        raise GatewayUnavailable(f"answered {code}", float(asked) if isinstance(asked, int) else None)
    raise NotAnswered(f"answered {code}")
