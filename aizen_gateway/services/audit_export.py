"""The audit log as JSON lines, for archives and for tools of others (contract section 4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

from ..domain.views import audit_view
from ..storage import queries
from ..storage.postgres import Database
from ..storage.rows import audit_of

_SQL = queries.load("retention")
_PAGE = 1_000


async def export(
    database: Database, customer_id: UUID | None, since: datetime | None, until: datetime | None
) -> AsyncIterator[dict[str, Any]]:
    """Audit records in order, of one customer or of all; `since` inclusive, `until` exclusive. Raises `Unavailable`."""
    last = 0
    while rows := await database.fetch(_SQL["export_audit"], last, customer_id, since, until, _PAGE):
        for row in rows:
            record = audit_view(audit_of(row)) | {"customerId": str(row["customer_id"])}
            for name, column in (("sessionId", "session_id"), ("commandId", "command_id")):
                if row[column] is not None:
                    record[name] = str(row[column])
            yield record
        last = rows[-1]["id"]
