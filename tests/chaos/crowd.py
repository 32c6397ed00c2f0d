"""Everybody outside: devices, and people who submit and approve. They come for a fault and finish what they began."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aizen_gateway.storage.postgres import Database, PostgresOptions
from tests.support.clients import API, CustomerClient, World, token_for

from .calls import Caller
from .devices import Device, SocketDevice
from .ledger import FINAL, Ledger, Stored
from .stage import Stage

# Of each kind of device, for each gateway.
_EACH = 2
# Seconds between two submissions to one device, and the share of remediations.
_PACE = (0.1, 0.3)
_REMEDIATIONS = 0.3
# Commands of one device that have not ended, at most; a device may have a hundred.
_MOST_OPEN = 40
# Longer than any run; clocks are an hour apart.
_TOKEN_S = 30 * 86_400
_ENDS = ("command.succeeded", "command.failed")

_TRUTH = """
    select c.id, c.status, c.kind, c.attempt, c.result,
        (select count(*) from aizen.audit a where a.session_id = c.session_id and a.command_id = c.id
            and a.action = any($1)) as ends
    from aizen.commands c
"""


@dataclass(slots=True)
class Crowd:
    """All clients, and what they were answered."""

    stage: Stage
    ledger: Ledger
    world: World
    database: Database
    devices: list[Device] = field(default_factory=list)
    # One for each gateway, to try everything with.
    spare: list[Device] = field(default_factory=list)
    submitting: bool = False
    # Of the present fault's sessions, by device.
    _submitted: dict[str, set[str]] = field(default_factory=dict)
    _people: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def made(cls, stage: Stage, ledger: Ledger, leases_ms: Sequence[int]) -> AsyncIterator[Crowd]:
        """Inside, all are registered and signed in. `leases_ms` are what devices ask for, in turns."""
        async with AsyncExitStack() as stack:
            database = Database(PostgresOptions(stage.postgres.url, pool_size=2))
            stack.push_async_callback(database.close)
            world = await World.create(stage.gateways[0].url, stage.http, database)
            for person in (world.owner, world.admin):
                person.headers["Authorization"] = f"Bearer {token_for(person.user_id, ttl=_TOKEN_S)}"
            crowd = cls(stage, ledger, world, database)
            for number in range(_EACH * len(stage.gateways)):
                for kind in (Device, SocketDevice):
                    lease_ms = leases_ms[(number // len(stage.gateways)) % len(leases_ms)]
                    crowd.devices.append(await crowd._device(kind, number, lease_ms))
            for number in range(len(stage.gateways)):
                crowd.spare.append(await crowd._device(Device, number, max(leases_ms)))
            yield crowd

    async def _device(self, kind: type[Device], number: int, lease_ms: int) -> Device:
        asked_at = asyncio.get_running_loop().time()
        client = await self.world.device()
        caller = Caller(self.ledger, self.stage.gateways, number % len(self.stage.gateways), asked_at)
        return kind(client, caller, lease_ms)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Inside, all work, each device on a session of its own; a client that fails altogether fails the block."""
        self._submitted.clear()
        for device in [*self.devices, *self.spare]:
            device.caller.go_home()
            await self._open_session(device)
        self.submitting = True
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(device.attend()) for device in self.devices]
            self._people = [group.create_task(self._submit(device)) for device in self.devices]
            tasks += self._people
            try:
                yield
            finally:
                self.submitting = False
                for task in tasks:
                    task.cancel()

    async def _open_session(self, device: Device) -> None:
        caller = Caller(self.ledger, self.stage.gateways, device.caller.home)
        owner, sessions = self.world.owner, f"{API}/customer/sessions"
        if device.session_id:
            await caller.until("close", owner, "POST", f"{sessions}/{device.session_id}/close", {})
        body, key = {"deviceId": device.id, "type": "diagnostic"}, str(uuid4())
        answer = await caller.until("open", owner, "POST", sessions, body, Idempotency_Key=key)
        device.session_id = answer.body["session"]["id"]
        self._submitted[device.id] = set()

    async def _submit(self, device: Device) -> None:
        """Submit at a pace while that is wanted; what was begun is finished."""
        caller = Caller(self.ledger, self.stage.gateways, device.caller.home)
        while self.submitting:
            if len(self._submitted[device.id]) < _MOST_OPEN or await self._room(device, caller):
                kind = "remediation" if random.random() < _REMEDIATIONS else "diagnostic"
                await self.submit(device, caller, kind)
            await asyncio.sleep(random.uniform(*_PACE))

    async def _room(self, device: Device, caller: Caller) -> bool:
        """Whether the device may get more, by what is still open."""
        commands = await self._read(device, caller)
        return sum(command["status"] not in FINAL for command in commands) < _MOST_OPEN

    async def submit(self, device: Device, caller: Caller, kind: str) -> str:
        """Submit a command and approve it where it needs that, as careful clients do. Return its id."""
        path, key = f"{API}/customer/sessions/{device.session_id}", str(uuid4())
        body: dict[str, Any] = {"type": "ping" if kind == "diagnostic" else "restart_dhcp"}
        body |= {"parameters": {"host": key}, "priority": random.randint(1, 10)}
        answer = await caller.until("submit", self.world.owner, "POST", f"{path}/commands", body, Idempotency_Key=key)
        command_id = str(answer.body["command"]["id"])
        self.ledger.submitted(command_id, kind, key)
        self._submitted[device.id].add(command_id)
        if kind == "remediation":
            decision = {"approved": True, "commandId": command_id}
            await caller.until("approve", self.world.admin, "POST", f"{path}/approve", decision, ends=(200, 409))
        return command_id

    async def _read(self, device: Device, caller: Caller) -> Sequence[Any]:
        path = f"{API}/customer/sessions/{device.session_id}"
        owner: CustomerClient = self.world.owner
        return list((await caller.until("session", owner, "GET", path)).body["session"]["commands"])

    async def finish(self, within: float) -> None:
        """Submit no more, wait until everything has ended, and judge it by what each gateway tells of it.

        What has not ended `within` seconds is judged as it is.
        """
        self.submitting = False
        loop = asyncio.get_running_loop()
        ends = loop.time() + within
        await asyncio.wait(self._people, timeout=within)
        while loop.time() < ends:
            open_now = "select count(*) as n from aizen.commands where status = any($1)"
            row = await self.database.fetchrow(open_now, ["pending_approval", "queued", "claimed", "cancel_requested"])
            if not row["n"] and not any(isinstance(found, SocketDevice) and found.unheard for found in self.devices):
                break
            await asyncio.sleep(0.25)
        audited = await self.truth()
        for device in [*self.devices, *self.spare]:
            for home in range(len(self.stage.gateways)):
                told = await self._read(device, Caller(self.ledger, self.stage.gateways, home))
                shown = {command["id"]: _stored(command, audited) for command in told}
                self.ledger.judge(shown, self._submitted[device.id])

    async def truth(self) -> Mapping[str, Stored]:
        """All commands as the database has them."""
        rows = await self.database.fetch(_TRUTH, _ENDS)
        return {
            str(row["id"]): Stored(row["status"], row["kind"], row["attempt"], row["result"], row["ends"])
            for row in rows
        }


def _stored(command: Mapping[str, Any], audited: Mapping[str, Stored]) -> Stored:
    kept = audited.get(command["id"])
    return Stored(
        command["status"], command["kind"], command["attempt"], command.get("result"), kept.ends if kept else 0
    )
