"""What must not cost more: many registered devices, many finished commands, and a second gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from aizen_gateway.storage.keys import DeviceKeys

from .filling import finish, keep_waiting, register
from .http_paths import PATHS
from .http_runs import figures_of
from .load import Flow, Load, drive
from .outcome import Check, Figure, Figures, Row, medians
from .plan import Plan
from .stage import Device, Server, Stage

_CONNECTIONS = 16
_FLAT = 1.10
# So many devices keep two gateways busy.
_CROWD = 128
# Of what one gateway can do: there the processes are neither idle nor full.
_PART = 0.5
_CYCLE = next(path for path in PATHS if path.name == "cycle")
_COSTS = (Figure.CPU, Figure.VALKEY, Figure.POSTGRES)
_END_OPEN = """update aizen.commands set status = 'canceled', completed_at = now(), due_at = null
               where status in ('queued', 'claimed') and device_id = any($1)"""
# Requests of one command: a tenth of the claim, its submission and its result.
_REQUESTS = _CYCLE.per


async def measure(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """Rows of the cost a command: with more and more devices, then with a longer and longer history too.

    `stage` must be new: what others have left in it would be counted as well.
    """
    gateway = await stage.gateway()
    try:
        devices = await stage.devices("scale", _CONNECTIONS)
        # The first commands of a process find nothing compiled or cached.
        await _runs(stage, replace(plan, runs=1), gateway, devices)
        few = found = await _runs(stage, plan, gateway, devices)
        path, title = "scale-devices", "cost with devices registered"
        yield _row(path, title, f"{_CONNECTIONS} devices", _CONNECTIONS, few, None)
        registered = 0
        for count in plan.devices:
            async with stage.database() as database:
                await register(database, stage.valkey, stage.customer_id, registered, count)
                await keep_waiting(database, stage.customer_id, registered, count)
            registered = count
            found = await _runs(stage, plan, gateway, devices)
            yield _row(path, title, f"{count} devices", count, found, few)
        path, title, few = "scale-history", "cost with finished commands", found
        yield _row(path, title, "few commands", 0, few, None)
        finished = 0
        for count in plan.commands:
            async with stage.database() as database:
                await finish(database, stage.customer_id, [device.id for device in devices], finished, count)
            finished = count
            found = await _runs(stage, plan, gateway, devices)
            yield _row(path, title, f"{count} commands", count, found, few)
    finally:
        await gateway.end()


async def measure_gateways(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """Rows of the cost a command: one gateway and two, at the same load in all, and one with the half of it.

    With less to do at a time less is done together, in one gateway as in each of two: the row in between tells how much
    that is. Once at a part of what one gateway can do, and once with as many devices as keep it busy all the time.
    """
    devices = await stage.devices("spread", _CROWD)
    one, two = await stage.gateway("one"), await stage.gateway("two")
    try:
        few = devices[:_CONNECTIONS]
        for server in (one, two):
            full = await drive(server.port, _flows(stage, few), plan.seconds, plan.warm_up)
        part = full.per_second * _PART
        for path, title, crowd, rate in (
            ("scale-gateways", "cost with gateways, the same load", few, part),
            ("scale-full-gateways", "cost with gateways, as fast as they can", devices, 0.0),
        ):
            alone, half, both = [], [], []
            for _ in range(plan.runs):
                alone.append(await _run(stage, plan, [one], crowd, rate))
                half.append(await _run(stage, plan, [one], crowd[::2], rate / 2))
                both.append(await _run(stage, plan, [one, two], crowd, rate))
            base = medians(alone)
            yield _row(path, title, "1 gateway", 1, base, None)
            yield _row(path, title, "half of it, 1 gateway", 0.5, medians(half), None)
            yield _row(path, title, "2 gateways", 2, medians(both), base)
    finally:
        await one.end()
        await two.end()


def _flows(stage: Stage, devices: Sequence[Device]) -> list[Flow]:
    return [_CYCLE.flow(device, stage.jwt) for device in devices]


async def _runs(stage: Stage, plan: Plan, server: Server, devices: Sequence[Device]) -> Figures:
    async with stage.database() as database:
        # What earlier runs broke off; a device can only have so many open commands.
        await database.execute(_END_OPEN, [device.id for device in devices])
        # What PostgreSQL would else do by itself some time during the measurement.
        await database.execute("vacuum analyze")
        await database.execute("checkpoint")
    for device in devices:
        await stage.valkey.delete(*DeviceKeys.of(device.id).queue)
    return medians([await _run(stage, plan, [server], devices, 0.0) for _ in range(plan.runs)])


async def _run(
    stage: Stage, plan: Plan, servers: Sequence[Server], devices: Sequence[Device], per_second: float
) -> Figures:
    """The cost of a command at some gateways, each with its share of the devices; 0 a second is as fast as it goes."""

    def cpu() -> tuple[float, float, float]:
        return sum(server.cpu() for server in servers), stage.valkey_cpu(), stage.postgres_cpu()

    before = cpu()
    loads = await asyncio.gather(
        *(
            drive(
                server.port,
                _flows(stage, devices[number :: len(servers)]),
                plan.seconds,
                plan.warm_up,
                per_second / len(servers),
            )
            for number, server in enumerate(servers)
        )
    )
    after = cpu()
    commands = sum(load.total for load in loads) / _REQUESTS
    costs = [(now - then) / commands * 1e6 for then, now in zip(before, after, strict=True)]
    return figures_of(_together(loads)) | dict(zip(_COSTS, costs, strict=True))


def _together(loads: Sequence[Load]) -> Load:
    answers, total = sum(load.answers for load in loads), sum(load.total for load in loads)
    worst = max(loads, key=lambda load: load.p99)
    return Load(sum(load.per_second for load in loads), worst.p50, worst.p99, answers, total)


def _row(path: str, title: str, load: str, amount: float, figures: Figures, base: Figures | None) -> Row:
    checks = []
    if base is not None:
        names = {Figure.CPU: "x gateway CPU", Figure.VALKEY: "x Valkey CPU"}
        checks = [Check(name, figures[figure] / base[figure], _FLAT) for figure, name in names.items()]
    return Row(path, title, load, amount, figures, None, tuple(checks))
