"""Devices on sockets: some steady, some that come and go, some that never read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientWebSocketResponse

from tests.support.clients import API, DeviceClient, expect

from .connection import away, connection, for_a_moment, freeze, keep_on, receive, tell
from .ledger import Ledger, Manner

_HEARTBEAT_S = 30.0
# What a device may be told when it reports what it had from a socket that it lost: the command comes again.
_COMES_AGAIN = frozenset({"INVALID_CLAIM_TOKEN", "CLAIM_EXPIRED"})


@dataclass(slots=True)
class Device:
    """One device with its session, and how it behaves. `lease_ms` is the lease of what is pushed to it, None for the
    gateway's own. `unheard` are results that the gateway has not acknowledged."""

    client: DeviceClient
    session_id: str
    manner: Manner
    lease_ms: int | None
    urls: Sequence[str]
    ledger: Ledger
    unheard: dict[str, dict[str, Any]] = field(default_factory=dict)
    there: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        return self.client.device_id

    async def attend(self) -> None:
        """Be there until cancelled."""
        turns = {Manner.STEADY: self._steady, Manner.FLAPPING: self._flap, Manner.FROZEN: self._freeze}
        await keep_on(turns[self.manner], self.ledger, f"{self.manner} device")

    async def _steady(self) -> None:
        async with self._connection() as socket:
            self.there.set()
            beating = asyncio.create_task(self._beat(socket))
            try:
                await self._work(socket)
            finally:
                beating.cancel()

    async def _flap(self) -> None:
        async with self._connection() as socket:
            self.there.set()
            await for_a_moment(socket, self._work(socket))
        await away()

    async def _freeze(self) -> None:
        await freeze(self._url(), {"X-Device-Token": self.client.token}, self.there)

    def _url(self) -> str:
        return f"{random.choice(self.urls)}/ws/device" + (
            f"?visibilityTimeout={self.lease_ms}" if self.lease_ms else ""
        )

    def _connection(self) -> AbstractAsyncContextManager[ClientWebSocketResponse]:
        return connection(self.client.http, self._url(), {"X-Device-Token": self.client.token})

    async def _work(self, socket: ClientWebSocketResponse) -> None:
        for result in tuple(self.unheard.values()):
            await tell(socket, "command_result", result, result["commandId"])
        while True:
            frame = await receive(socket)
            if frame["type"] == "command":
                result = self._run(frame["payload"])
                await tell(socket, "command_result", result, result["commandId"])
            elif frame["type"] == "ack":
                self._heard(frame["requestId"])
            elif frame["type"] == "error":
                self._refused(frame["payload"])

    def _run(self, command: dict[str, Any]) -> dict[str, Any]:
        self.ledger.received(command["id"], self.manner)
        self.unheard[command["id"]] = result = {
            "commandId": command["id"],
            "claimToken": command["claimToken"],
            "status": "success",
            "output": f"attempt {command['attempt']}",
            "executedAt": "2026-01-02T03:04:05.678Z",
            "duration": 1,
        }
        return result

    def _heard(self, command_id: str) -> None:
        self.unheard.pop(command_id, None)
        self.ledger.reported(command_id, self.id)

    def _refused(self, error: dict[str, Any]) -> None:
        if self.manner is Manner.STEADY or error["code"] not in _COMES_AGAIN:
            self.ledger.failures.append(f"{self.manner} device: told {error['code']}")

    async def _beat(self, socket: ClientWebSocketResponse) -> None:
        await asyncio.sleep(random.uniform(0, _HEARTBEAT_S))
        while not socket.closed:
            await tell(socket, "heartbeat", {"status": "online", "metrics": {"cpu": random.random()}})
            await asyncio.sleep(_HEARTBEAT_S)

    async def collect(self) -> None:
        """Without a socket: take by polling what is still open, and report it."""
        while self.ledger.waiting[self.id]:
            for claimed in await self.client.claim(limit=10, waitMs=5_000, visibilityTimeout=60_000):
                body = {name: value for name, value in self._run(claimed).items() if name != "commandId"}
                expect(await self.client.post(f"{API}/device/commands/{claimed['id']}/result", body), 200)
                self._heard(claimed["id"])
