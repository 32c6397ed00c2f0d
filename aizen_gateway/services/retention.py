"""What is old goes, in small batches, so that tables stay as large as an operator wants them (contract section 7)."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import structlog

from ..domain.clock import from_ms
from ..domain.errors import Unavailable
from ..domain.values import IDEMPOTENCY_TTL_S, NOWHERE
from ..storage import queries
from ..storage.postgres import Database
from ..storage.redis_store import RedisStore

_SQL = queries.load("retention")
_IDEMPOTENCY = queries.load("idempotency")
_BATCH = 100
_SESSIONS_BATCH = 20
_EVERY_S = 60.0
# Between two batches, so that a large backlog does not crowd out the work of the day.
_PAUSE_S = 0.1

_log = structlog.get_logger(__name__)


class Retention:
    """Deletes ended sessions with their commands, audit records and idempotency keys past their time (seconds)."""

    def __init__(self, database: Database, store: RedisStore, *, sessions_s: int, audit_s: int) -> None:
        self._database = database
        self._store = store
        self._sessions = timedelta(seconds=sessions_s)
        self._audit = timedelta(seconds=audit_s)

    async def sessions(self, now: datetime) -> bool:
        """Delete a batch of old sessions; return whether there may be more. Raises `Unavailable`."""
        async with self._database.transaction(now, NOWHERE) as transaction:
            rows = await transaction.fetch(_SQL["old_sessions"], now - self._sessions, _SESSIONS_BATCH)
            ids = [row["id"] for row in rows]
            if ids:
                await transaction.execute(_SQL["delete_commands_of_sessions"], ids)
                await transaction.execute(_SQL["delete_sessions"], ids)
        return len(ids) == _SESSIONS_BATCH

    async def audit(self, now: datetime) -> bool:
        """Delete a batch of old audit records; return whether there may be more. Raises `Unavailable`."""
        return _count(await self._database.execute(_SQL["delete_old_audit"], now - self._audit, _BATCH)) == _BATCH

    async def idempotency_keys(self, now: datetime) -> bool:
        """Delete a batch of keys past their time; return whether there may be more. Raises `Unavailable`."""
        oldest = now - timedelta(seconds=IDEMPOTENCY_TTL_S)
        return _count(await self._database.execute(_IDEMPOTENCY["forget_idempotency"], oldest, _BATCH)) == _BATCH

    async def once(self) -> None:
        """Delete all that is past its time now. Raises `Unavailable`."""
        now = from_ms(await self._store.time_ms())
        for step in (self.sessions, self.audit, self.idempotency_keys):
            while await step(now):  # noqa: ASYNC110 - a pace, it waits for nothing
                await asyncio.sleep(_PAUSE_S)

    async def run(self) -> None:
        """Delete for ever; owned by the application."""
        while True:
            try:
                await self.once()
            except Unavailable as error:
                _log.warning("retention waits", reason=error.message)
            await asyncio.sleep(_EVERY_S)


def _count(status: str) -> int:
    """The number of rows in `DELETE 12`."""
    return int(status.split()[-1])
