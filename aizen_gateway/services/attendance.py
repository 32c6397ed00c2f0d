"""Who is there: changes of presence are written and announced once, whichever instance sees them (sections 4 and 6).

Redis decides that a presence changed and tells exactly one caller, with the moment; PostgreSQL keeps the latest.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import structlog

from ..domain.clock import from_ms
from ..domain.errors import Unavailable
from ..domain.values import NOWHERE, Connection, DeviceStatus, Origin
from ..storage import queries
from ..storage.postgres import Database
from ..storage.presence import Presence
from ..storage.rows import device_of
from .dispatch import Dispatcher

_SQL = queries.load("devices")
_log = structlog.get_logger(__name__)

_MOST_UNWRITTEN = 50_000
_PAGE = 500
_SILENT_BATCH = 200
_LOOK_EVERY_S = 1.0


class Attendance:
    """Writes and announces changes of presence, and notices the devices that fall silent."""

    def __init__(self, database: Database, presence: Presence, dispatcher: Dispatcher) -> None:
        self._database = database
        self._presence = presence
        self._dispatcher = dispatcher
        self._unwritten: dict[UUID, tuple[DeviceStatus, Connection, int]] = {}

    async def change(
        self, uid: UUID, status: DeviceStatus, connection: Connection, changed_ms: int, origin: Origin = NOWHERE
    ) -> None:
        """Write and announce a presence that changed at `changed_ms`; with the database away it is written later."""
        at = from_ms(changed_ms)
        try:
            async with self._database.transaction(at, origin) as transaction:
                row = await transaction.fetchrow(_SQL["change_presence"], uid, status.value, at, connection.value, at)
                if row is not None and row["changed"]:
                    transaction.announce(device_of(row), "presence")
        except Unavailable:
            known = self._unwritten.get(uid)
            if known is None and len(self._unwritten) >= _MOST_UNWRITTEN:
                return
            if known is None or known[2] < changed_ms:
                self._unwritten[uid] = (status, connection, changed_ms)
            return
        await self._dispatcher.dispatch(transaction.changes)

    async def write_unwritten(self) -> None:
        """Write what could not be written before; stops at the first that still cannot."""
        for uid, unwritten in list(self._unwritten.items()):
            if self._unwritten.get(uid) is unwritten:
                del self._unwritten[uid]
                await self.change(uid, *unwritten)
                if uid in self._unwritten:
                    return

    async def find_silent(self) -> None:
        """Mark devices offline whose heartbeats stopped, or whose socket ended. Raises `Unavailable`."""
        for silence in await self._presence.fallen_silent(_SILENT_BATCH):
            await self.change(silence.uid, DeviceStatus.OFFLINE, Connection.NONE, silence.changed_ms)

    async def watch_present(self, now_ms: int) -> None:
        """After the presence index was lost: look at every device that counts as present. Raises `Unavailable`."""
        last: UUID | None = None
        while rows := await self._database.fetch(_SQL["devices_present"], last, _PAGE):
            for row in rows:
                await self._presence.adopt(row["id"], row["uid"], row["presence"], now_ms)
            last = rows[-1]["uid"]

    async def run(self) -> None:
        """Look for ever; owned by the application."""
        while True:
            try:
                await self.write_unwritten()
                await self.find_silent()
            except Unavailable as error:
                _log.warning("presence waits", reason=error.message)
            await asyncio.sleep(_LOOK_EVERY_S)
