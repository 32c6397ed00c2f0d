"""How many messages a socket may still send: a steady rate a minute with a burst of as many (contract section 7)."""

from __future__ import annotations

import time


class Allowance:
    """`rate` is messages a minute, 0 for no limit. Local to a socket, so the process's own clock will do."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._left = float(rate)
        self._at = time.monotonic()

    def take(self) -> bool:
        """Use one up; return False when there is none left."""
        if self._rate == 0:
            return True
        now = time.monotonic()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate / 60)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
