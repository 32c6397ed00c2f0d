"""A transaction that writes its own audit and outbox rows, so that no change can be without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from ..domain.records import Command, Device, Session
from ..domain.values import Actor, Origin
from . import queries
from .pool import Connection

_AUDIT = queries.load("audit")
_OUTBOX = queries.load("outbox")


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is now different and must be told to Redis; `version` is the outbox row's id."""

    subject: str
    record: Command | Session | Device
    change: str
    request_id: str | None
    version: int


@dataclass(slots=True)
class Transaction:
    """One transaction with what must be written beside the change itself: audit records and outbox rows."""

    connection: Connection
    now: datetime
    origin: Origin
    changes: list[Change] = field(default_factory=list)
    _audit: list[tuple[Any, ...]] = field(default_factory=list)
    _announced: dict[tuple[str, UUID], tuple[Command | Session | Device, str]] = field(default_factory=dict)

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        return cast("list[Any]", await self.connection.fetch(sql, *args))

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        return await self.connection.fetchrow(sql, *args)

    async def execute(self, sql: str, *args: Any) -> Any:
        return await self.connection.execute(sql, *args)

    def audit(
        self,
        action: str,
        actor: Actor,
        on: Command | Session | Device,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Add an audit record about `on`, to be written in this transaction."""
        resource, resource_id, session_id, command_id = _named(on)
        origin = self.origin
        self._audit.append(
            (
                self.now,
                on.customer_id,
                action,
                resource,
                resource_id,
                actor.id,
                actor.type.value,
                session_id,
                command_id,
                origin.ip,
                origin.user_agent,
                origin.request_id,
                details or {},
            )
        )

    def announce(self, record: Command | Session | Device, change: str = "updated") -> None:
        """Add an outbox row: after the commit, Redis and the customer's sockets learn the new state of `record`."""
        subject = _named(record)[0]
        key = (subject, record.uid if isinstance(record, Device) else record.id)
        self._announced[key] = (record, change)

    async def finish(self) -> None:
        """Write the audit records and outbox rows; called just before the commit."""
        if self._audit:
            await self.connection.execute(_AUDIT["insert_audit"], *columns(self._audit))
        if not self._announced:
            return
        rows = [(subject, uid, change) for (subject, uid), (_, change) in self._announced.items()]
        ids = await self.connection.fetch(_OUTBOX["insert_outbox"], *columns(rows), self.origin.request_id)
        for row, ((subject, _), (record, change)) in zip(ids, self._announced.items(), strict=True):
            self.changes.append(Change(subject, record, change, self.origin.request_id, row["id"]))


def _named(record: Command | Session | Device) -> tuple[str, str, UUID | None, UUID | None]:
    if isinstance(record, Command):
        return "command", str(record.id), record.session_id, record.id
    if isinstance(record, Session):
        return "session", str(record.id), record.id, None
    return "device", record.id, None, None


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows as the arrays that `unnest` takes, one a column."""
    return [list(column) for column in zip(*rows, strict=True)]
