"""Pictures of a run: latency against load for each path, and cost against what there is of devices and history."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .http_paths import PATHS
from .outcome import Figure, Figures, Row

_DPI = 120
# Amounts beyond this are shown on a scale of powers.
_MANY = 10
_SERVERS: Mapping[str, Callable[[Row], Figures | None]] = {
    "gateway": lambda row: row.gateway,
    "ceiling": lambda row: row.ceiling,
}
_COSTS = {Figure.CPU: "gateway", Figure.VALKEY: "Valkey", Figure.POSTGRES: "PostgreSQL"}


def draw(rows: Sequence[Row], directory: Path) -> list[Path]:
    """Draw what the rows have figures for into PNG files, and return these. Needs matplotlib, which is an extra."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    http = [path for path in PATHS if any(row.path == path.name for row in rows)]
    if http:
        drawn.append(_latency(rows, [(path.name, path.title) for path in http], directory / "latency.png"))
    scales = {row.path: row.title for row in rows if row.path.startswith("scale-")}
    if scales:
        drawn.append(_cost(rows, scales, directory / "cost.png"))
    return drawn


def _axes(count: int, columns: int) -> tuple[Any, list[Any]]:
    # Imported by name: whoever only checks the types of this file need not have it.
    figures = importlib.import_module("matplotlib.figure")
    lines = -(-count // columns)
    figure = figures.Figure(figsize=(5 * columns, 3.6 * lines), layout="constrained")
    axes = [figure.add_subplot(lines, columns, number + 1) for number in range(count)]
    return figure, axes


def _latency(rows: Sequence[Row], paths: Sequence[tuple[str, str]], file: Path) -> Path:
    """Median and 99th percentile against the number of connections."""
    figure, axes = _axes(len(paths), min(3, len(paths)))
    for axis, (name, title) in zip(axes, paths, strict=True):
        for colour, (server, figures_of) in zip(("C0", "C1"), _SERVERS.items(), strict=True):
            for what, style in ((Figure.P50, "-"), (Figure.P99, "--")):
                points = [
                    (row.amount, found[what])
                    for row in rows
                    if row.path == name and (found := figures_of(row)) is not None
                ]
                if points:
                    label = f"{server} {what.value.removesuffix('Ms')}"
                    axis.plot(*zip(*sorted(points), strict=True), style, color=colour, marker="o", label=label)
        axis.set(title=title.replace("`", ""), xlabel="connections", ylabel="ms", xscale="log", yscale="log")
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(file, dpi=_DPI)
    return file


def _cost(rows: Sequence[Row], titles: Mapping[str, str], file: Path) -> Path:
    """CPU time a command against the number of devices, of finished commands and of gateways."""
    figure, axes = _axes(len(titles), min(3, len(titles)))
    for axis, (path, title) in zip(axes, titles.items(), strict=True):
        # A row of a part of one explains another, and is no point of the line.
        shown = [row for row in rows if row.path == path and not 0 < row.amount < 1]
        found = sorted(shown, key=lambda row: row.amount)
        for number, (what, server) in enumerate(_COSTS.items()):
            # There is no place for 0 on a scale of powers.
            points = [(max(1.0, row.amount), row.gateway[what]) for row in found]
            axis.plot(*zip(*points, strict=True), color=f"C{number}", marker="o", label=server)
            # What it was at the same time with next to nothing: the machine's own ups and downs are in both.
            beside = [(max(1.0, row.amount), row.ceiling[what]) for row in found if row.ceiling is not None]
            if len(beside) == len(found):
                axis.plot(*zip(*beside, strict=True), "--", color=f"C{number}", alpha=0.6)
        axis.set(title=title, xlabel=found[-1].load.split()[-1], ylabel="CPU µs a command")
        if found[-1].amount > _MANY:
            axis.set_xscale("log")
        else:
            axis.set_xticks([row.amount for row in found])
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(file, dpi=_DPI)
    return file
