"""Devices at work: by long polls or on a socket, each result sent until somebody has taken it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from aiohttp import ClientError, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError

from tests.support.clients import API, DeviceClient, Reply

from .calls import Caller, pause
from .ledger import BROKEN, GAVE_UP, OUTDATED, Call, Delivery

# Milliseconds.
_WAIT = 3_000
# How many claims of one polling device run side by side.
_WORKERS = 3
_PREFETCH = 2
# Seconds: how long commands run, the share of those that run long, and between heartbeats.
_RUNS, _RUNS_LONG = (0.0, 0.1), (0.5, 2.0)
_LONG = 0.15
_HEARTBEAT_S = 1.5
# Seconds in which a gateway says something on a socket after it was asked.
_SOCKET_PATIENCE_S = 30.0
# Shares of commands: kept for longer, handed back, and forgotten by a device whose lease ends soon.
_EXTENDED, _RETURNED, _FORGOTTEN = 0.1, 0.05, 0.05
_FORGETFUL_MS = 5_000
# What the gateway is away for, as close codes of sockets say it.
_AS_STATUS = {1013: 503, 4401: 401}
# What errors on a socket are over REST.
_STATUSES = {
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
    "INVALID_CLAIM_TOKEN": 403,
    "CLAIM_EXPIRED": 403,
    "COMMAND_ALREADY_COMPLETED": 409,
}


@dataclass(slots=True)
class Device:
    """One device, and the session its commands come from. `lease_ms` is the lease it asks for."""

    client: DeviceClient
    caller: Caller
    lease_ms: int
    session_id: str = ""

    @property
    def id(self) -> str:
        return self.client.device_id

    @property
    def forgets(self) -> bool:
        """Whether the device crashes over the command that it has just begun."""
        return self.lease_ms <= _FORGETFUL_MS and random.random() < _FORGOTTEN

    async def sign_in(self) -> None:
        """Get a token, however long that takes."""
        asked_at = asyncio.get_running_loop().time()
        body = {"deviceId": self.id, "deviceSecret": self.client.secret}
        anyone = replace(self.caller, signed_in_at=None)
        answer = await anyone.until("sign in", self.client, "POST", f"{API}/device/auth", body, ends=(200,))
        self.client.headers["X-Device-Token"] = answer.body["token"]
        self.caller.signed_in_at = asked_at

    async def call(self, kind: str, path: str, body: Mapping[str, Any], *, attempt: int = 1) -> Reply | None:
        """One call; a device that is told to signs in, and then has no answer yet."""
        used = self.caller.signed_in_at
        reply = await self.caller.once(kind, self.client, "POST", f"{API}/device/{path}", body, attempt=attempt)
        if reply is not None and reply.status == 401:
            # Another worker may have signed in meanwhile.
            if self.caller.signed_in_at == used:
                await self.sign_in()
            return None
        return reply

    async def attend(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            for _ in range(_WORKERS):
                group.create_task(self._work())

    async def _beat(self) -> None:
        while True:
            await self.call("heartbeat", "heartbeat", {"status": "online", "metrics": {"cpu": 5}})
            await asyncio.sleep(_HEARTBEAT_S)

    async def _work(self) -> None:
        while True:
            wish = {"limit": random.randint(1, 3), "waitMs": _WAIT, "visibilityTimeout": self.lease_ms}
            reply = await self.call("claim", "commands/claim", wish)
            if reply is None or reply.status != 200:
                await pause()
                continue
            for claimed in reply.body["commands"]:
                await self._run(claimed)

    async def _run(self, claimed: Mapping[str, Any]) -> None:
        path = f"commands/{claimed['id']}"
        if random.random() < _RETURNED:
            self.caller.ledger.reached(claimed["id"], _kind(claimed))
            await self._ask("release", f"{path}/release", {"claimToken": claimed["claimToken"]})
            return
        result = self.begin(claimed)
        if self.forgets:
            return
        await asyncio.sleep(random.uniform(*(_RUNS_LONG if random.random() < _LONG else _RUNS)))
        if random.random() < _EXTENDED:
            wish = {"claimToken": claimed["claimToken"], "extensionMs": self.lease_ms}
            reply = await self.call("extend", f"{path}/extend", wish)
            if reply is not None and reply.status == 200:
                until = _ms(reply.body["visibleUntil"])
                self.caller.ledger.extended(claimed["id"], claimed["claimToken"], until)
        self.heard(claimed, result, await self._ask("result", f"{path}/result", result))

    async def _ask(self, kind: str, path: str, body: Mapping[str, Any]) -> Reply:
        attempt = 0
        while True:
            attempt += 1
            reply = await self.call(kind, path, body, attempt=attempt)
            if reply is not None and reply.status in (200, 403, 409):
                return reply
            await pause()

    def begin(self, claimed: Mapping[str, Any]) -> dict[str, Any]:
        """Run a command: note it, and return its result."""
        output = f"{claimed['id']} attempt {claimed['attempt']} {uuid4()}"
        until = _ms(claimed["visibleUntil"])
        self.caller.ledger.delivered(
            Delivery(
                claimed["id"], _kind(claimed), claimed["attempt"], claimed["claimToken"], until - self.lease_ms, output
            ),
            until,
        )
        failed = random.random() < 0.2
        return {
            "claimToken": claimed["claimToken"],
            "status": "failure" if failed else "success",
            "output": output,
            "error": "it did not work" if failed else None,
            "result": {"lossPercent": random.randint(0, 100), "text": "ä €"},
            "executedAt": "2026-01-02T03:04:05.678Z",
            "duration": random.randint(0, 1000),
        }

    def heard(self, claimed: Mapping[str, Any], result: Mapping[str, Any], reply: Reply) -> None:
        """The last word on a result."""
        if reply.status == 200:
            kept = {name: value for name, value in result.items() if name != "claimToken"}
            self.caller.ledger.taken(claimed["id"], kept)
        else:
            self.caller.ledger.refused(claimed["id"], claimed["attempt"])


@dataclass(slots=True)
class SocketDevice(Device):
    """A device on a socket. It runs what it was pushed when it knows that the gateway knows that it has it.

    `arrived` are the commands before that, `unheard` those whose result has not been taken.
    """

    arrived: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    unheard: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = field(default_factory=dict)

    async def attend(self) -> None:
        """Be connected until cancelled."""
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._connected(began)
            except WSServerHandshakeError as error:
                told = error.headers is not None and error.headers.get("Retry-After", "").isdigit()
                await self._ended("device socket", began, error.status, told)
            except TimeoutError:
                await self._ended("device socket", began, GAVE_UP)
            except (ClientError, OSError):
                await self._ended("device socket", began, BROKEN)
            await pause()

    async def _ended(self, kind: str, began: float, status: int, told: bool = False) -> None:
        loop = asyncio.get_running_loop()
        gateway, used = self.caller.gateway, self.caller.signed_in_at
        self.caller.ledger.call(Call(kind, gateway.name, began, loop.time(), status, None, told, signed_in_at=used))
        if status == 401:
            await self.sign_in()
        else:
            self.caller.leave(gateway)

    async def _connected(self, began: float) -> None:
        url = f"{self.caller.gateway.url}/ws/device?prefetch={_PREFETCH}&visibilityTimeout={self.lease_ms}"
        headers = {"X-Device-Token": self.client.token}
        self.arrived.clear()
        async with asyncio.timeout(_SOCKET_PATIENCE_S):
            socket = await self.client.http.ws_connect(url, headers=headers)
        beating = asyncio.create_task(self._talk(socket))
        try:
            while True:
                incoming = await socket.receive()
                if incoming.type is not WSMsgType.TEXT:
                    break
                await self._take(socket, json.loads(incoming.data))
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            async with asyncio.timeout(_SOCKET_PATIENCE_S):
                await socket.close()
        code = socket.close_code
        status = BROKEN if code in (None, 1006) else _AS_STATUS.get(code, code)
        now = asyncio.get_running_loop().time()
        await self._ended("device socket closed", max(began, now - 1), status, told=True)

    async def _talk(self, socket: ClientWebSocketResponse) -> None:
        """Heartbeats, and results that were not taken, now and then."""
        while True:
            for claimed, result in tuple(self.unheard.values()):
                await _send(socket, "command_result", {"commandId": claimed["id"], **result}, _of("result", claimed))
            await _send(socket, "heartbeat", {"status": "online"}, "heartbeat")
            await asyncio.sleep(_HEARTBEAT_S * random.uniform(0.5, 1.5))

    async def _take(self, socket: ClientWebSocketResponse, frame: dict[str, Any]) -> None:
        payload, request_id = frame.get("payload", {}), frame.get("requestId") or ""
        if frame["type"] == "command":
            self.arrived[_of("taken", payload)] = payload
            self.caller.ledger.reached(payload["id"], _kind(payload))
            await _send(socket, "status", {"status": "busy"}, _of("taken", payload))
            return
        if frame["type"] == "error":
            self._note(payload, request_id)
        if (claimed := self.arrived.pop(request_id, None)) is not None:
            result = self.begin(claimed)
            if self.forgets:
                return
            self.unheard[_of("result", claimed)] = claimed, result
            # One that runs long is sent with the next heartbeat, wherever that goes.
            if random.random() >= _LONG:
                await _send(socket, "command_result", {"commandId": claimed["id"], **result}, _of("result", claimed))
        elif request_id in self.unheard and self._is_last_word(frame):
            claimed, result = self.unheard.pop(request_id)
            self.heard(claimed, result, Reply(200 if frame["type"] == "ack" else 403, payload, {}))

    @staticmethod
    def _is_last_word(frame: Mapping[str, Any]) -> bool:
        return bool(frame["type"] == "ack" or frame["payload"]["code"] in OUTDATED)

    def _note(self, error: Mapping[str, Any], request_id: str) -> None:
        """An error on a socket, in the terms of REST."""
        kind = request_id.partition(":")[0]
        status = _STATUSES.get(error["code"], 500)
        now = asyncio.get_running_loop().time()
        name, used = self.caller.gateway.name, self.caller.signed_in_at
        self.caller.ledger.call(Call(kind, name, now, now, status, error["code"], True, signed_in_at=used))


def _kind(claimed: Mapping[str, Any]) -> str:
    return "remediation" if claimed["type"] == "restart_dhcp" else "diagnostic"


def _of(what: str, claimed: Mapping[str, Any]) -> str:
    return f"{what}:{claimed['claimToken']}"


async def _send(socket: ClientWebSocketResponse, type: str, payload: Mapping[str, Any], request_id: str) -> None:
    """Send a message; what cannot be sent any more is found out by who listens."""
    with suppress(ClientError, OSError):
        await socket.send_str(json.dumps({"type": type, "payload": payload, "requestId": request_id}))


def _ms(moment: str) -> int:
    """A time of the contract as milliseconds."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)
