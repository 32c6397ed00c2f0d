"""`scripts/chaos`: what two gateways stand on is broken under load, thing after thing, and nothing may be lost."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import click
from aiohttp import ClientSession, ClientTimeout, TCPConnector
from rich.console import Console

from .crowd import Crowd
from .faults import FAULTS, Fault, Scene
from .ledger import Ledger
from .probes import recovery
from .report import Report, Since
from .stage import Stage

_PREFIX = "aizen-chaos-"
# Seconds of work before a fault and after its end.
_WARM = 1.5
# Milliseconds of the leases that devices ask for, in turns: the first end within a fault, the others outlive it.
_SHORT_LEASE = 2_000
_BEYOND = 3_000
# Seconds for what is still open when nothing more is submitted: its lease, and until an end shows.
_SHOWS = 25.0
# Of a table that goes into a file.
_WIDTH = 150

_say = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` is how long each fault lasts; `minutes` is for how long they go round, None for each of them once."""

    faults: Sequence[str]
    seconds: float
    minutes: float | None


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0), help="For how long the faults go round, at least once each.")
@click.option("--quick", is_flag=True, help="Each fault once, and short.")
@click.option("--seconds", type=click.FloatRange(min=1, max=60), help="How long a fault lasts: 10, or 3 with --quick.")
@click.option("--faults", default=",".join(FAULTS), show_default=True, help="Which faults, in which order.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(minutes: float | None, quick: bool, seconds: float | None, faults: str, as_json: bool) -> None:
    """Break things under load; the status is 1 when something was lost, done twice, or answered wrongly."""
    chosen = [name.strip() for name in faults.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in FAULTS]
    if unknown or not chosen:
        raise click.BadParameter(f"{', '.join(unknown)}: there are {', '.join(FAULTS)}", param_hint="--faults")
    plan = Plan(chosen, seconds or (3.0 if quick else 10.0), None if quick else minutes)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory:
        Path(directory).chmod(0o711)
        try:
            report = asyncio.run(_interruptible(Path(directory), plan))
        except (KeyboardInterrupt, asyncio.CancelledError):
            _say.print("Interrupted.")
            report = None
    if report is None:
        sys.exit(130)
    if as_json:
        click.echo(json.dumps(report.json, indent=2))
    else:
        report.show(Console(width=None if sys.stdout.isatty() else _WIDTH))
    sys.exit(1 if report.violations else 0)


async def _interruptible(directory: Path, plan: Plan) -> Report:
    """Run; SIGTERM ends it as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await _chaos(directory, plan)


async def _chaos(directory: Path, plan: Plan) -> Report:
    report = Report({"faults": list(plan.faults), "seconds": plan.seconds, "minutes": plan.minutes})
    ledger = Ledger()
    until = None if plan.minutes is None else monotonic() + plan.minutes * 60
    leases_ms = (_SHORT_LEASE, round(plan.seconds * 1000) + _BEYOND)
    connector = TCPConnector(limit=0)
    _say.print("Starting PostgreSQL, Valkey and two gateways ...")
    async with (
        ClientSession(connector=connector, timeout=ClientTimeout(total=None)) as http,
        Stage.built(directory, http) as stage,
        Crowd.made(stage, ledger, leases_ms) as crowd,
    ):
        faults = {name: FAULTS[name] for name in plan.faults}
        if not stage.has_fake_clock:
            report.missing = ["clocks that are apart: libfaketime is not installed (scripts/ci-packages does it)"]
            faults = {name: fault for name, fault in faults.items() if not fault.needs_fake_clock}
        for number, (name, fault) in enumerate(itertools.cycle(faults.items())):
            if number >= len(faults) and (until is None or monotonic() > until):
                break
            await _round(crowd, report, name, fault, Scene(stage, ledger, plan.seconds, number // len(faults)))
        await _end(crowd, report)
    return report


async def _round(crowd: Crowd, report: Report, name: str, fault: Fault, scene: Scene) -> None:
    """One fault, from the first command before it to the end of the last after it."""
    _say.print(f"{name}: {fault.title} ...")
    since, earlier, told = Since(scene.ledger), set(scene.ledger.unreached), len(scene.ledger.violations)
    began = monotonic()
    async with crowd.at_work():
        await asyncio.sleep(_WARM)
        disturbance = await fault.inject(scene)
        slowest, recovered_s = await recovery(crowd, disturbance)
        await asyncio.sleep(_WARM)
        await crowd.finish(2 * scene.seconds + _SHOWS)
    if fault.reaches and (missed := crowd.ledger.unreached - earlier):
        crowd.ledger.wrong(f"{name}: no device ever had {len(missed)} of its commands, such as {min(missed)}")
    found = since.round(name, round(monotonic() - began, 1), slowest, round(recovered_s, 2))
    report.rounds.append(found)
    _say.print(f"  {found.commands} commands, {found.violations} violations, recovered in {recovered_s:.1f} s")
    for violation in crowd.ledger.violations[told:]:
        _say.print(f"  [red]violation:[/] {violation}", soft_wrap=True)


async def _end(crowd: Crowd, report: Report) -> None:
    """Judge everything once more, by the truth."""
    truth = await crowd.truth()
    crowd.ledger.judge(truth)
    report.ends = dict(Counter(stored.status for stored in truth.values()).most_common())
    for gateway in crowd.stage.gateways:
        for line in gateway.complaints():
            crowd.ledger.wrong(f"{gateway.name} logged: {line}")
    report.violations = crowd.ledger.violations


if __name__ == "__main__":
    main()
