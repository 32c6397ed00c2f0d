"""What is owed: every command that was accepted is run once, and every portal that reads hears of its end."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum


class Manner(StrEnum):
    """How a client behaves."""

    STEADY = "steady"
    FLAPPING = "flapping"
    FROZEN = "frozen"


@dataclass(slots=True)
class Ledger:
    """Commands by id, and what went wrong. `waiting` are those whose result has not been acknowledged, by device."""

    submitted: dict[str, str] = field(default_factory=dict)
    submitted_at: dict[str, float] = field(default_factory=dict)
    # When a steady device first had them. A command may be there before its submission has been answered.
    received_at: dict[str, float] = field(default_factory=dict)
    waiting: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    run: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    twice: Counter[Manner] = field(default_factory=Counter)
    again: Counter[Manner] = field(default_factory=Counter)
    closes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def accepted(self, command_id: str, device_id: str, asked_at: float) -> None:
        """The gateway has answered 2xx."""
        self.submitted[command_id] = device_id
        self.submitted_at[command_id] = asked_at
        if command_id not in self.acknowledged:
            self.waiting[device_id].add(command_id)

    def received(self, command_id: str, manner: Manner) -> None:
        """A device has a command. One that it has, but could not report, may come again; one that it reported not."""
        if command_id in self.acknowledged:
            self.twice[manner] += 1
        elif command_id in self.run:
            self.again[manner] += 1
        elif manner is Manner.STEADY:
            self.received_at[command_id] = time.monotonic()
        self.run.add(command_id)

    def reported(self, command_id: str, device_id: str) -> None:
        """The gateway has acknowledged the result."""
        self.acknowledged.add(command_id)
        self.waiting[device_id].discard(command_id)

    def latencies(self, among: Collection[str]) -> list[float]:
        """Seconds from the submission of each of some commands until a steady device had it."""
        known = (self.received_at.keys() & self.submitted_at.keys()) & set(among)
        return [self.received_at[command_id] - self.submitted_at[command_id] for command_id in known]
