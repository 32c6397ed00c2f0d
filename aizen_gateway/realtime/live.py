"""All live sockets of an instance: counted, and closed together when the instance goes away (contract section 7)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from ..domain.errors import Unavailable
from .close_codes import CloseCode
from .connection import Connection, ConnectionLimits
from .later import Later

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
        self.timers = Later()
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

    def track(self, connection: Connection) -> Tracked:
        """Count `connection` while the block lasts."""
        return Tracked(self, connection)

    def add(self, connection: Connection) -> None:
        """Count `connection` from now on; it is told at once when the instance goes away already."""
        self._connections.add(connection)
        self._empty.clear()
        if self._draining:
            connection.end(CloseCode.GOING_AWAY, "draining")

    def remove(self, connection: Connection) -> None:
        """It has ended."""
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


class Tracked:
    """A block in which a connection is counted."""

    __slots__ = ("_connection", "_live")

    def __init__(self, live: LiveSockets, connection: Connection) -> None:
        self._live = live
        self._connection = connection

    def __enter__(self) -> None:
        self._live.add(self._connection)

    def __exit__(self, *_exc: object) -> None:
        self._live.remove(self._connection)
