"""What must not cost more: many registered devices, many finished commands, and a second gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class _Place:
    """A gateway with databases of its own, and the devices at work there."""

    stage: Stage
    gateway: Server
    devices: Sequence[Device]

    @classmethod
    @asynccontextmanager
    async def built(cls, stage: Stage, plan: Plan) -> AsyncIterator[_Place]:
        gateway = await stage.gateway()
        try:
            place = cls(stage, gateway, await stage.devices("scale", _CONNECTIONS))
            # The first commands of a process find nothing compiled or cached.
            await place.run(plan)
            yield place
        finally:
            await gateway.end()

    async def run(self, plan: Plan) -> Figures:
        await _clear(self.stage, self.devices)
        return await _run(self.stage, plan, [self.gateway], self.devices, 0.0)


async def measure(stage: Stage, plan: Plan) -> AsyncIterator[Row]:
    """Rows of the cost a command: with more and more devices, then with a longer and longer history too.

    Each beside that of a gateway where there is next to nothing, by turns: no machine is as fast now as a minute ago.
    `stage` must be new: what others have left in it would be counted as well.
    """
    async with stage.another() as other, _Place.built(stage, plan) as much, _Place.built(other, plan) as little:

        async def row(path: str, title: str, load: str, amount: float) -> Row:
            found: list[Figures] = []
            beside: list[Figures] = []
            for _ in range(plan.runs):
                beside.append(await little.run(plan))
                found.append(await much.run(plan))
            return _row(path, title, load, amount, medians(found), medians(beside))

        path, title = "scale-devices", "cost with devices registered"
        yield await row(path, title, f"{_CONNECTIONS} devices", _CONNECTIONS)
        registered = 0
        for count in plan.devices:
            async with stage.database() as database:
                await register(database, stage.valkey, stage.customer_id, registered, count)
                await keep_waiting(database, stage.customer_id, registered, count)
            registered = count
            yield await row(path, title, f"{count} devices", count)
        path, title, finished = "scale-history", "cost with finished commands", 0
        for count in plan.commands:
            async with stage.database() as database:
                await finish(database, stage.customer_id, [device.id for device in much.devices], finished, count)
            finished = count
            yield await row(path, title, f"{count} commands", count)


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
                await _clear(stage, crowd)
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


async def _clear(stage: Stage, devices: Sequence[Device]) -> None:
    """End what earlier runs broke off, for a device can only have so many open commands; and what PostgreSQL would else
    do by itself some time during the measurement."""
    async with stage.database() as database:
        await database.execute(_END_OPEN, [device.id for device in devices])
        await database.execute("vacuum analyze")
        await database.execute("checkpoint")
    for device in devices:
        await stage.valkey.delete(*DeviceKeys.of(device.id).queue)


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
    return Row(path, title, load, amount, figures, base, tuple(checks))
