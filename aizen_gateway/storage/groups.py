"""Callers of the same moment share one run of their work: one transaction where each would have had its own.

A call that comes while nothing runs is run at once, alone; under load those that come meanwhile are the next group. So
nobody waits for company, unless that is asked for, and the number of transactions does not grow with the number of
callers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

import structlog

from ..domain.errors import InDoubt, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

# Groups that run at a time: while one is at the server another one can be made ready.
_AT_ONCE = 2
_MOST = 64
# More callers than connections could bring; one beyond them goes alone, and waits for a connection like everybody.
_MOST_WAITING = 5_000
# Seconds in which groups may still end when they are closed.
_LAST_S = 2.0

_log = structlog.get_logger(__name__)


class Groups(Generic[Item, Result]):
    """Owns the runs of one kind of work.

    `work` does several items and returns a result for each, in order; None for what must be done alone. When it raises
    it has done nothing: `Unavailable` is for all callers; any other failure is that of one of them, nobody knows whose,
    and each is done alone.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result | None]]], *, apart_s: float = 0.0
    ) -> None:
        """A group begins no sooner than `apart_s` seconds after the one before it: for what comes by the thousand, and
        is in no hurry then.
        """
        self._work = work
        self._apart_s = apart_s
        self._pause: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[Item, asyncio.Future[Result | None]]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    async def do(self, item: Item) -> Result | None:
        """Have `item` done with others; None when it must be done alone. Raises `Unavailable`, `InDoubt`."""
        if self._closed:
            raise Unavailable("The gateway is stopping.")
        if len(self._waiting) >= _MOST_WAITING:
            return None
        done: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        self._go_on()
        return await done

    def _go_on(self) -> None:
        """Begin a group, if there is one and it may."""
        if self._waiting and self._pause is None and not self._closed and len(self._running) < _AT_ONCE:
            self._start()

    def _start(self) -> None:
        # In a context of its own: what a group logs is about no single caller.
        task = asyncio.create_task(self._run(), name="group", context=Context())
        self._running.add(task)
        task.add_done_callback(self._ended)
        if self._apart_s:
            self._pause = asyncio.get_running_loop().call_later(self._apart_s, self._paused, context=Context())

    def _paused(self) -> None:
        self._pause = None
        self._go_on()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._go_on()

    async def _run(self) -> None:
        # Whoever has given up meanwhile wants nothing done any more.
        group = [(item, done) for item, done in self._waiting[:_MOST] if not done.done()]
        del self._waiting[:_MOST]
        if not group:
            return
        try:
            results = await self._work([item for item, _ in group])
        except asyncio.CancelledError:
            # Its commit may have been under way.
            _tell(group, InDoubt("The gateway is stopping."))
            raise
        except Unavailable as error:
            _tell(group, error)
        except Exception as error:
            _log.warning("group is done one by one", size=len(group), problem=type(error).__name__)
            for _, done in group:
                if not done.done():
                    done.set_result(None)
        else:
            for (_, done), result in zip(group, results, strict=True):
                if not done.done():
                    done.set_result(result)

    async def settled(self) -> None:
        """Wait until the groups that run now have ended: what a caller who gave up may be part of."""
        if self._running:
            await asyncio.wait(tuple(self._running))

    async def close(self) -> None:
        """Let what runs or waits end, for a moment; then break it off. Whoever is left gets `Unavailable`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _LAST_S
        self._apart_s = 0.0
        if self._pause is not None:
            self._pause.cancel()
            self._paused()
        while self._running and (left := until - loop.time()) > 0:
            await asyncio.wait(self._running, timeout=left)
        self._closed = True
        running, waiting = tuple(self._running), tuple(self._waiting)
        self._waiting.clear()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        _tell(waiting, Unavailable("The gateway is stopping."))


def _tell(group: Sequence[tuple[object, asyncio.Future[Result | None]]], error: Unavailable) -> None:
    for _, done in group:
        if not done.done():
            done.set_exception(error)
