"""Thousands of long polls that wait, and a command for each of them; nobody asks Redis meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import orjson

from .http_paths import API
from .load import Flow, Load, Times, connect, request
from .outcome import Check, Figure, Row
from .plan import Plan
from .stage import Device, Stage

_WAIT_MS = 30_000
_SUBMITTERS = 8
_WITHIN_MS = 250.0
# Calls of Redis a second that may be other than without any poll: what else goes on in the gateway varies.
_FEW = 20.0
# Polls that begin at the same moment, and the seconds until they wait.
_BATCH = 100
_BETWEEN_S = 0.05
_PATIENCE_S = 60.0


@dataclass(slots=True)
class _Deliveries:
    """When the command of each session was submitted, and the seconds until its device had it."""

    submitted: dict[UUID, float] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)


async def measure(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """One row: from submit to the claim's answer, and the calls of Redis while all wait."""
    gateway = await stage.gateway()
    try:
        devices = await stage.devices("poll", plan.polls)
        alone = await calls_a_second(stage, plan.quiet)
        deliveries = _Deliveries()
        polls = await connect(gateway.port, [_poll(device, deliveries) for device in devices], Times())
        for start in range(0, len(polls), _BATCH):
            for poll in polls[start : start + _BATCH]:
                poll.begin()
            await asyncio.sleep(_BETWEEN_S)
        await asyncio.sleep(plan.settle)
        waiting = await calls_a_second(stage, plan.quiet)
        before = gateway.cpu(), stage.valkey_cpu(), stage.postgres_cpu()
        started = time.perf_counter()
        await _submit_all(stage, plan, gateway.port, devices, deliveries)
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.gather(*(poll.ended for poll in polls))
        load = Load.of(deliveries.waits, time.perf_counter() - started)
        after = gateway.cpu(), stage.valkey_cpu(), stage.postgres_cpu()
    finally:
        await gateway.end()
    costs = [(now - then) / load.answers * 1e6 for then, now in zip(before, after, strict=True)]
    yield Row(
        "polls",
        "long polls, a command to each",
        f"{plan.polls} waiting",
        plan.polls,
        {
            Figure.RATE: load.per_second,
            Figure.P50: load.p50 * 1000,
            Figure.P99: load.p99 * 1000,
            Figure.MAX: max(deliveries.waits) * 1000,
            Figure.CPU: costs[0],
            Figure.VALKEY: costs[1],
            Figure.POSTGRES: costs[2],
            Figure.CALLS: waiting,
        },
        None,
        (
            Check("answered", load.answers / plan.polls, 1.0, at_least=True),
            Check("ms p99", load.p99 * 1000, _WITHIN_MS),
            Check("calls/s for polls", waiting - alone, _FEW),
        ),
    )


def _poll(device: Device, deliveries: _Deliveries) -> Flow:
    body = orjson.dumps({"limit": 1, "waitMs": _WAIT_MS})
    asked = request("POST", f"{API}/device/commands/claim", body, {"X-Device-Token": device.token})
    while True:
        status, answer = yield asked
        now = time.perf_counter()
        assert status == 200, f"answered {status}: {answer[:300]!r}"
        if orjson.loads(answer)["commands"]:
            deliveries.waits.append(now - deliveries.submitted[device.session_id])
            return


async def _submit_all(stage: Stage, plan: Plan, port: int, devices: Sequence[Device], deliveries: _Deliveries) -> None:
    """Submit a command for each device, `submits` a second in all."""
    left = iter(devices)
    flows = [_submitter(stage.jwt, left, deliveries) for _ in range(_SUBMITTERS)]
    every = len(flows) / plan.submits
    connections = await connect(port, flows, Times(), every)
    for number, connection in enumerate(connections):
        connection.begin(number * every / len(flows))
    await asyncio.gather(*(connection.ended for connection in connections))


def _submitter(jwt: str, devices: Iterator[Device], deliveries: _Deliveries) -> Flow:
    headers = {"Authorization": f"Bearer {jwt}"}
    for device in devices:
        body = {"type": "ping", "parameters": {"host": "192.0.2.1"}}
        deliveries.submitted[device.session_id] = time.perf_counter()
        path = f"{API}/customer/sessions/{device.session_id}/commands"
        status, answer = yield request("POST", path, orjson.dumps(body), headers)
        assert status == 201, f"answered {status}: {answer[:300]!r}"


async def calls_a_second(stage: Stage, seconds: float) -> float:
    """How many commands Redis runs a second, those of scripts included, over the next `seconds`."""
    before, started = await _calls(stage), time.perf_counter()
    await asyncio.sleep(seconds)
    return (await _calls(stage) - before) / (time.perf_counter() - started)


async def _calls(stage: Stage) -> int:
    statistics = await stage.valkey.info("commandstats")
    return sum(found["calls"] for found in statistics.values())
