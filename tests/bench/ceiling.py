"""The ceiling: the smallest aiohttp application that does the gateway's input and output by hand, and nothing else.

No validation, no errors, no limits of its own, no metrics, no log: the same scripts, the same SQL, the same answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
from collections import deque
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import hiredis
import jwt
import orjson
import uvloop
from aiohttp import web

from aizen_gateway.services.group_looks import LOOK_AT_ONE
from aizen_gateway.storage import queries
from aizen_gateway.storage.postgres import BY_INDEX
from aizen_gateway.storage.redis_store import script_text

from . import ceiling_cycle, ceiling_sockets

_DEVICES = queries.load("devices")
_TTL_MS, _MAX_AGE_MS, _RATE = 604_800_000, 2_592_000_000, 1_000_000_000
_SCRIPTS = ("claim", "enter", "enqueue", "heartbeat", "hold", "limit", "open_session", "publish_event", "settle")
# What a claim's script answers before the commands.
_HEAD = 6


class Redis(asyncio.Protocol):
    """One connection; whoever calls within a tick of the loop shares a write."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(encoding="utf-8")
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport
        self._written: list[bytes] = []
        self.hashes: dict[str, bytes] = {}

    @classmethod
    async def open(cls, url: str) -> Redis:
        where = urlsplit(url)
        _, redis = await asyncio.get_running_loop().create_connection(cls, where.hostname or "", where.port or 0)
        await redis.call("AUTH", where.password)
        for name in _SCRIPTS:
            redis.hashes[name] = await redis.call("SCRIPT", "LOAD", script_text(name))
        return redis

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            waiter = self._waiting.popleft()
            if isinstance(answer, hiredis.ReplyError):
                waiter.set_exception(answer)
            else:
                waiter.set_result(answer)

    def call(self, *command: Any) -> asyncio.Future[Any]:
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(hiredis.pack_command(command))
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        return waiter

    def _flush(self) -> None:
        self._transport.write(b"".join(self._written))
        self._written.clear()

    def run(self, script: str, keys: list[str], *args: Any) -> asyncio.Future[Any]:
        return self.call("EVALSHA", self.hashes[script], len(keys), *keys, *args)


REDIS = web.AppKey("REDIS", Redis)
POOL = web.AppKey[Any]("POOL")
TOKENS = web.AppKey("TOKENS", dict[str, Any])
CYCLE = web.AppKey("CYCLE", ceiling_cycle.Cycle)


def _answer(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")


def _time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")[:23] + "Z"


def _keys(device_id: str, *names: str) -> list[str]:
    return ["aizen:{" + device_id + "}:" + name for name in names]


def _session(request: web.Request) -> tuple[str, str]:
    token = request.headers["X-Device-Token"]
    return token.partition(".")[0], hashlib.sha256(token.encode()).hexdigest()


async def healthz(request: web.Request) -> web.Response:
    return _answer({"status": "ok", "timestamp": _time(datetime.now(UTC))})


async def claim(request: web.Request) -> web.Response:
    body = orjson.loads(await request.read())
    device_id, token = _session(request)
    found = await request.app[REDIS].run(
        "claim",
        _keys(device_id, "sessions", "device", "limit", "pending", "leased", "records"),
        *(token, _TTL_MS, _MAX_AGE_MS, _RATE, body.get("limit", 1), 300_000),
    )
    if len(found) == _HEAD:
        return _answer({"commands": []})
    return _answer({"commands": await request.app[CYCLE].claim(device_id, found[1], found[2], found[_HEAD:])})


async def heartbeat(request: web.Request) -> web.Response:
    body = orjson.loads(await request.read())
    device_id, token = _session(request)
    answer = await request.app[REDIS].run(
        "heartbeat",
        _keys(device_id, "sessions", "device", "limit", "pending", "leased", "records"),
        *(token, _TTL_MS, _MAX_AGE_MS, _RATE, body["status"], orjson.dumps(body), 90_000, 0),
    )
    at = _time(datetime.fromtimestamp(answer[1] / 1000, UTC))
    return _answer(
        {
            "success": True,
            "timestamp": at,
            "nextHeartbeat": 30_000,
            "pendingCommands": answer[5],
            "acknowledged": True,
        }
    )


async def sign_in(request: web.Request) -> web.Response:
    body = orjson.loads(await request.read())
    device_id = body["deviceId"]
    row = await request.app[POOL].fetchrow(_DEVICES["read_device_by_id"], device_id)
    if not hmac.compare_digest(hashlib.sha256(body["deviceSecret"].encode()).digest(), row["secret_hash"]):
        return _answer({}, 401)
    token = f"{device_id}.{secrets.token_urlsafe(32)}"
    await request.app[REDIS].run(
        "open_session",
        _keys(device_id, "sessions", "epoch"),
        hashlib.sha256(token.encode()).hexdigest(),
        *(_TTL_MS, _MAX_AGE_MS, str(row["uid"]), str(row["customer_id"]), row["credential_epoch"], 16),
    )
    return _answer({"token": token, "expiresIn": 604_800, "deviceId": device_id})


def _claims(request: web.Request) -> dict[str, Any]:
    token = request.headers["Authorization"][7:]
    known = request.app[TOKENS]
    if token not in known:
        secret = os.environ["SUPABASE_JWT_SECRET"]
        known[token] = jwt.decode(token, secret, ["HS256"], audience="authenticated")
    claims: dict[str, Any] = known[token]
    return claims


async def device_status(request: web.Request) -> web.Response:
    claims = _claims(request)
    customer = claims["app_metadata"]["customer_id"]
    key = f"aizen:{{c:{customer}}}:limit:{claims['sub']}"
    _, now = await request.app[REDIS].run("limit", [key], _RATE, 1)
    at = datetime.fromtimestamp(now / 1000, UTC)
    device_id = request.match_info["device_id"]
    row = await request.app[POOL].fetchrow(LOOK_AT_ONE, 0, device_id, customer, at)
    return _answer(
        {
            "device": {
                "id": row["id"],
                "name": row["name"],
                "location": row["location"],
                "status": row["presence"],
                "connection": row["connection"],
                "lastSeen": None,
                "lastHeartbeat": None,
                "metrics": row["metrics"],
                "diagnostics": row["diagnostics"],
                "pendingCommands": row["pending_commands"],
                "registeredAt": _time(row["registered_at"]),
                "activeSession": str(row["active_session"]),
            }
        }
    )


async def _parts(app: web.Application) -> Any:
    async def prepare(connection: asyncpg.Connection) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(
                name, encoder=lambda value: orjson.dumps(value).decode(), decoder=orjson.loads, schema="pg_catalog"
            )
        await connection.execute(BY_INDEX)

    app[REDIS] = await Redis.open(os.environ["REDIS_URL"])
    app[POOL] = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=10, init=prepare)
    yield
    await app[POOL].close()


def application() -> web.Application:
    app = web.Application()
    app[TOKENS] = {}
    app.cleanup_ctx.append(_parts)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", healthz)
    app.router.add_post("/api/v1/device/commands/claim", claim)
    app.router.add_post("/api/v1/device/heartbeat", heartbeat)
    app.router.add_post("/api/v1/device/auth", sign_in)
    app.router.add_get("/api/v1/customer/devices/{device_id}/status", device_status)
    ceiling_sockets.add(app, REDIS)
    app[CYCLE] = ceiling_cycle.Cycle(app, REDIS, POOL, _claims, _keys)
    return app


async def _serve() -> None:
    runner = web.AppRunner(application(), access_log=None, handle_signals=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["AIZEN_PORT"]), backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve())
