"""What a run found: a table for people, JSON for programs, and a verdict for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from .ledger import Ledger


@dataclass(frozen=True, slots=True)
class Round:
    """One fault and what came of it: how often each kind of failure was seen, what worked last, and when."""

    fault: str
    seconds: float
    calls: int
    failures: Mapping[str, int]
    commands: int
    results: int
    redeliveries: int
    unreached: int
    recovered_s: float
    slowest: str
    violations: int


@dataclass(slots=True)
class Report:
    """All rounds. `ends` is how all commands ended; `missing` is what could not be had."""

    options: Mapping[str, Any]
    rounds: list[Round] = field(default_factory=list)
    ends: Mapping[str, int] = field(default_factory=dict)
    missing: Sequence[str] = ()
    violations: Sequence[str] = ()

    @property
    def json(self) -> dict[str, Any]:
        """Everything, as JSON data."""
        return {"ok": not self.violations, **asdict(self)}

    def show(self, console: Console) -> None:
        """Print it for people."""
        table = Table(title="Faults")
        for name in ("fault", "s", "calls", "refused", "commands", "results", "again", "unreached", "recovered after"):
            table.add_column(name, no_wrap=True)
        for found in self.rounds:
            refused = "\n".join(f"{count} x {what}" for what, count in sorted(found.failures.items()))
            recovered = f"{found.recovered_s:.1f} s: {found.slowest}"
            numbers = (
                found.calls,
                refused,
                found.commands,
                found.results,
                found.redeliveries,
                found.unreached,
                recovered,
            )
            mark = "[red]" if found.violations else ""
            table.add_row(f"{mark}{found.fault}", f"{found.seconds:.0f}", *map(str, numbers))
        console.print(table)
        console.print("Commands: " + ", ".join(f"{count} {status}" for status, count in self.ends.items()))
        for what in self.missing:
            console.print(f"[yellow]left out:[/] {what}")
        for violation in self.violations:
            console.print(f"[red]violation:[/] {violation}", soft_wrap=True)
        kept = "Nothing that was answered was lost, nothing was done twice."
        console.print(f"[green]{kept}[/]" if not self.violations else "[red]Not good.[/]")


@dataclass(slots=True)
class Since:
    """What a ledger has got since this was made."""

    ledger: Ledger
    outcomes: Counter[str] = field(init=False)
    numbers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes, self.numbers = self.ledger.outcomes.copy(), self._now()

    def _now(self) -> tuple[int, ...]:
        found = self.ledger
        return (
            found.calls,
            found.accepted,
            found.results,
            found.redeliveries,
            len(found.unreached),
            found.wrongs,
        )

    def round(self, fault: str, seconds: float, slowest: str, recovered_s: float) -> Round:
        """The round that ends now."""
        calls, commands, results, again, unreached, wrong = (
            now - then for now, then in zip(self._now(), self.numbers, strict=True)
        )
        failures = dict(self.ledger.outcomes - self.outcomes)
        return Round(fault, seconds, calls, failures, commands, results, again, unreached, recovered_s, slowest, wrong)
