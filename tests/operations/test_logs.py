"""What an instance writes while it does its main job: a line for each request, and nothing secret (section 1)."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import ClientSession

from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, Client, CustomerClient, DeviceClient, Reply, World, expect
from tests.support.processes import GatewayProcess, StartGatewayProcess


@dataclass(slots=True)
class Journal:
    """Gives each call a request id of its own and keeps what was said in it that must not be logged."""

    calls: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def call(self, client: Client, method: str, path: str, body: Any = None) -> Any:
        """Make a call that must succeed and return its body."""
        request_id = f"call-{next(self._numbers)}"
        reply: Reply = await client.call(method, path, body, headers={"X-Request-ID": request_id})
        assert reply.headers["X-Request-ID"] == request_id
        assert reply.status < 300, reply.body
        self.calls[request_id] = (method, path, reply.status)
        self._keep(reply.body)
        self._keep(body)
        self.secrets.update(value.removeprefix("Bearer ") for value in client.headers.values() if len(value) > 40)
        return reply.body

    def _keep(self, body: Any) -> None:
        if isinstance(body, dict):
            for name, value in body.items():
                if isinstance(value, str) and name.lower().endswith(("token", "secret", "code")):
                    self.secrets.add(value)
                self._keep(value)
        elif isinstance(body, list):
            for item in body:
                self._keep(item)


async def main_job(world: World, journal: Journal) -> DeviceClient:
    """A device comes in, is diagnosed, is changed with approval, and goes: every kind of call."""
    owner, call = world.owner, journal.call
    anyone = world.anyone()
    code = (await call(owner, "POST", f"{API}/customer/devices/provision", {"deviceId": "router-1"}))["device"]
    body = {"deviceId": "router-1", "activationCode": code["activationCode"]}
    registered = await call(anyone, "POST", f"{API}/device/register", body)
    device = DeviceClient(owner.http, owner.url, {}, "router-1", registered["deviceSecret"])
    credentials = {"deviceId": "router-1", "deviceSecret": device.secret}
    token = (await call(anyone, "POST", f"{API}/device/auth", credentials))["token"]
    device.headers["X-Device-Token"] = token
    await call(device, "POST", f"{API}/device/heartbeat", {"status": "online", "metrics": {"cpu": 1}})
    await call(device, "POST", f"{API}/device/commands/claim", {"waitMs": 100})
    opening = {"deviceId": "router-1", "type": "diagnostic"}
    session = (await call(owner, "POST", f"{API}/customer/sessions", opening))["session"]
    path = f"{API}/customer/sessions/{session['id']}"
    for type_ in ("ping", "restart_dhcp"):
        command = (await call(owner, "POST", f"{path}/commands", {"type": type_}))["command"]
        if command["status"] == "pending_approval":
            await call(world.admin, "POST", f"{path}/approve", {"approved": True, "commandId": command["id"]})
        (claimed,) = (await call(device, "POST", f"{API}/device/commands/claim", {}))["commands"]
        at = f"{API}/device/commands/{claimed['id']}"
        await call(device, "GET", at)
        holding = {"claimToken": claimed["claimToken"]}
        await call(device, "POST", f"{at}/extend", holding)
        result = {**holding, "status": "success", "executedAt": "2026-01-02T03:04:05.678Z", "duration": 1}
        await call(device, "POST", f"{at}/result", result)
    await call(owner, "GET", path)
    await call(owner, "GET", f"{path}/transcript")
    await call(owner, "GET", f"{API}/customer/devices?search=needle-in-a-query&limit=3")
    await call(owner, "GET", f"{API}/customer/devices/router-1/status")
    await call(owner, "GET", f"{API}/customer/audit")
    await call(world.service, "GET", f"{API}/customer/approvals")
    await call(owner, "POST", f"{path}/close", {})
    await call(device, "POST", f"{API}/device/logout", {})
    rotated = (await call(owner, "POST", f"{API}/customer/devices/router-1/rotate-secret", {}))["device"]
    assert rotated["activationCode"] in journal.secrets
    return device


@dataclass(frozen=True, slots=True)
class Done:
    """A whole main job, and the process that did it, which has ended."""

    gateway: GatewayProcess
    world: World
    journal: Journal


@pytest.fixture
async def done(start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database) -> Done:
    """The main job at level debug, where everything says what it can."""
    gateway = await start_gateway_process(AIZEN_LOG_LEVEL="debug")
    world = await World.create(gateway.url, http, database)
    journal = Journal()
    await main_job(world, journal)
    assert await gateway.run.stop() == 0
    return Done(gateway, world, journal)


async def test_each_request_is_one_line_that_says_who_asked_and_no_line_complains(done: Done) -> None:
    requests = {entry["request_id"]: entry for entry in done.gateway.run.entries if entry["event"] == "request"}
    lines = Counter(entry["request_id"] for entry in done.gateway.run.entries if entry["event"] == "request")
    assert set(lines) == set(done.journal.calls)
    assert set(lines.values()) == {1}
    for request_id, (method, path, status) in done.journal.calls.items():
        entry = requests[request_id]
        assert (entry["method"], entry["status"]) == (method, status)
        assert entry["customer_id"] == done.world.customer_id, path
        if path.startswith(f"{API}/device"):
            assert entry["device_id"] == "router-1", path
        assert entry["route"].startswith(f"{API}/")
        assert entry["ip"] == "127.0.0.1"
        assert entry["duration_ms"] > 0
    for entry in done.gateway.run.entries:
        assert {"timestamp", "level", "event", "logger"} <= entry.keys()
        assert entry["level"] not in ("warning", "error", "critical"), entry


async def test_nothing_secret_is_in_any_line_of_a_whole_job_at_debug_level(done: Done) -> None:
    secrets = done.journal.secrets
    # Tokens of users and a service, of a device and of claims; secrets; codes.
    assert len(secrets) >= 9
    text = done.gateway.run.text
    for secret in secrets:
        assert secret not in text
        # Not in part either: the end of a JWT is its signature, that of a device's token its random part.
        assert secret[-20:] not in text or len(secret) < 20


async def test_query_strings_and_unknown_paths_are_not_logged(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process(AIZEN_LOG_LEVEL="debug")
    world = await World.create(gateway.url, http, database)
    needle = f"needle{uuid4().hex}"
    expect(await world.owner.get(f"{API}/customer/devices?search={needle}"), 200)
    anyone = world.anyone()
    for path in (f"/healthz?token={needle}", f"/{needle}", f"{API}/customer/devices?{needle}={needle}"):
        await anyone.get(path)
    await CustomerClient(http, gateway.url, {"Authorization": f"Bearer {needle}"}).get(f"{API}/customer/devices")
    await DeviceClient(http, gateway.url, {"X-Device-Token": needle}).heartbeat()
    assert await gateway.run.stop() == 0
    assert needle not in gateway.run.text
    assert Counter(entry["event"] for entry in gateway.run.entries)["request"] == 6


async def test_a_refused_call_is_logged_with_its_code_alone(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process()
    world = await World.create(gateway.url, http, database)
    device = await world.device()
    await device.post(
        f"{API}/device/auth", {"deviceId": device.device_id, "deviceSecret": "a-wrong-secret-of-somebody"}
    )
    await device.post(f"{API}/device/commands/claim", {"limit": "a-strange-limit"}, X_Request_ID="refused-1")
    line = await gateway.run.logged("request", request_id="refused-1")
    assert (line["status"], line["error_code"]) == (400, "INVALID_REQUEST")
    assert "a-wrong-secret" not in gateway.run.text
    assert "a-strange-limit" not in gateway.run.text


async def test_what_is_asked_all_the_time_is_told_when_it_has_a_name_or_a_bad_answer(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process()
    world = await World.create(gateway.url, http, database)
    device = await world.device()
    for _ in range(3):
        expect(await device.heartbeat(), 200)
        expect(await device.post(f"{API}/device/commands/claim", {}), 200)
        expect(await device.get("/healthz"), 200)
    expect(await device.post(f"{API}/device/heartbeat", {"status": "unknown"}), 400)
    session = await world.owner.open_session(device.device_id)
    await world.owner.submit(session["id"])
    expect(await device.post(f"{API}/device/commands/claim", {}), 200)
    await device.call("GET", "/healthz", headers={"X-Request-ID": "named"})
    assert await gateway.run.stop() == 0
    told = [(entry["route"], entry["status"]) for entry in gateway.run.entries if entry["event"] == "request"]
    assert told.count((f"{API}/device/heartbeat", 400)) == 1
    assert told.count((f"{API}/device/heartbeat", 200)) == 0
    assert told.count((f"{API}/device/commands/claim", 200)) == 1
    assert told.count(("/healthz", 200)) == 1
