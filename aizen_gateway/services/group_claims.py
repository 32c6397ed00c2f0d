"""Claims of several devices, confirmed in one transaction (contract section 3, promises 1 to 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from ..domain.clock import from_ms
from ..domain.errors import InDoubt, Unavailable
from ..domain.lifecycle import after_ms
from ..domain.values import DeviceCaller, Origin
from ..storage import queries
from ..storage.groups import Groups
from ..storage.postgres import Database, columns

_SQL = queries.load("commands")
# What somebody else holds just now is left to a claim of its own, so that one device never waits for another's.
_AT_HAND = queries.at_hand(_SQL["confirm_claims"])

Rows = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one claim leased in the index and wants confirmed, with the tokens that it would have."""

    caller: DeviceCaller
    ids: Sequence[UUID]
    tokens: Sequence[str]
    visibility_ms: int
    origin: Origin

    @property
    def now(self) -> datetime:
        return from_ms(self.caller.now_ms)

    @property
    def lease_end(self) -> datetime:
        return after_ms(self.now, self.visibility_ms)


class Confirmed(NamedTuple):
    """What was confirmed, in the order in which it was wanted; `in_doubt` when nobody knows whether the rest was."""

    rows: Rows
    in_doubt: bool


class GroupClaims:
    """Confirms claims in the truth."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups: Groups[Wanted, Rows] = Groups(self._confirm_together)

    async def confirm(self, wanted: Wanted) -> Confirmed:
        """The commands that the truth lets the device have.

        Raises `Unavailable`; then it has none, unless that is `InDoubt`.
        """
        rows = await self._groups.do(wanted) or []
        in_doubt = False
        left = set(wanted.ids) - {row["id"] for row in rows}
        if left:
            chosen = [place for place, command_id in enumerate(wanted.ids) if command_id in left]
            alone = Wanted(
                wanted.caller,
                [wanted.ids[place] for place in chosen],
                [wanted.tokens[place] for place in chosen],
                wanted.visibility_ms,
                wanted.origin,
            )
            try:
                rows = [*rows, *await self._run(_SQL["confirm_claims"], [alone])]
            except Unavailable as error:
                # What was confirmed already is the device's, whatever happens to the rest.
                if not rows:
                    raise
                in_doubt = isinstance(error, InDoubt)
            order = {command_id: place for place, command_id in enumerate(wanted.ids)}
            rows = sorted(rows, key=lambda row: order[row["id"]])
        return Confirmed(rows, in_doubt)

    async def _confirm_together(self, group: Sequence[Wanted]) -> Sequence[Rows | None]:
        rows = await self._run(_AT_HAND, group)
        of_token = {row["claim_token"]: row for row in rows}
        return [[of_token[token] for token in wanted.tokens if token in of_token] for wanted in group]

    async def _run(self, statement: str, group: Sequence[Wanted]) -> Rows:
        rows = [row for wanted in group for row in _rows(wanted)]
        # Not one statement that commits itself: a server that hangs would do it later, for nobody.
        async with self._database.unit() as connection:
            return list(await connection.fetch(statement, *columns(rows)))

    async def settled(self) -> None:
        """Wait until what is being confirmed now has been, or has not."""
        await self._groups.settled()

    async def close(self) -> None:
        """Let what runs end."""
        await self._groups.close()


def _rows(wanted: Wanted) -> Iterator[tuple[Any, ...]]:
    caller, origin, now, lease_end = wanted.caller, wanted.origin, wanted.now, wanted.lease_end
    for command_id, token in zip(wanted.ids, wanted.tokens, strict=True):
        yield (
            *(command_id, token, caller.uid, now, lease_end, caller.device_id),
            *(origin.request_id, origin.ip, origin.user_agent),
        )
