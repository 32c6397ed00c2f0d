"""How background tasks are ended for good.

A single cancellation can get lost.

Before Python 3.12, `asyncio.wait_for` swallows a cancellation that comes together with the result it waits for, and
libraries that use it pass on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
from typing import Any

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
