"""Callers of the same moment share one run of their work: one transaction where each would have had its own.

A call that comes while nothing runs is run at once, alone; under load those that come meanwhile are the next group. So
nobody waits for company, and the number of transactions does not grow with the number of callers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Groups that run at a time: while one is at the server another one can be made ready.
_AT_ONCE = 2
_MOST = 64
# More callers than connections could bring; one beyond them goes alone, and waits for a connection like everybody.
_MOST_WAITING = 5_000


class Groups(Generic[Item, Result]):
    """Owns the runs of one kind of work.

    `work` does several items and returns a result for each, in order; None for what must be done alone. What it raises
    is raised to all callers.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result | None]]]) -> None:
        self._work = work
        self._waiting: list[tuple[Item, asyncio.Future[Result | None]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def do(self, item: Item) -> Result | None:
        """Have `item` done with others; None when it must be done alone. Raises what the work raises."""
        if len(self._waiting) >= _MOST_WAITING:
            return None
        done: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if len(self._running) < _AT_ONCE:
            self._start()
        return await done

    def _start(self) -> None:
        task = asyncio.create_task(self._run(), name="group")
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._waiting and len(self._running) < _AT_ONCE:
            self._start()

    async def _run(self) -> None:
        group = self._waiting[:_MOST]
        del self._waiting[:_MOST]
        if not group:
            return
        try:
            results = await self._work([item for item, _ in group])
            for (_, done), result in zip(group, results, strict=True):
                if not done.done():
                    done.set_result(result)
        except BaseException as error:
            for _, done in group:
                if not done.done():
                    if isinstance(error, Exception):
                        done.set_exception(error)
                    else:
                        done.cancel()
            if not isinstance(error, Exception):
                raise

    async def close(self) -> None:
        """Let what runs end, for a moment; then break it off."""
        if self._running:
            _, left = await asyncio.wait(self._running, timeout=2.0)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
