"""How many messages a socket may send: a burst at once, then as many a minute (sections 6 and 7)."""

from __future__ import annotations

import time

import pytest

from aizen_gateway.realtime.allowance import Allowance


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def taken(allowance: Allowance, wanted: int) -> int:
    return sum(allowance.take() for _ in range(wanted))


def test_a_minutes_messages_may_come_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    assert taken(Allowance(1200), 2000) == 1200


def test_it_fills_again_at_the_rate_and_never_over_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    allowance = Allowance(60)
    assert taken(allowance, 100) == 60
    clock.now += 7.5
    assert taken(allowance, 100) == 7
    clock.now += 0.5
    assert taken(allowance, 100) == 1
    clock.now += 3600
    assert taken(allowance, 100) == 60


def test_none_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    assert taken(Allowance(0), 5000) == 5000
