"""One timer for things that all have the same time: a timer of its own for each would cost more than they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class Deadlines(Generic[Thing]):
    """Calls `overdue` for what has begun `seconds` ago and has not ended."""

    def __init__(self, seconds: float, overdue: Callable[[Thing], object]) -> None:
        self.seconds = seconds
        self._overdue = overdue
        self._loop = asyncio.get_running_loop()
        # In the order in which they began, which is that in which they are due.
        self._begun: dict[Thing, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, thing: Thing) -> None:
        """From now on `thing` has its time."""
        due = self._loop.time() + self.seconds
        self._begun[thing] = due
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look)

    def end(self, thing: Thing) -> None:
        """`thing` is done; again is no harm."""
        self._begun.pop(thing, None)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        overdue: list[Thing] = []
        for thing, due in self._begun.items():
            if due > now:
                self._timer = self._loop.call_at(due, self._look)
                break
            overdue.append(thing)
        for thing in overdue:
            # One that is told may end another.
            if self._begun.pop(thing, None) is not None:
                self._overdue(thing)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
