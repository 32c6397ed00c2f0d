"""What a run found: a table for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from .outcome import Check, Figure, Row
from .plan import Plan

# In the table; the others are among `_OTHERS`.
_COLUMNS = {
    Figure.RATE: "a second",
    Figure.P50: "p50 ms",
    Figure.P99: "p99 ms",
    Figure.CPU: "CPU µs",
    Figure.VALKEY: "Valkey µs",
    Figure.POSTGRES: "PostgreSQL µs",
}
_OTHERS = {
    Figure.MAX: "max ms",
    Figure.SHARE: "of a core",
    Figure.MEMORY: "KiB a socket",
    Figure.CALLS: "Redis calls/s",
    Figure.CONNECTIONS: "Redis connections",
}


@dataclass(slots=True)
class Report:
    """All rows, and the paths that could not be measured with what went wrong."""

    plan: Plan
    machine: Mapping[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> dict[str, Any]:
        """Everything, as JSON data."""
        return {
            "machine": dict(self.machine),
            "plan": asdict(self.plan),
            "rows": [row.json for row in self.rows],
            "failures": self.failures,
            "reached": all(row.reached is not False for row in self.rows),
        }

    def show(self, console: Console) -> None:
        """Print it for people: in a cell the gateway's figure, a slash, the ceiling's."""
        console.print(", ".join(f"{name} {value}" for name, value in self.machine.items()), soft_wrap=True)
        table = Table(
            "path", "load", *_COLUMNS.values(), "others", "found", "target", "reached", title="gateway / ceiling"
        )
        before = ""
        for row in self.rows:
            if before and row.title != before:
                table.add_section()
            table.add_row(*_cells(row, row.title if row.title != before else ""))
            before = row.title
        console.print(table)
        for name, problem in self.failures.items():
            console.print(f"{name} failed: {problem}", style="red", markup=False)


def _cells(row: Row, title: str) -> list[str]:
    ceiling = row.ceiling or {}
    figures = [_both(row.gateway.get(figure), ceiling.get(figure)) for figure in _COLUMNS]
    others = [
        f"{_both(row.gateway.get(figure), ceiling.get(figure))} {name}"
        for figure, name in _OTHERS.items()
        if figure in row.gateway
    ]
    found = "\n".join(f"{_short(check.value)} {check.what}" for check in row.checks)
    targets = "\n".join(_target(check) for check in row.checks)
    reached = "\n".join("yes" if check.reached else "[red]no[/red]" for check in row.checks)
    return [title, row.load, *figures, "\n".join(others), found, targets, reached]


def _target(check: Check) -> str:
    return f"{'≥' if check.at_least else '≤'} {_short(check.bound)}"


def _both(ours: float | None, bare: float | None) -> str:
    if ours is None:
        return ""
    return _short(ours) if bare is None else f"{_short(ours)} / {_short(bare)}"


def _short(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, for `docs/performance.md`."""
    names = ["path", "load", *_COLUMNS.values(), "others", "found", "target", "reached"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [cell.replace("\n", "; ").replace("[red]", "").replace("[/red]", "") for cell in _cells(row, row.title)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
