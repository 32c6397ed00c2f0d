"""What a command costs at one gateway or at several: CPU time of the gateways, of Valkey and of PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aizen_gateway.storage.keys import DeviceKeys

from .http_paths import PATHS
from .http_runs import figures_of
from .load import Load, drive
from .outcome import Check, Figure, Figures, Row
from .plan import Plan
from .stage import Device, Server, Stage

# How much dearer is still the same.
FLAT = 1.10
_CYCLE = next(path for path in PATHS if path.name == "cycle")
_COSTS = (Figure.CPU, Figure.VALKEY, Figure.POSTGRES)
_END_OPEN = """update aizen.commands set status = 'canceled', completed_at = now(), due_at = null
               where status in ('queued', 'claimed') and device_id = any($1)"""
# Requests of one command: a tenth of the claim, its submission and its result.
_REQUESTS = _CYCLE.per


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway, the databases that it works with, and the devices at work there."""

    stage: Stage
    gateway: Server
    devices: Sequence[Device]

    @classmethod
    @asynccontextmanager
    async def built(
        cls, stage: Stage, plan: Plan, devices: Sequence[Device], name: str = "gateway"
    ) -> AsyncIterator[Place]:
        """Inside, a new gateway runs, and has run before."""
        gateway = await stage.gateway(name)
        try:
            place = cls(stage, gateway, devices)
            # The first commands of a process find nothing compiled or cached.
            await measured(plan, [place])
            yield place
        finally:
            await gateway.end()

    def with_devices(self, devices: Sequence[Device]) -> Place:
        """The same gateway with others at work."""
        return Place(self.stage, self.gateway, devices)


async def measured(plan: Plan, places: Sequence[Place], per_second: float = 0.0) -> Figures:
    """The cost of a command at some gateways, each with its part of the load; 0 a second is as fast as it goes.

    What earlier runs have left is cleared away before.
    """
    stages = list({id(place.stage): place.stage for place in places}.values())
    for stage in stages:
        await _clear(stage, [device for place in places if place.stage is stage for device in place.devices])

    def cpu() -> tuple[float, float, float]:
        return (
            sum(place.gateway.cpu() for place in places),
            sum(stage.valkey_cpu() for stage in stages),
            sum(stage.postgres_cpu() for stage in stages),
        )

    before = cpu()
    loads = await asyncio.gather(
        *(
            drive(
                place.gateway.port,
                [_CYCLE.flow(device, place.stage.jwt) for device in place.devices],
                plan.seconds,
                plan.warm_up,
                per_second / len(places),
            )
            for place in places
        )
    )
    after = cpu()
    commands = sum(load.total for load in loads) / _REQUESTS
    costs = [(now - then) / commands * 1e6 for then, now in zip(before, after, strict=True)]
    return figures_of(_together(loads)) | dict(zip(_COSTS, costs, strict=True))


async def _clear(stage: Stage, devices: Sequence[Device]) -> None:
    """End what earlier runs broke off, for a device can only have so many open commands; and what PostgreSQL would else
    do by itself some time during the measurement."""
    async with stage.database() as database:
        await database.execute(_END_OPEN, [device.id for device in devices])
        await database.execute("vacuum analyze")
        await database.execute("checkpoint")
    for device in devices:
        await stage.valkey.delete(*DeviceKeys.of(device.id).queue)


def _together(loads: Sequence[Load]) -> Load:
    answers, total = sum(load.answers for load in loads), sum(load.total for load in loads)
    worst = max(loads, key=lambda load: load.p99)
    return Load(sum(load.per_second for load in loads), worst.p50, worst.p99, answers, total)


def row_of(path: str, title: str, load: str, amount: float, figures: Figures, base: Figures | None = None) -> Row:
    """A row of costs; what is compared with `base` must be about the same."""
    checks = []
    if base is not None:
        names = {Figure.CPU: "x gateway CPU", Figure.VALKEY: "x Valkey CPU"}
        checks = [Check(name, figures[figure] / base[figure], FLAT) for figure, name in names.items()]
    return Row(path, title, load, amount, figures, base, tuple(checks))
