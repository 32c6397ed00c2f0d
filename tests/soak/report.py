"""What a soak found: for people a table, for programs JSON, and a verdict for both."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from .crowd import Crowd
from .ledger import Manner
from .stage import Level

# What may stay behind: memory that the allocator keeps though nobody uses it, tasks that live for a moment.
MEMORY_SHARE, MEMORY_MIB = 0.05, 8.0
TASKS = 2
CHANNELS = 0
# The gateway's own channel.
OWN_CHANNELS = 1


@dataclass(frozen=True, slots=True)
class Moments:
    """The levels of one gateway: idle after a first, short wave (`before`), the highest, and idle again (`after`)."""

    start: Level
    before: Level
    peak: Level
    after: Level

    @property
    def growth(self) -> list[str]:
        """What is more after than before, beyond what may be."""
        before, after, start = self.before, self.after, self.start
        bounds = {
            "rss_mib": before.rss_mib + max(MEMORY_MIB, before.rss_mib * MEMORY_SHARE),
            "tasks": start.tasks + TASKS,
            "channels": start.channels + CHANNELS,
            "sockets": 0,
        }
        levels = asdict(after)
        return [f"{name} {levels[name]}, over {bound:.6g}" for name, bound in bounds.items() if levels[name] > bound]


@dataclass(slots=True)
class Report:
    """All findings."""

    options: Mapping[str, Any]
    gateways: dict[str, Moments]
    subscriptions: int
    work: Mapping[str, Any]
    commands: Mapping[str, int]
    closes: Mapping[str, int]
    complaints: Mapping[str, int]
    failures: Sequence[str]
    problems: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Find the problems."""
        for name, moments in self.gateways.items():
            self.problems += [f"{name}: {grown}" for grown in moments.growth]
        if self.subscriptions > OWN_CHANNELS * len(self.gateways):
            self.problems.append(f"{self.subscriptions} subscriptions are left in Redis")
        lost = self.work["accepted"] - self.commands.get("succeeded", 0)
        if lost or len(self.commands) > 1:
            self.problems.append(f"of {self.work['accepted']} commands {dict(self.commands)}")
        if self.work["runTwice"]:
            self.problems.append(f"{self.work['runTwice']} commands came again after their result was acknowledged")
        if self.failures:
            self.problems.append(f"{len(self.failures)} failures, the first: {self.failures[0]}")
        self.problems += [what for what in self.complaints if what.startswith(("error", "critical"))]

    @property
    def json(self) -> dict[str, Any]:
        """Everything, as JSON data."""
        found = asdict(self)
        found["failures"] = list(self.failures[:20])
        return {"ok": not self.problems, **found}

    def show(self, console: Console) -> None:
        """Print it for people."""
        levels = Table("gateway", "level", "start", "before", "peak", "after", title="What the gateways held")
        for name, moments in self.gateways.items():
            for key in asdict(moments.start):
                row = [
                    f"{getattr(level, key)}" for level in (moments.start, moments.before, moments.peak, moments.after)
                ]
                levels.add_row(name, key, *row)
        console.print(levels)
        work = Table("what", "how many", title="What was done")
        for what, count in {**self.work, **self.commands, **self.closes, **self.complaints}.items():
            work.add_row(str(what), str(count))
        console.print(work)
        for problem in self.problems:
            console.print(f"[red]problem:[/] {problem}")
        console.print("[green]Nothing grew, nothing was lost.[/]" if not self.problems else "[red]Not good.[/]")


def work_of(crowd: Crowd) -> dict[str, Any]:
    """What the clients did and got. Times are milliseconds, from the submission to the device; while it was quiet each
    device was at another gateway than the one that was asked."""
    ledger = crowd.ledger
    return {
        "accepted": len(ledger.submitted),
        "acknowledged": len(ledger.acknowledged & ledger.submitted.keys()),
        "runTwice": ledger.twice.total(),
        "deliveredAgainFlapping": ledger.again[Manner.FLAPPING],
        "deliveredAgainSteady": ledger.again[Manner.STEADY],
        "portalEvents": sum(portal.events for portal in crowd.portals),
        **_times("quietSubmissionToDevice", ledger.latencies(crowd.quiet)),
        **_times("submissionToDevice", ledger.latencies(ledger.submitted.keys() - crowd.quiet)),
    }


def _times(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 99th of a hundred in milliseconds, and of how many; no times of fewer than two."""
    cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else [0.0] * 99
    return {
        f"{name}Count": len(seconds),
        f"{name}P50": round(cuts[49] * 1000, 1),
        f"{name}P99": round(cuts[98] * 1000, 1),
    }
