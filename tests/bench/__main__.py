"""`scripts/bench`: the gateway beside its own limits, in one sitting. `docs/performance.md` says what figures mean."""

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import click
import uvloop
from rich.console import Console

from . import device_sockets, fan_out, gateways, http_runs, long_polls, scaling
from .http_paths import PATHS
from .machine import machine
from .outcome import Row, beside_earlier
from .plan import QUICK, Plan
from .plots import draw
from .report import Report, markdown
from .stage import Stage

Measure = Callable[[Stage, Plan], AsyncIterator[Row]]

_MEASURES: Mapping[str, Measure] = {
    **{path.name: partial(http_runs.measure, name=path.name) for path in PATHS},
    "polls": long_polls.measure,
    "accepts": device_sockets.measure_accepts,
    "idle": device_sockets.measure_idle,
    "events": fan_out.measure_events,
    "broadcast": fan_out.measure_broadcast,
    "gateways": gateways.measure,
    "scale": scaling.measure,
}
# Those that want servers which nobody has used.
_FRESH = frozenset({"scale"})
# Of descriptors: what the bench has open besides sockets, and a server too.
_OTHER_FILES = 500
# Characters; with less the table of a file or a pipe would be folded.
_WIDTH = 200

_say = Console(stderr=True)


def _numbers(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter("numbers with commas between them") from None


def _names(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(value.split(",")) if value else tuple(_MEASURES)
    if unknown := set(names) - set(_MEASURES):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: not among {', '.join(_MEASURES)}")
    return tuple(name for name in _MEASURES if name in names)


@click.command()
@click.option("--quick", is_flag=True, help="Check that everything runs; the figures mean little.")
@click.option("--only", callback=_names, help=f"Some of: {', '.join(_MEASURES)}.")
@click.option("--seconds", type=float, help="How long a run of an HTTP path is.  [default: 5]")
@click.option("--runs", type=int, help="Runs of which the median counts.  [default: 3]")
@click.option("--concurrency", callback=_numbers, help="Numbers of connections.  [default: 1,16,64]")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write JSON there.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path), help="Write a table there."
)
@click.option("--before", type=click.File(), help="JSON of an earlier run, to compare with where more is wanted.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Draw PNG files into this directory.")
def main(
    quick: bool,
    only: Sequence[str],
    seconds: float | None,
    runs: int | None,
    concurrency: tuple[int, ...] | None,
    json_file: str | None,
    markdown_file: Path | None,
    before: IO[str] | None,
    plots: Path | None,
) -> None:
    """Measure the gateway beside its ceiling. The status is 1 when something could not be measured."""
    chosen: dict[str, Any] = {"seconds": seconds, "runs": runs, "concurrency": concurrency}
    plan = replace(QUICK if quick else Plan(), **{name: value for name, value in chosen.items() if value is not None})
    _allow_files(max(plan.polls, plan.audience, *plan.idle) + _OTHER_FILES)
    # Pauses of the load generator would be taken for the server's.
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="aizen-bench-") as directory:
        Path(directory).chmod(0o711)
        report = uvloop.run(_bench(Path(directory), plan, only))
    if before:
        earlier = json.load(before)["rows"]
        report.rows = [beside_earlier(row, earlier) for row in report.rows]
    if json_file:
        with click.open_file(json_file, "w") as file:
            file.write(json.dumps(report.json, indent=2) + "\n")
    if markdown_file:
        markdown_file.write_text(markdown(report.rows) + "\n", "utf-8")
    if plots:
        for drawn in draw(report.rows, plots):
            _say.print(f"Drawn: {drawn}")
    if json_file != "-":
        report.show(Console() if sys.stdout.isatty() else Console(width=_WIDTH))
    sys.exit(1 if report.failures else 0)


def _allow_files(needed: int) -> None:
    """Raise the limit of open files for the bench and its servers, which inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise click.ClickException(f"{needed} open files are needed and {hard} allowed: see `ulimit -Hn`, or --quick")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _bench(directory: Path, plan: Plan, names: Sequence[str]) -> Report:
    shared = [name for name in names if name not in _FRESH]
    groups = ([shared] if shared else []) + [[name] for name in names if name in _FRESH]
    report = Report(plan)
    for number, group in enumerate(groups):
        async with Stage.built(directory / str(number)) as stage:
            report.machine = report.machine or await machine(stage)
            for name in group:
                started = time.monotonic()
                try:
                    report.rows += [row async for row in _MEASURES[name](stage, plan)]
                except Exception as error:
                    # The others are worth having all the same.
                    report.failures[name] = _said(error)
                    _say.print(f"{name} failed: {_said(error)}", style="red", markup=False)
                _say.print(f"{name}: {time.monotonic() - started:.0f} s")
    return report


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
