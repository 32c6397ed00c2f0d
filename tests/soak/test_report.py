"""The soak's verdict and its plan: what it takes for growth, for a loss, and for a bad client."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

from .crowd import Plan
from .ledger import Ledger, Manner
from .report import Moments, Report
from .stage import Level

_IDLE = Level(rss_mib=70.0, tasks=15, channels=0, connections=6, sockets=0)
_USED = replace(_IDLE, rss_mib=130.0)
_GOOD = Moments(start=_IDLE, before=_USED, peak=replace(_USED, tasks=7_000), after=_USED)


def judged(moments: Moments = _GOOD, **changes: Any) -> list[str]:
    """The problems of a good report with some changes."""
    found: dict[str, Any] = {
        "options": {},
        "gateways": {"one": moments},
        "subscriptions": 1,
        "work": {"accepted": 10, "acknowledged": 10, "runTwice": 0},
        "commands": {"succeeded": 10},
        "closes": {},
        "complaints": {"warning: something": 3},
        "failures": [],
    }
    report = Report(**found | changes)
    report.judge()
    assert json.loads(json.dumps(report.json))["ok"] is (not report.problems)
    return report.problems


def test_nothing_that_grew_and_nothing_lost_is_no_problem() -> None:
    assert judged() == []
    assert judged(replace(_GOOD, after=replace(_USED, rss_mib=137.0, tasks=17))) == []


def test_what_stays_behind_is_a_problem() -> None:
    left: dict[str, Any] = {"rss_mib": 139.0, "tasks": 18, "channels": 1, "sockets": 1}
    for name, value in left.items():
        (problem,) = judged(replace(_GOOD, after=replace(_USED, **{name: value})))
        assert problem.startswith(f"one: {name} {value}")
    assert len(judged(subscriptions=2)) == 1


def test_a_command_that_is_not_there_or_came_twice_is_a_problem() -> None:
    assert len(judged(commands={"succeeded": 9, "expired": 1})) == 1
    assert len(judged(commands={"succeeded": 9})) == 1
    assert len(judged(work={"accepted": 10, "acknowledged": 10, "runTwice": 1})) == 1


def test_errors_of_clients_and_gateways_are_problems() -> None:
    assert len(judged(failures=["a", "b"])) == 1
    assert len(judged(complaints={"error: something": 1})) == 1


def test_a_command_that_comes_again_counts_only_after_its_result_was_acknowledged() -> None:
    ledger = Ledger()
    ledger.accepted("c", "d", 0.0)
    ledger.received("c", Manner.FLAPPING)
    ledger.received("c", Manner.FLAPPING)
    assert (ledger.twice.total(), ledger.waiting["d"]) == (0, {"c"})
    ledger.reported("c", "d")
    ledger.received("c", Manner.FLAPPING)
    assert (ledger.twice.total(), ledger.waiting["d"]) == (1, set())


def test_a_command_that_was_there_before_its_submission_was_answered_has_its_time_too() -> None:
    ledger = Ledger()
    ledger.received("fast", Manner.STEADY)
    ledger.accepted("fast", "d", ledger.received_at["fast"] - 0.25)
    ledger.accepted("slow", "d", 0.0)
    ledger.received("slow", Manner.FLAPPING)
    assert ledger.latencies({"fast", "slow", "unknown"}) == [0.25]
    assert ledger.latencies({"slow"}) == []


def test_the_faulty_are_half_frozen_and_half_flapping() -> None:
    plan = Plan(devices=1_800, portals=200, faulty=0.1, rate=40.0, lease_ms=10_000)
    for count in (1_800, 200):
        manners = Counter(plan.manner(number) for number in range(count))
        assert manners[Manner.FLAPPING] + manners[Manner.FROZEN] == count // 10
        assert abs(manners[Manner.FLAPPING] - manners[Manner.FROZEN]) <= 1
    assert {replace(plan, faulty=0.0).manner(number) for number in range(100)} == {Manner.STEADY}
