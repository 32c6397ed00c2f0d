"""How background tasks are ended for good, and what must not be cut in the middle.

A single cancellation can get lost.

Before Python 3.12, `asyncio.wait_for` swallows a cancellation that comes together with the result it waits for, and
libraries that use it pass on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds that a task has for its cleanup until it is asked again.
_AGAIN_S = 0.2


async def end(*tasks: asyncio.Future[Any], again: float = _AGAIN_S) -> None:
    """Cancel `tasks` until all have ended, every `again` seconds; whatever they end with is dropped.

    A task that cleans up for longer than that is cut short.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again)
    await asyncio.gather(*tasks, return_exceptions=True)


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` to its end, also when the caller is cancelled meanwhile; then the cancellation goes on.

    For steps that must not be cut in the middle: a claim that is leased and not confirmed would wait for its lease.
    What they wait for has bounds of its own.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()
        raise
