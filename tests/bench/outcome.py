"""What the bench finds: rows of figures, and whether they are what they must be."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


class Figure(StrEnum):
    """What a number is; each name tells its unit. `Us` figures are CPU time a request, or whatever the row counts."""

    RATE = "perSecond"
    P50 = "p50Ms"
    P99 = "p99Ms"
    MAX = "maxMs"
    CPU = "cpuUs"
    VALKEY = "valkeyUs"
    POSTGRES = "postgresUs"
    SHARE = "cpuShare"
    MEMORY = "kibASocket"
    CALLS = "redisCallsASecond"
    CONNECTIONS = "redisConnections"


Figures = Mapping[Figure, float]
# How many times its own earlier rate a path must reach.
_GAINS = {"cycle": 1.5}


@dataclass(frozen=True, slots=True)
class Check:
    """A value that must be at least, or at most, `bound`. `what` says of what."""

    what: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One measured path under one load. `amount` is the load as a number, for plots."""

    path: str
    title: str
    load: str
    amount: float
    gateway: Figures
    ceiling: Figures | None = None
    checks: Sequence[Check] = ()

    @property
    def reached(self) -> bool | None:
        """Whether everything is as it must be; None when nothing is asked."""
        return all(check.reached for check in self.checks) if self.checks else None

    @property
    def json(self) -> dict[str, Any]:
        """The row as JSON data."""
        checks = [
            {"what": one.what, "value": one.value, "bound": one.bound, "atLeast": one.at_least, "reached": one.reached}
            for one in self.checks
        ]
        return {
            "path": self.path,
            "title": self.title,
            "load": self.load,
            "amount": self.amount,
            "gateway": dict(self.gateway),
            "ceiling": None if self.ceiling is None else dict(self.ceiling),
            "checks": checks,
            "reached": self.reached,
        }


def beside_earlier(row: Row, earlier: Sequence[Mapping[str, Any]]) -> Row:
    """The row with a check more where an earlier run, as its JSON's rows, has the path and the project must gain."""
    least = _GAINS.get(row.path)
    for found in earlier:
        if least and found["path"] == row.path and found["load"] == row.load:
            gain = row.gateway[Figure.RATE] / found["gateway"][Figure.RATE]
            return replace(row, checks=(*row.checks, Check("x before", gain, least, at_least=True)))
    return row


def medians(runs: Sequence[Figures]) -> Figures:
    """Each figure's median over some runs; of maxima the highest."""
    return {
        figure: (max if figure is Figure.MAX else statistics.median)(run[figure] for run in runs) for figure in runs[0]
    }
