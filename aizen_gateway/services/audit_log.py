"""The audit log, for owners and admins (contract section 4)."""

from __future__ import annotations

from typing import Any

from ..domain import views
from ..domain.policy import require_administrator
from ..domain.values import Principal
from ..storage import queries
from ..storage.postgres import Database
from ..storage.rows import audit_of
from . import cursors

_SQL = queries.load("audit")


class AuditLog:
    """Who did what."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self, principal: Principal, *, limit: int, cursor: str | None, action: str | None, resource: str | None
    ) -> dict[str, Any]:
        """A page of records, newest first. Raises `Forbidden` for a viewer, `InvalidRequest` for a bad cursor."""
        require_administrator(principal)
        before = cursors.number(cursor)
        rows = await self._database.fetch(
            _SQL["list_audit"], principal.customer_id, before, action, resource, limit + 1
        )
        page = [audit_of(row) for row in rows[:limit]]
        following = cursors.encode(page[-1].id) if len(rows) > limit else None
        return {"records": [views.audit_view(record) for record in page], "nextCursor": following}
