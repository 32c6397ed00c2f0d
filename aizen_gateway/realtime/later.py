"""Timers by the thousand: one of the event loop's own for all that is due at the same moment.

Each of the loop's own timers takes more memory than whatever else an idle socket waits with.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

# Seconds between two moments.
_TICK = 0.05


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Timers(Protocol):
    """What calls back after a while: the event loop, or `Later`."""

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Cancellable: ...


class Later:
    """Calls back a little late, by 50 ms at most, and never early. Needs no end: it waits with the loop alone."""

    def __init__(self) -> None:
        self._due: dict[int, set[Appointment]] = {}
        self._ticks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Appointment:
        """As the event loop's. The callback finds the context of nobody in particular."""
        tick = int((asyncio.get_running_loop().time() + delay) / _TICK) + 1
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            heapq.heappush(self._ticks, tick)
            if self._ticks[0] == tick:
                self._wait()
        appointment = Appointment(due, callback, args)
        due.add(appointment)
        return appointment

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        when = self._ticks[0] * _TICK
        self._timer = asyncio.get_running_loop().call_at(when, self._come, context=Context())

    def _come(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._ticks and self._ticks[0] * _TICK <= loop.time():
            for appointment in self._due.pop(heapq.heappop(self._ticks)):
                # One by one, so that one that fails does not cost the others theirs.
                loop.call_soon(appointment.come)
        if self._ticks:
            self._wait()


class Appointment:
    """Something to be done later, unless it is cancelled."""

    __slots__ = ("_args", "_callback", "_due")

    def __init__(self, due: set[Appointment], callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._due = due
        self._callback: Callable[..., object] | None = callback
        self._args = args

    def come(self) -> None:
        """It is due."""
        if self._callback is not None:
            self._callback(*self._args)

    def cancel(self) -> None:
        """Forget it."""
        self._due.discard(self)
        self._callback = None
