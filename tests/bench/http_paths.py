"""The HTTP paths of the bench, and what a connection does on each: the same for the gateway and the ceiling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import orjson

from .load import Flow, Reply, request
from .stage import Device

API = "/api/v1"
_BATCH = 10


@dataclass(frozen=True, slots=True)
class Path:
    """One path: `flow` is what a connection does on behalf of a device; `target` is the ratio that must be reached.

    `target_alone` is that at one connection. `per` requests are one unit of what the path is about.
    """

    name: str
    title: str
    flow: Callable[[Device, str], Flow]
    target: float
    target_alone: float
    per: float = 1.0


def _good(reply: Reply, status: int = 200) -> bytes:
    if reply[0] != status:
        raise AssertionError(f"answered {reply[0]}: {reply[1][:300]!r}")
    return reply[1]


def _healthz(_device: Device, _jwt: str) -> Flow:
    asked = request("GET", "/healthz")
    while True:
        _good((yield asked))


def _empty_claim(device: Device, _jwt: str) -> Flow:
    asked = request("POST", f"{API}/device/commands/claim", b'{"limit":10}', {"X-Device-Token": device.token})
    while True:
        assert b'"commands":[]' in _good((yield asked))


def _heartbeat(device: Device, _jwt: str) -> Flow:
    body = {"status": "online", "metrics": {"cpu": 12.5, "memory": 43.1, "uptime": 86400}}
    asked = request("POST", f"{API}/device/heartbeat", orjson.dumps(body), {"X-Device-Token": device.token})
    while True:
        _good((yield asked))


def _sign_in(device: Device, _jwt: str) -> Flow:
    body = {"deviceId": device.id, "deviceSecret": device.secret}
    asked = request("POST", f"{API}/device/auth", orjson.dumps(body))
    while True:
        _good((yield asked))


def _status(device: Device, jwt: str) -> Flow:
    asked = request("GET", f"{API}/customer/devices/{device.id}/status", headers={"Authorization": f"Bearer {jwt}"})
    while True:
        _good((yield asked))


def _cycle(device: Device, jwt: str) -> Flow:
    """Ten commands submitted, claimed in one call, and answered."""
    person, own = {"Authorization": f"Bearer {jwt}"}, {"X-Device-Token": device.token}
    claim = request("POST", f"{API}/device/commands/claim", b'{"limit":10}', own)
    place = f"{API}/customer/sessions/{device.session_id}/commands"
    for number in count():
        for one in range(_BATCH):
            body = {"type": "ping", "parameters": {"host": "192.0.2.1", "count": number * _BATCH + one}}
            _good((yield request("POST", place, orjson.dumps(body), person)), 201)
        commands = orjson.loads(_good((yield claim)))["commands"]
        assert len(commands) == _BATCH, f"{len(commands)} commands of {_BATCH}"
        for command in commands:
            result = {
                "claimToken": command["claimToken"],
                "status": "success",
                "output": "3 packets transmitted, 3 received",
                "result": {"loss": 0, "rttMs": 1.25},
                "executedAt": "2026-01-01T00:00:00.000Z",
                "duration": 12.5,
            }
            asked = request("POST", f"{API}/device/commands/{command['id']}/result", orjson.dumps(result), own)
            answer = orjson.loads(_good((yield asked)))
            assert answer["status"] == "succeeded"
            assert not answer["duplicate"]


PATHS = (
    Path("healthz", "`/healthz`", _healthz, 0.80, 0.80),
    Path("claim", "empty claim", _empty_claim, 0.85, 0.80),
    Path("heartbeat", "heartbeat", _heartbeat, 0.80, 0.80),
    Path("auth", "device auth", _sign_in, 0.70, 0.70),
    Path("status", "device status with a JWT", _status, 0.70, 0.70),
    Path("cycle", "submit → claim(10) → ten results", _cycle, 0.70, 0.70, per=2.1),
)
