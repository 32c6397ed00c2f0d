"""Numbers that nobody counts as they happen: the depth of the queue, the outbox, the pools, the event loop's lag."""

from __future__ import annotations

import asyncio
import time

import structlog

from ..domain.errors import Unavailable
from ..domain.lifecycle import OPEN
from ..metrics import Metrics
from ..realtime.bus import Bus
from ..storage import queries
from ..storage.postgres import Database
from ..storage.redis_store import RedisStore

_COMMANDS = queries.load("commands")
_OUTBOX = queries.load("outbox")
_LAG_EVERY_S = 0.25
_COUNT_EVERY_S = 15.0

_log = structlog.get_logger(__name__)


class Gauges:
    """Reads them now and then."""

    def __init__(self, metrics: Metrics, database: Database, store: RedisStore, bus: Bus) -> None:
        self._metrics = metrics
        self._database = database
        self._store = store
        self._bus = bus
        # Counted when somebody asks, for it takes longer the more there are.
        metrics.tasks.set_function(_tasks)

    async def count(self) -> None:
        """Count what is in the database. Raises `Unavailable`."""
        rows = await self._database.fetch(_COMMANDS["count_by_status"])
        found = {row["status"]: row["count"] for row in rows}
        for status in OPEN:
            self._metrics.open_commands.labels(status.value).set(found.get(status.value, 0))
        lag = await self._database.fetchrow(_OUTBOX["outbox_lag"])
        self._metrics.outbox_waiting.set(lag["waiting"])
        self._metrics.outbox_oldest.set(lag["oldest"])

    def look(self) -> None:
        """Read what this process knows by itself."""
        metrics = self._metrics
        metrics.channels.set(self._bus.channels)
        for state, number in self._database.connections().items():
            metrics.database_connections.labels(state).set(number)
        metrics.redis_calls.set(self._store.calls)

    async def run(self) -> None:
        """Read for ever; owned by the application."""
        counted_at = float("-inf")
        while True:
            due = time.monotonic() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._metrics.loop_lag.observe(max(0.0, time.monotonic() - due))
            self.look()
            if time.monotonic() - counted_at >= _COUNT_EVERY_S:
                counted_at = time.monotonic()
                try:
                    await self.count()
                except Unavailable as error:
                    _log.debug("counting waits", reason=error.message)


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        # Asked from outside the event loop.
        return 0
