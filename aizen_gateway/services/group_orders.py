"""Commands of several customers, put on the queue in one transaction (contract section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import orjson

from ..domain.values import (
    DEFAULT_DELIVERIES_DIAGNOSTIC,
    DEFAULT_DELIVERIES_REMEDIATION,
    MAX_OPEN_COMMANDS,
    CommandKind,
    Origin,
    Principal,
)
from ..storage import queries
from ..storage.groups import Groups
from ..storage.postgres import Change, Database, columns
from ..storage.rows import command_of

_COMMANDS = queries.load("commands")
_SESSIONS = queries.load("sessions")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be put on the queue; `expires_at` None is the session's end."""

    type: str
    kind: CommandKind
    parameters: dict[str, Any]
    digest: str
    priority: int
    timeout_ms: int
    expires_at: datetime | None
    max_deliveries: int | None
    reason: str | None
    retry_of: UUID | None = None

    @property
    def deliveries(self) -> int:
        """How often it may be handed out."""
        diagnostic = self.kind is CommandKind.DIAGNOSTIC
        return self.max_deliveries or (DEFAULT_DELIVERIES_DIAGNOSTIC if diagnostic else DEFAULT_DELIVERIES_REMEDIATION)


@dataclass(frozen=True, slots=True)
class Placing:
    """An order and who gives it, in which session."""

    principal: Principal
    session_id: UUID
    order: Order
    now: datetime
    origin: Origin


class GroupOrders:
    """Writes new commands to the truth."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups: Groups[Placing, Change] = Groups(self._place)

    async def place(self, placing: Placing) -> Change | None:
        """Insert a command; None when it must be tried alone, which tells what is wrong. Raises `Unavailable`."""
        return await self._groups.do(placing)

    async def _place(self, group: Sequence[Placing]) -> Sequence[Change | None]:
        ids = [uuid4() for _ in group]
        rows = [_row(command_id, placing) for command_id, placing in zip(ids, group, strict=True)]
        async with self._database.unit() as connection:
            held = await connection.fetch(_SESSIONS["lock_sessions_at_hand"], [one.session_id for one in group])
            placed = await connection.fetch(
                _COMMANDS["submit_commands"], *columns(rows), [row["id"] for row in held], MAX_OPEN_COMMANDS
            )
            # Before the commit: what has failed has done nothing, and may be done again.
            changes = {
                row["id"]: Change("command", command_of(row), row["change"], row["request_id"], row["version"])
                for row in placed
            }
        return [changes.get(command_id) for command_id in ids]

    async def close(self) -> None:
        """Let what runs end."""
        await self._groups.close()


def _row(command_id: UUID, placing: Placing) -> tuple[Any, ...]:
    order, principal, origin = placing.order, placing.principal, placing.origin
    return (
        *(command_id, placing.session_id, principal.customer_id, order.type, order.kind.value),
        *(orjson.dumps(order.parameters).decode(), order.digest, order.priority, order.timeout_ms, order.deliveries),
        *(order.expires_at, principal.actor.id, principal.actor.type.value, order.reason, placing.now),
        *(origin.request_id, origin.ip, origin.user_agent),
    )
