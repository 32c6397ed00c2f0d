"""The ceiling's commands: submitted, claimed and answered by hand, with the gateway's own scripts and SQL.

The SQL of callers of the same moment is one transaction here too. A command is kept as the columns that the next step
needs; nothing is judged.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
from aiohttp import web

from aizen_gateway.storage import queries

_COMMANDS, _SESSIONS, _OUTBOX = queries.load("commands"), queries.load("sessions"), queries.load("outbox")
_AT_HAND = _COMMANDS["confirm_claims"].replace("for update of c", "for update of c skip locked")
_PLACES = 2**49
_TTL_MS, _MAX_AGE_MS, _RATE = 604_800_000, 2_592_000_000, 1_000_000_000
_EVENTS = (2_000, 3_600_000, 604_800_000, 1_000, 10_000, 600_000)
_AT_ONCE, _MOST = 2, 64

Claims = Callable[[web.Request], dict[str, Any]]
Keys = Callable[..., list[str]]


class Group:
    """What callers bring while two runs are under way is the next run."""

    def __init__(self, run: Callable[[list[Any]], Awaitable[Sequence[Any]]]) -> None:
        self._run = run
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def do(self, item: Any) -> asyncio.Future[Any]:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if len(self._tasks) < _AT_ONCE:
            self._begin()
        return done

    def _begin(self) -> None:
        task = asyncio.get_running_loop().create_task(self._work())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._waiting and len(self._tasks) < _AT_ONCE:
            self._begin()

    async def _work(self) -> None:
        group = self._waiting[:_MOST]
        del self._waiting[:_MOST]
        if group:
            for (_, done), result in zip(group, await self._run([item for item, _ in group]), strict=True):
                done.set_result(result)


class Cycle:
    """The three calls on an application, which has its connections at `redis` and `pool` once it runs."""

    def __init__(
        self, app: web.Application, redis: web.AppKey[Any], pool: web.AppKey[Any], claims_of: Claims, keys: Keys
    ) -> None:
        self._app = app
        self._redis = redis
        self._pool = pool
        self._claims_of = claims_of
        self._keys = keys
        self._told: list[int] = []
        self._submissions = Group(self._submit_all)
        self._confirmations = Group(self._confirm_all)
        self._results = Group(self._take_all)
        app.cleanup_ctx.append(self._forget)
        app.router.add_post("/api/v1/customer/sessions/{session_id}/commands", self.submit)
        app.router.add_post("/api/v1/device/commands/{command_id}/result", self.result)

    async def _transaction(self, *statements: tuple[str, list[Any]]) -> list[list[Any]]:
        async with self._app[self._pool].acquire() as connection:
            await connection.execute("begin")
            rows = [await connection.fetch(statement, *columns) for statement, columns in statements]
            await connection.execute("commit")
        return rows

    async def _submit_all(self, orders: list[tuple[Any, ...]]) -> Sequence[Any]:
        async with self._app[self._pool].acquire() as connection:
            await connection.execute("begin")
            held = await connection.fetch(_SESSIONS["lock_sessions_at_hand"], [order[1] for order in orders])
            columns = [list(column) for column in zip(*orders, strict=True)]
            placed = await connection.fetch(_COMMANDS["submit_commands"], *columns, [row["id"] for row in held], 100)
            await connection.execute("commit")
        found = {row["id"]: row for row in placed}
        return [found[order[0]] for order in orders]

    async def _confirm_all(self, wanted: list[list[tuple[Any, ...]]]) -> Sequence[Any]:
        columns = [list(column) for column in zip(*(row for rows in wanted for row in rows), strict=True)]
        (rows,) = await self._transaction((_AT_HAND, columns))
        found = {row["claim_token"]: row for row in rows}
        return [[found[row[1]] for row in rows] for rows in wanted]

    async def _take_all(self, results: list[tuple[UUID, UUID, tuple[Any, ...]]]) -> Sequence[Any]:
        _, saved = await self._transaction(
            (_COMMANDS["lock_commands"], [[one[0] for one in results]]),
            (_COMMANDS["save_results"], [list(column) for column in zip(*(one[2] for one in results), strict=True)]),
        )
        found = {row["id"]: row["version"] for row in saved}
        return [found[one[0]] for one in results]

    def _publish(self, command_id: Any, version: int, customer: Any, rooms: str, event: bytes) -> Awaitable[Any]:
        tag = f"aizen:{{c:{customer}}}:"
        where = [tag + "events", tag + "tail", tag + "versions"]
        return self._app[self._redis].run(  # type: ignore[no-any-return]
            "publish_event", where, version, tag + "channel", rooms, event, f"command:{command_id}", *_EVENTS
        )

    def _done(self, version: int) -> None:
        self._told.append(version)

    async def _forget(self, app: web.Application) -> Any:
        async def clear() -> None:
            while True:
                await asyncio.sleep(0.5)
                gone = self._told.copy()
                self._told.clear()
                await self._app[self._pool].execute(_OUTBOX["delete_outbox"], gone)

        task = asyncio.get_running_loop().create_task(clear())
        yield
        task.cancel()

    async def submit(self, request: web.Request) -> web.Response:
        body, who = orjson.loads(await request.read()), self._claims_of(request)
        customer = who["app_metadata"]["customer_id"]
        _, now = await self._app[self._redis].run("limit", [f"aizen:{{c:{customer}}}:limit:{who['sub']}"], _RATE, 1)
        parameters = orjson.dumps(body["parameters"], option=orjson.OPT_SORT_KEYS).decode()
        canonical = f'{{"parameters":{parameters},"type":"{body["type"]}"}}'
        digest = "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
        session, command_id = UUID(request.match_info["session_id"]), uuid4()
        row = await self._submissions.do(
            (
                *(command_id, session, UUID(customer), body["type"], "diagnostic", parameters, digest, 5, 300_000, 5),
                *(None, who["sub"], "user", None, datetime.fromtimestamp(now / 1000, UTC), str(uuid4())),
                *("127.0.0.1", None),
            )
        )
        view = _view(row)
        event = orjson.dumps({"type": "command_update", "payload": {"command": view}})
        device_id, score = row["device_id"], 5 * _PLACES + row["place"]
        record = f"{score}:{int(row['claim_by'].timestamp() * 1000)}:5:300000:0"
        published = self._publish(command_id, row["version"], customer, f"session:{session} device:{device_id}", event)
        queue = self._keys(device_id, "pending", "leased", "records")
        channel = self._keys(device_id, "channel")[0]
        await self._app[self._redis].run("enqueue", queue, str(command_id), record, score, channel)
        await published
        self._done(row["version"])
        return web.Response(status=201, body=orjson.dumps({"command": view}), content_type="application/json")

    async def claim(self, device_id: str, now_ms: int, uid: str, ids: Sequence[str]) -> list[Any]:
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        ends, seed, owner = now + timedelta(milliseconds=300_000), uuid4().hex, UUID(uid)
        rows = await self._confirmations.do(
            [
                (UUID(one), f"{seed}.{place}", owner, now, ends, device_id, str(uuid4()), "127.0.0.1", None)
                for place, one in enumerate(ids)
            ]
        )
        queue, waiting, answer = self._keys(device_id, "pending", "leased", "records"), [], []
        for row in rows:
            view, place = _view(row), 5 * _PLACES + row["place"]
            event = orjson.dumps({"type": "command_update", "payload": {"command": view}})
            rooms = f"session:{row['session_id']} device:{device_id}"
            waiting.append(self._publish(row["id"], row["version"], row["customer_id"], rooms, event))
            ends_ms = int(row["visible_until"].timestamp() * 1000)
            record = f"{place}:{int(row['claim_by'].timestamp() * 1000)}:4:300000:{ends_ms}"
            waiting.append(self._app[self._redis].run("hold", queue, str(row["id"]), record, ends_ms))
            answer.append({**view, "claimToken": row["claim_token"], "visibleUntil": _time(ends), "leaseMs": 300_000})
        for one in waiting:
            await one
        for row in rows:
            self._done(row["version"])
        return answer

    async def result(self, request: web.Request) -> web.Response:
        raw = await request.read()
        body, token = orjson.loads(raw), request.headers["X-Device-Token"]
        device_id, command_id = token.partition(".")[0], UUID(request.match_info["command_id"])
        _, now_ms, uid, customer, _ = await self._app[self._redis].run(
            "enter",
            self._keys(device_id, "sessions", "device", "limit"),
            hashlib.sha256(token.encode()).hexdigest(),
            *(_TTL_MS, _MAX_AGE_MS, _RATE),
        )
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        record = {**body, "receivedAt": _time(now), "late": False, "truncated": False}
        version = await self._results.do(
            (
                command_id,
                UUID(uid),
                (
                    *(command_id, "succeeded", now, orjson.dumps(record).decode(), hashlib.sha256(raw).digest()),
                    *(device_id, str(uuid4()), "127.0.0.1", None, {"status": "success", "late": False}),
                ),
            )
        )
        event = orjson.dumps({"type": "command_update", "payload": {"command": {"id": str(command_id), **record}}})
        published = self._publish(command_id, version, customer, f"device:{device_id}", event)
        queue = self._keys(device_id, "pending", "leased", "records")
        await self._app[self._redis].run("settle", queue, str(command_id), self._keys(device_id, "channel")[0])
        await published
        self._done(version)
        answer = {"success": True, "status": "succeeded", "duplicate": False, "late": False}
        return web.Response(body=orjson.dumps(answer), content_type="application/json")


def _view(row: Any) -> dict[str, Any]:
    return {
        "id": str(row["id"]),
        "deviceId": row["device_id"],
        "sessionId": str(row["session_id"]),
        "type": row["type"],
        "kind": row["kind"],
        "parameters": row["parameters"],
        "priority": row["priority"],
        "status": row["status"],
        "attempt": row["attempt"],
        "timeoutMs": row["timeout_ms"],
        "digest": row["digest"],
        "proposedBy": row["proposed_by"],
        "createdAt": _time(row["created_at"]),
        "expiresAt": _time(row["expires_at"]),
    }


def _time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")[:23] + "Z"
