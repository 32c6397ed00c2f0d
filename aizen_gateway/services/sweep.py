"""Time passes: leases run out, commands and sessions expire, by Redis's clock (contract section 3, promises 3 and 6).

Claims look at time themselves, so nothing is handed out too late even when no sweep runs; this makes ends visible
within seconds and puts lapsed leases back. Every instance sweeps; rows that another one holds are skipped.
"""

from __future__ import annotations

import asyncio

import structlog

from ..domain.clock import from_ms
from ..domain.errors import Unavailable
from ..domain.lifecycle import lapse, lapsed
from ..domain.values import GATEWAY, NOWHERE, CommandStatus
from ..storage import queries
from ..storage.postgres import Database
from ..storage.redis_store import RedisStore
from ..storage.rows import command_of, session_of
from .dispatch import Dispatcher
from .transitions import expire_session, save_command

_COMMANDS = queries.load("commands")
_SESSIONS = queries.load("sessions")
_BATCH = 100
_EVERY_S = 1.0

_log = structlog.get_logger(__name__)


class Sweep:
    """Concludes what time has ended."""

    def __init__(self, database: Database, store: RedisStore, dispatcher: Dispatcher) -> None:
        self._database = database
        self._store = store
        self._dispatcher = dispatcher

    async def sessions(self) -> int:
        """Expire the sessions that are due; return how many. Raises `Unavailable`."""
        now = from_ms(await self._store.time_ms())
        async with self._database.transaction(now, NOWHERE) as transaction:
            rows = await transaction.fetch(_SESSIONS["lock_due_sessions"], now, _BATCH)
            for row in rows:
                await expire_session(transaction, session_of(row), GATEWAY)
        await self._dispatcher.dispatch(transaction.changes)
        return len(rows)

    async def commands(self) -> int:
        """Conclude the commands that are due; return how many. Raises `Unavailable`."""
        now = from_ms(await self._store.time_ms())
        async with self._database.transaction(now, NOWHERE) as transaction:
            rows = await transaction.fetch(_COMMANDS["lock_due_commands"], now, _BATCH)
            for row in rows:
                command = command_of(row)
                if (change := lapse(command, now)) is not None:
                    # Its device was told to stop already.
                    how = "stopped" if command.status is CommandStatus.CANCEL_REQUESTED else "updated"
                    after = lapsed(command, change, now)
                    await save_command(transaction, after, change.event, GATEWAY, change=how)
        await self._dispatcher.dispatch(transaction.changes)
        return len(rows)

    async def run(self) -> None:
        """Sweep for ever; owned by the application."""
        while True:
            for step in (self.sessions, self.commands):
                try:
                    while await step() == _BATCH:
                        pass
                except Unavailable as error:
                    _log.warning("sweep waits", reason=error.message)
            await asyncio.sleep(_EVERY_S)
