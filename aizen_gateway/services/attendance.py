"""Who is there: changes of presence are written and announced once, whichever instance sees them (sections 4 and 6).

Redis decides that a presence changed, and when, and knows whether PostgreSQL has it; the row keeps the latest change
and tells a repeated one from a new one. So whoever finds a change that is not written yet may write it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import structlog

from ..domain.clock import from_ms
from ..domain.errors import Unavailable
from ..domain.values import NOWHERE, Origin
from ..storage import queries
from ..storage.groups import Groups
from ..storage.postgres import Change, Database
from ..storage.presence import Presence, PresenceChange
from ..storage.rows import device_of
from .dispatch import Dispatcher

_SQL = queries.load("devices")
_TOGETHER = queries.load("presence")["change_presences"]
_log = structlog.get_logger(__name__)

_PAGE = 500
_DUE_BATCH = 200
_AT_ONCE = 8
# When a whole region comes back, its devices are written by the dozen; one that comes alone is written at once.
_APART_S = 0.01
_LOOK_EVERY_S = 1.0


class Attendance:
    """Writes and announces changes of presence, and notices the devices that fall silent."""

    def __init__(self, database: Database, presence: Presence, dispatcher: Dispatcher) -> None:
        self._database = database
        self._presence = presence
        self._dispatcher = dispatcher
        self._groups: Groups[tuple[PresenceChange, Origin], Any] = Groups(self._write_together, apart_s=_APART_S)

    async def change(self, change: PresenceChange, origin: Origin = NOWHERE) -> bool:
        """Write and announce a change; with the database away somebody does so later, and False is returned."""
        try:
            changes = await self._write(change, origin)
        except Unavailable as error:
            _log.warning("presence is written later", reason=error.message, device_id=change.device_id)
            with suppress(Unavailable):
                await self._presence.watch(change.device_id, change.at_ms)
            return False
        await self._dispatcher.dispatch(changes)
        with suppress(Unavailable):
            await self._presence.written(change)
        return True

    async def _write(self, change: PresenceChange, origin: Origin) -> Sequence[Change]:
        """Write a change, with others of the same moment; return what must be announced. Raises `Unavailable`."""
        row = await self._groups.do((change, origin))
        if row is None:
            # Somebody else holds the device, or a later change is known.
            return await self._write_alone(change, origin)
        if row["version"] is None:
            return ()
        return (Change("device", device_of(row), "presence", origin.request_id, row["version"]),)

    async def _write_alone(self, change: PresenceChange, origin: Origin) -> Sequence[Change]:
        at = from_ms(change.at_ms)
        async with self._database.transaction(at, origin) as transaction:
            row = await transaction.fetchrow(
                _SQL["change_presence"], change.uid, change.status.value, at, change.connection.value, at
            )
            if row is not None and row["changed"]:
                transaction.announce(device_of(row), "presence")
        return transaction.changes

    async def _write_together(self, group: Sequence[tuple[PresenceChange, Origin]]) -> Sequence[Any]:
        """The rows of the devices that were written, None for the others."""
        # The earliest of a device: later ones follow alone, so that each change is told.
        latest_first = sorted(range(len(group)), key=lambda place: -group[place][0].at_ms)
        places = {group[place][0].uid: place for place in latest_first}
        chosen = [group[place] for place in places.values()]
        # Not a statement that commits itself: a server that hangs would do it later, for nobody.
        async with self._database.unit() as connection:
            rows = await connection.fetch(
                _TOGETHER,
                [change.uid for change, _ in chosen],
                [change.status.value for change, _ in chosen],
                [change.connection.value for change, _ in chosen],
                [from_ms(change.at_ms) for change, _ in chosen],
                [origin.request_id for _, origin in chosen],
            )
        written: list[Any] = [None] * len(group)
        for row in rows:
            written[places[row["uid"]]] = row
        return written

    async def look(self) -> int:
        """Look at the devices whose time has come: heartbeats stopped, a socket ended, or a change is not written.

        Return how many there were. Raises `Unavailable`; devices that could not be looked at are due again soon.
        """
        due = await self._presence.take_due(_DUE_BATCH)
        failures: list[BaseException] = []
        for start in range(0, len(due), _AT_ONCE):
            looks = [self._look_at(device_id) for device_id in due[start : start + _AT_ONCE]]
            outcomes = await asyncio.gather(*looks, return_exceptions=True)
            failures += [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        # One that cannot be looked at keeps none of the others waiting.
        if failures:
            raise failures[0]
        return len(due)

    async def _look_at(self, device_id: str) -> None:
        look = await self._presence.check(device_id)
        if look.change is not None and not await self.change(look.change):
            raise Unavailable("The database is not reachable.")
        await self._presence.checked(device_id, look.again_ms)

    async def barred(self, uid: UUID) -> bool:
        """Whether a device may not come back with a new token: it is suspended or deleted. Raises `Unavailable`."""
        row = await self._database.fetchrow(_SQL["read_device_by_uid"], uid)
        return row is None or row["suspended_at"] is not None or row["deleted_at"] is not None

    async def watch_present(self, now_ms: int) -> None:
        """After the presence index was lost: look at every device that counts as present. Raises `Unavailable`."""
        last: UUID | None = None
        while rows := await self._database.fetch(_SQL["devices_present"], last, _PAGE):
            for row in rows:
                await self._presence.adopt(row["id"], row["uid"], row["presence"], row["connection"], now_ms)
            last = rows[-1]["uid"]

    async def close(self) -> None:
        """Let what runs end."""
        await self._groups.close()

    async def run(self) -> None:
        """Look for ever; owned by the application."""
        while True:
            try:
                while await self.look() == _DUE_BATCH:
                    pass
            except Unavailable as error:
                _log.warning("presence waits", reason=error.message)
            await asyncio.sleep(_LOOK_EVERY_S)
