"""One connection by itself: when it is pinged, when its peer is taken for gone, how its end is told (section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest

from aizen_gateway.realtime.connection import ConnectionLimits
from tests.support.pipe import Pipe, running


class Later:
    """What is to be done later, each with its seconds: nothing is done before the test does it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = asyncio.get_running_loop()
        self.due: list[tuple[float, Callable[[], object]]] = []
        monkeypatch.setattr(self._loop, "call_later", self._call_later)

    def _call_later(self, delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        self.due.append((delay, partial(callback, *args)))
        return self._loop.call_at(self._loop.time() + 3600, lambda: None)

    async def pass_on(self) -> float:
        """Do what is due first, and return after how many seconds that would have been."""
        delay, work = self.due.pop(0)
        work()
        for _ in range(3):
            await asyncio.sleep(0)
        return delay


async def test_pings_are_half_a_minute_apart_at_most_and_not_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    later = Later(monkeypatch)
    async with AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(running(Pipe()))
        delays = [delay for delay, _ in later.due]
    assert all(20 <= delay <= 30 for delay in delays)
    assert len(set(delays)) > 90
    assert max(delays) - min(delays) > 3


async def test_a_peer_that_is_silent_for_ten_seconds_after_a_ping_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    later, pipe = Later(monkeypatch), Pipe()
    pipe.opened.set()
    async with running(pipe) as connection:
        for pings in (1, 2):
            await later.pass_on()
            assert pipe.pings == pings
            connection.heard()
            assert await later.pass_on() == 10
            assert not connection.ending
        await later.pass_on()
        assert await later.pass_on() == 10
        assert connection.ending
        assert pipe.aborted.is_set()


async def test_while_the_gateway_does_not_read_silence_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    later, pipe = Later(monkeypatch), Pipe()
    pipe.opened.set()
    async with running(pipe) as connection:
        connection.deaf = True
        await later.pass_on()
        await later.pass_on()
        assert not connection.ending
        connection.deaf = False
        await later.pass_on()
        await later.pass_on()
        assert connection.ending


async def test_what_was_queued_goes_before_the_close_and_the_first_reason_counts() -> None:
    pipe = Pipe()
    async with running(pipe) as connection:
        connection.send(b"second")
        connection.end(4401, "logged out")
        connection.end(1001, "draining")
        connection.send(b"too late")
        pipe.opened.set()
        await pipe.aborted.wait()
    assert pipe.sent == [b"first", b"second"]
    assert pipe.closed == [(4401, "logged out")]


async def test_a_close_that_the_peer_does_not_take_ends_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    later, pipe = Later(monkeypatch), Pipe()
    async with running(pipe, ConnectionLimits(close_within=2.5)) as connection:
        later.due.clear()
        connection.end(1001, "draining")
        assert await later.pass_on() == 2.5
        assert pipe.aborted.is_set()
    assert pipe.closed == []


async def test_whoever_waits_for_an_end_is_told_of_one_that_has_been() -> None:
    told: list[str] = []
    async with running(Pipe()) as connection:
        connection.when_ending(partial(told.append, "before"))
        connection.end(1000, "")
        connection.when_ending(partial(told.append, "after"))
    assert told == ["before", "after"]
