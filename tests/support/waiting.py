"""Waiting for what only time brings: the end of a lease, of a session, of an approval."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

Found = TypeVar("Found")

# How the contract writes times (section 1).
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
# Seconds within which an ended status shows (section 3, promise 6).
SHOWS_WITHIN = 10.0


async def eventually(
    read: Callable[[], Awaitable[Found]], holds: Callable[[Found], bool], within: float = SHOWS_WITHIN
) -> Found:
    """Read until what is read `holds`, and return it. Fails with what was read last after `within` seconds."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + within
    while True:
        found = await read()
        if holds(found):
            return found
        assert loop.time() < ends, f"still {found!r}"
        await asyncio.sleep(0.05)


async def until_past(moment: str) -> None:
    """Return when the contract's time `moment` has passed by this machine's clock, which the servers share."""
    left = (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
    await asyncio.sleep(max(0.0, left) + 0.01)
