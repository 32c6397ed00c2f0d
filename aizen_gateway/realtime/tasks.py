"""Ends background tasks for good: a single cancellation can get lost.

Before Python 3.12, `asyncio.wait_for` swallows a cancellation that comes together with the result it waits for, and
libraries that use it pass on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
from typing import Any

# Seconds that a task has for its cleanup until it is asked again.
_AGAIN_S = 0.2


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` until all have ended; whatever they end with is dropped."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
