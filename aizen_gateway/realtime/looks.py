"""Something that is looked at whenever that is due: when asked, or when a timer says so, and one look at a time."""

from __future__ import annotations

import asyncio
import contextvars
from abc import ABC, abstractmethod

from .later import Cancellable, Timers


class Looks(ABC):
    """There is a task only while it looks. What a look logs is logged as its maker's, whoever asked for it.

    A base and not a part: of objects by the ten thousand, each part would be one more, and know its owner.
    """

    __slots__ = ("_context", "_due", "_looking", "_resting", "_task", "_timer", "_timers")

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None
        self._timer: Cancellable | None = None
        self._due = False
        # Before it is begun and after it was ended, nobody looks.
        self._looking = False
        # After a look that failed nobody looks before its time.
        self._resting = False

    @abstractmethod
    async def _look(self) -> float:
        """One look; the seconds after which another is due. It raises nothing."""

    def _begin_looking(self) -> None:
        self._looking = True

    def _look_now(self) -> None:
        """Have a look: now, or once more after the one that is under way, or when it is time after one that failed."""
        if not self._looking:
            return
        self._due = True
        if self._resting:
            return
        self._forget_timer()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look_on(), context=self._context)

    def _look_after(self, seconds: float) -> None:
        """Have a look in so many seconds, unless one is asked for before."""
        if self._looking:
            self._forget_timer()
            self._timer = self._timers.call_later(max(0.0, seconds), self._come)

    def _come(self) -> None:
        self._resting = False
        self._look_now()

    def _look_no_sooner(self) -> None:
        """The look under way has failed: there is no other before the time that it returns."""
        self._resting = True

    def _end_looking(self) -> None:
        """Begin no more looks. One that is under way goes on."""
        self._looking = False
        self._forget_timer()

    async def _looked(self) -> None:
        """Wait until the look that is under way is done."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _look_on(self) -> None:
        seconds = 0.0
        try:
            while self._due and self._looking and not self._resting:
                self._due = False
                seconds = await self._look()
        finally:
            self._task = None
        self._look_after(seconds)
