"""`scripts/soak`: many sockets on two gateways for a while, some of them bad, and what is left when all have gone.

At first it is quiet: a few devices are there, and what a command takes from one gateway to a device at the other can be
read from the report. Then two waves of clients come. The first is short: what it leaves in memory is what a process
keeps that has worked, such as compiled statements and the allocator's reserves. What the second leaves beyond that has
leaked.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg
import click
from aiohttp import ClientError
from rich.console import Console

from aizen_gateway.realtime.tasks import end

from .crowd import QUIET_RATE, Crowd, Plan
from .report import TASKS, Moments, Report, work_of
from .stage import Level, Stage

# Of descriptors: what a gateway and this program have open besides the clients' sockets.
_OTHER_FILES = 400
# Seconds. Channels are left a minute after their last listener; then everything must be where it was.
_SETTLE = 100.0
_LOOK_EVERY = 1.0
_IDLE_LOOKS = 3

_say = Console(stderr=True)


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long the second wave works.")
@click.option("--first", default=10.0, show_default=True, help="How long the first wave works.")
@click.option("--quiet", default=10.0, show_default=True, help="How long it is quiet before that.")
@click.option("--sockets", default=2_000, show_default=True, help="How many sockets.")
@click.option("--portals", default=0.1, show_default=True, help="Which share of them are portals.")
@click.option("--faulty", default=0.1, show_default=True, help="Which share is frozen or flapping, half of it each.")
@click.option("--rate", default=40.0, show_default=True, help="Commands a second.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    seconds: float, first: float, quiet: float, sockets: int, portals: float, faulty: float, rate: float, as_json: bool
) -> None:
    """Run a soak; the status is 1 when something grew, or was lost."""
    _allow_files(sockets + _OTHER_FILES)
    portal_count = round(sockets * portals)
    # Six leases fit into the time; a command may be delivered twenty times.
    lease_ms = round(max(5.0, seconds / 6) * 1000)
    plan = Plan(sockets - portal_count, portal_count, faulty, rate, lease_ms)
    with tempfile.TemporaryDirectory(prefix="aizen-soak-") as directory:
        Path(directory).chmod(0o711)
        try:
            report = asyncio.run(_soak(Path(directory), plan, Seconds(quiet, first, seconds)))
        except ClientError as error:
            raise click.ClickException(f"a gateway does not answer: {error}") from error
        except asyncio.CancelledError:
            # SIGTERM; asyncio makes a KeyboardInterrupt of Ctrl-C by itself, and click of both the same.
            raise click.Abort from None
    if as_json:
        click.echo(json.dumps(report.json, indent=2))
    else:
        report.show(Console())
    sys.exit(1 if report.problems else 0)


def _allow_files(needed: int) -> None:
    """Raise the limit of open files for this program and the gateways, which inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise click.ClickException(f"{needed} open files are needed and {hard} allowed: see `ulimit -Hn`, or --sockets")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long each part takes."""

    quiet: float
    first: float
    second: float


async def _soak(directory: Path, plan: Plan, seconds: Seconds) -> Report:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    _say.print("Starting PostgreSQL, Valkey and two gateways ...")
    async with Stage.built(directory) as stage:
        start = await _settled(stage, lambda _name, level: level.channels == 0)

        def is_quiet(name: str, level: Level) -> bool:
            return level.sockets == 0 and level.channels <= start[name].channels

        highest = Highest(start)
        _say.print(f"Registering {plan.devices} devices ...")
        async with Crowd.made(stage, plan) as crowd:
            _say.print(f"A few of them, {QUIET_RATE:.0f} commands a second, for {seconds.quiet:.0f} s ...")
            await crowd.be_quiet(seconds.quiet)
            some = f"{plan.devices} devices and {plan.portals} portals"
            _say.print(f"A first wave of {some}, for {seconds.first:.0f} s ...")
            await crowd.wave(seconds.first)
            before = await _settled(stage, is_quiet)
            _say.print(f"The wave that counts, for {seconds.second:.0f} s ...")
            watch = asyncio.create_task(highest.watch(stage))
            try:
                await crowd.wave(seconds.second)
            finally:
                await end(watch)
        _say.print("All have gone; waiting for what they leave to be cleared up ...")
        after = await _settled(stage, lambda n, level: is_quiet(n, level) and level.tasks <= start[n].tasks + TASKS)
        report = Report(
            options={**asdict(seconds), **asdict(plan)},
            gateways={name: Moments(start[name], before[name], highest.levels[name], after[name]) for name in start},
            subscriptions=await stage.subscriptions(),
            work=work_of(crowd),
            commands=await _commands(stage.database_url),
            closes=dict(await stage.closes()),
            complaints=dict(stage.complaints()),
            failures=crowd.ledger.failures,
        )
    report.judge()
    return report


class Highest:
    """The highest levels while it watches."""

    def __init__(self, levels: Mapping[str, Level]) -> None:
        self.levels = dict(levels)

    async def watch(self, stage: Stage) -> None:
        """Look for ever."""
        while True:
            for name, level in (await stage.levels()).items():
                both = asdict(self.levels[name]), asdict(level)
                self.levels[name] = Level(**{key: max(values[key] for values in both) for key in both[0]})
            await asyncio.sleep(_LOOK_EVERY)


async def _settled(stage: Stage, is_settled: Callable[[str, Level], bool]) -> Mapping[str, Level]:
    """The levels once all gateways have settled for a few looks, or after the time in which they must."""
    looks = 0
    ends = asyncio.get_running_loop().time() + _SETTLE
    while True:
        levels = await stage.levels()
        looks = looks + 1 if all(is_settled(name, level) for name, level in levels.items()) else 0
        if looks == _IDLE_LOOKS or asyncio.get_running_loop().time() > ends:
            return levels
        await asyncio.sleep(_LOOK_EVERY)


async def _commands(database_url: str) -> Mapping[str, int]:
    """How the commands ended, by the truth."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch("select status, count(*) from aizen.commands group by status")
    finally:
        await connection.close()
    return {row["status"]: row["count"] for row in rows}


if __name__ == "__main__":
    main()
