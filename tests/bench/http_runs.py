"""The HTTP paths: gateway and ceiling by turns, at each number of connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from .http_paths import PATHS, Path
from .load import Load, drive
from .outcome import Check, Figure, Figures, Row, medians
from .plan import Plan
from .stage import Device, Server, Stage

_P99_WITHIN = 1.5


class NotServed(Exception):
    """The ceiling has no such path."""


async def measure(stage: Stage, plan: Plan, name: str) -> AsyncIterator[Row]:
    """A row for each number of connections, of the path `name`."""
    path = next(path for path in PATHS if path.name == name)
    most = max(plan.concurrency)
    async with stage.pair() as (gateway, ceiling):
        devices = {
            gateway.name: await stage.devices(f"g-{name}", most),
            ceiling.name: await stage.devices(f"c-{name}", most),
        }
        served = [ceiling, gateway]
        for connections in plan.concurrency:
            runs: dict[str, list[Figures]] = {}
            for _ in range(plan.runs):
                for server in tuple(served):
                    try:
                        figures = await _run(stage, plan, path, server, devices[server.name][:connections])
                    except NotServed:
                        served.remove(server)
                    else:
                        runs.setdefault(server.name, []).append(figures)
            found = {name: medians(of) for name, of in runs.items()}
            yield _row(path, connections, found[gateway.name], found.get(ceiling.name))


async def _run(stage: Stage, plan: Plan, path: Path, server: Server, devices: Sequence[Device]) -> Figures:
    before = server.cpu(), stage.valkey_cpu(), stage.postgres_cpu()
    flows = [path.flow(device, stage.jwt) for device in devices]
    try:
        load = await drive(server.port, flows, plan.seconds, plan.warm_up)
    except AssertionError as error:
        if server.name == "ceiling" and "answered 404" in str(error):
            raise NotServed from error
        raise
    after = server.cpu(), stage.valkey_cpu(), stage.postgres_cpu()
    costs = [(now - then) / load.total * 1e6 for then, now in zip(before, after, strict=True)]
    return figures_of(load) | dict(zip((Figure.CPU, Figure.VALKEY, Figure.POSTGRES), costs, strict=True))


def figures_of(load: Load) -> dict[Figure, float]:
    """A load's rate and times."""
    return {Figure.RATE: load.per_second, Figure.P50: load.p50 * 1000, Figure.P99: load.p99 * 1000}


def _row(path: Path, connections: int, gateway: Figures, ceiling: Figures | None) -> Row:
    checks = []
    if ceiling is not None:
        target = path.target_alone if connections == 1 else path.target
        checks.append(Check("of the ceiling", gateway[Figure.RATE] / ceiling[Figure.RATE], target, at_least=True))
        if path.name == "claim" and connections == max(64, connections):
            checks.append(Check("x its p99", gateway[Figure.P99] / ceiling[Figure.P99], _P99_WITHIN))
    return Row(path.name, path.title, f"{connections} conn.", connections, gateway, ceiling, tuple(checks))
