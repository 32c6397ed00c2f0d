"""The ceiling's sockets: a bare accept with one script, bare idle sockets, and a plain loop that sends to all."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol
from uuid import uuid4

import orjson
from aiohttp import WSMsgType, web

from aizen_gateway.storage.redis_store import script_text

_TTL_MS, _MAX_AGE_MS, _RATE = 604_800_000, 2_592_000_000, 1_000_000_000
_HEARTBEAT_MS = 30_000


class _Redis(Protocol):
    hashes: dict[str, bytes]

    def call(self, *command: Any) -> Any: ...

    def run(self, script: str, keys: list[str], *args: Any) -> Any: ...


PORTALS = web.AppKey("PORTALS", set[web.WebSocketResponse])


def add(app: web.Application, redis: web.AppKey[Any]) -> None:
    """Add the routes to `app`, which has its connection to Redis at `redis` once it runs."""

    async def load(app: web.Application) -> None:
        store: _Redis = app[redis]
        store.hashes["connect"] = await store.call("SCRIPT", "LOAD", script_text("connect"))

    async def device(request: web.Request) -> web.StreamResponse:
        token = request.query["token"]
        device_id = token.partition(".")[0]
        tag = "aizen:{" + device_id + "}:"
        socket, connection_id = _socket(), str(uuid4())
        await socket.prepare(request)
        store: _Redis = request.app[redis]
        _, now, *_ = await store.run(
            "connect",
            [tag + "sessions", tag + "device", tag + "limit", tag + "pending", tag + "leased"],
            *(hashlib.sha256(token.encode()).hexdigest(), _TTL_MS, _MAX_AGE_MS, _RATE, connection_id, tag + "channel"),
        )
        await _send(
            socket,
            "connected",
            {
                "deviceId": device_id,
                "connectionId": connection_id,
                "serverTime": now,
                "heartbeatIntervalMs": _HEARTBEAT_MS,
                "prefetch": 1,
            },
        )
        async for _ in socket:
            pass
        return socket

    app[PORTALS] = set()
    app.on_startup.append(load)
    app.router.add_get("/ws/device", device)
    app.router.add_get("/ws/customer", _portal)
    app.router.add_post("/broadcast", _broadcast)


def _socket() -> web.WebSocketResponse:
    return web.WebSocketResponse(compress=False, max_msg_size=256 * 1024)


async def _send(socket: web.WebSocketResponse, type: str, payload: dict[str, Any]) -> None:
    await socket.send_frame(orjson.dumps({"type": type, "payload": payload}), WSMsgType.TEXT)


async def _portal(request: web.Request) -> web.StreamResponse:
    socket = _socket()
    await socket.prepare(request)
    await _send(socket, "connected", {"connectionId": str(uuid4())})
    portals = request.app[PORTALS]
    try:
        async for message in socket:
            match orjson.loads(message.data)["type"]:
                case "ping":
                    await _send(socket, "pong", {})
                case "join_rooms":
                    portals.add(socket)
                    await _send(socket, "rooms_joined", {"rooms": ["customer"]})
    finally:
        portals.discard(socket)
    return socket


async def _broadcast(request: web.Request) -> web.Response:
    """Send the body to everybody who has joined, one after the other."""
    frame = await request.read()
    portals = request.app[PORTALS]
    for socket in tuple(portals):
        await socket.send_frame(frame, WSMsgType.TEXT)
    return web.Response()
