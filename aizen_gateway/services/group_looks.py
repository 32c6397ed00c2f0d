"""Looks at devices, those of several callers in one statement (contract section 4, `status`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from ..storage import queries
from ..storage.groups import Groups
from ..storage.postgres import Database, columns

_TOGETHER = queries.load("devices")["devices_with_session"]
# Of arrays PostgreSQL makes a new plan each time, which for one device takes longer than the look itself.
LOOK_AT_ONE = _TOGETHER.replace(
    "unnest($1::int[], $2::text[], $3::uuid[], $4::timestamptz[])",
    "(select $1::int, $2::text, $3::uuid, $4::timestamptz)",
)

Rows = Sequence[Any]


class Wanted(NamedTuple):
    """A device of a customer, and the moment at which its session and commands are to be open."""

    device_id: str
    customer_id: UUID
    now: datetime


class GroupLooks:
    """Reads devices with their open session and the number of commands that wait."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups: Groups[Wanted, Rows] = Groups(self._read)

    async def read(self, wanted: Wanted) -> Any:
        """The device as a row, None when the customer has no such device. Raises `Unavailable`."""
        rows = await self._groups.do(wanted)
        if rows is None:
            (rows,) = await self._read([wanted])
        return rows[0] if rows else None

    async def _read(self, group: Sequence[Wanted]) -> Sequence[Rows]:
        found: list[list[Any]] = [[] for _ in group]
        if len(group) == 1:
            rows = await self._database.fetch(LOOK_AT_ONE, 0, *group[0])
        else:
            rows = await self._database.fetch(_TOGETHER, *columns([(n, *wanted) for n, wanted in enumerate(group)]))
        for row in rows:
            found[row["place"]].append(row)
        return found

    async def close(self) -> None:
        """Let what runs end."""
        await self._groups.close()
