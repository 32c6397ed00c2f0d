"""All live sockets of an instance: counted, and closed together when the instance goes away (contract section 7)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..domain.errors import Unavailable
from .connection import CloseCode, Connection, ConnectionLimits

# Sockets closed at once, and the seconds between two batches: their clients come back together.
_BATCH = 100
_PAUSE = 0.1


class LiveSockets:
    """Knows every open socket. While draining, none is taken any more."""

    def __init__(
        self, limits: ConnectionLimits | None = None, *, ended: Callable[[int | None], None] = lambda _code: None
    ) -> None:
        """`ended` is told the gateway's close code of each socket, None when there was none."""
        self.limits = limits or ConnectionLimits()
        self._ended = ended
        self._connections: set[Connection] = set()
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def count(self) -> int:
        return len(self._connections)

    def require_room(self) -> None:
        """Raise `Unavailable` while draining: the client goes to another instance."""
        if self._draining:
            raise Unavailable("The gateway is going away.", retry_after=1)

    @contextmanager
    def track(self, connection: Connection) -> Iterator[None]:
        """Count `connection` while the block lasts."""
        self._connections.add(connection)
        self._empty.clear()
        if self._draining:
            connection.end(CloseCode.GOING_AWAY, "draining")
        try:
            yield
        finally:
            self._connections.discard(connection)
            self._ended(connection.close_code)
            if not self._connections:
                self._empty.set()

    async def drain(self, within: float) -> None:
        """Close all sockets 1001 in batches, over at most about half of `within` seconds, and wait for their ends.

        A socket that does not end in time is left to its own bound, which is force.
        """
        self._draining = True
        waiting = list(self._connections)
        random.shuffle(waiting)
        batches = max(1, -(-len(waiting) // _BATCH))
        pause = min(_PAUSE, within / 2 / batches)
        try:
            async with asyncio.timeout(within):
                for start in range(0, len(waiting), _BATCH):
                    for connection in waiting[start : start + _BATCH]:
                        connection.end(CloseCode.GOING_AWAY, "draining")
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
