"""Heartbeats: kept in Redis at once, written behind to PostgreSQL in batches (contract section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import orjson
import structlog

from ..domain.clock import from_ms, rfc3339, rfc3339_ms
from ..domain.errors import Unavailable
from ..domain.values import DeviceCaller, DeviceStatus, HeartbeatStatus, Origin
from ..logs import bind_context
from ..storage import queries
from ..storage.postgres import Database
from ..storage.presence import Presence
from .attendance import Attendance

_SQL = queries.load("devices")
_log = structlog.get_logger(__name__)

# One entry a device; past it the oldest news is dropped, and the next heartbeat brings it again.
_MOST_BEHIND = 50_000
_BATCH = 500
_FLUSH_S = 1.0

SHOWN = {
    HeartbeatStatus.ERROR: DeviceStatus.ERROR,
    HeartbeatStatus.OFFLINE: DeviceStatus.OFFLINE,
}


_News = TypeVar("_News")


class _Written(NamedTuple):
    at_ms: int
    metrics: dict[str, Any] | None
    diagnostics: Any


class Heartbeats:
    """Takes heartbeats. `interval_s` is what devices are told, in seconds."""

    def __init__(self, database: Database, presence: Presence, attendance: Attendance, interval_s: int) -> None:
        self._database = database
        self._presence = presence
        self._attendance = attendance
        self.interval_ms = interval_s * 1000
        self._behind: dict[UUID, _Written] = {}
        self._seen: dict[UUID, int] = {}

    async def beat(
        self,
        token: str | None,
        *,
        status: HeartbeatStatus,
        metrics: dict[str, Any] | None,
        diagnostics: Any,
        timestamp: datetime | None,
        origin: Origin,
        over_socket: bool = False,
    ) -> dict[str, Any]:
        """Take a heartbeat: one round trip to Redis, no SQL unless the presence changed.

        Raises `Unauthenticated`, `RateLimited`, `Unavailable`.
        """
        shown = SHOWN.get(status, DeviceStatus.ONLINE)
        heartbeat = {
            "status": status.value,
            "metrics": metrics,
            "diagnostics": diagnostics,
            "timestamp": rfc3339(timestamp) if timestamp else None,
        }
        beat = await self._presence.beat(token, shown.value, heartbeat, over_socket=over_socket)
        caller = beat.caller
        bind_context(device_id=caller.device_id, customer_id=caller.customer_id)
        if caller.uid in self._behind or len(self._behind) < _MOST_BEHIND:
            self._behind[caller.uid] = _Written(caller.now_ms, metrics, diagnostics)
        if beat.change is not None:
            await self._attendance.change(beat.change, origin)
        return {
            "success": True,
            "timestamp": rfc3339_ms(caller.now_ms),
            "nextHeartbeat": self.interval_ms,
            "pendingCommands": beat.pending,
            "acknowledged": True,
        }

    def seen(self, caller: DeviceCaller) -> None:
        """Note that a device was in touch, to be written behind."""
        if caller.uid in self._seen or len(self._seen) < _MOST_BEHIND:
            self._seen[caller.uid] = caller.now_ms

    async def flush(self) -> None:
        """Write what is behind, in batches. Raises `Unavailable`; what was not written is kept."""
        while self._behind:
            batch = _in_order(self._behind)
            await self._database.execute(
                _SQL["save_heartbeats"],
                list(batch),
                [from_ms(written.at_ms) for written in batch.values()],
                [_json(written.metrics) for written in batch.values()],
                [_json(written.diagnostics) for written in batch.values()],
            )
            for uid, written in batch.items():
                if self._behind.get(uid) is written:
                    del self._behind[uid]
        while self._seen:
            seen = _in_order(self._seen)
            await self._database.execute(_SQL["save_seen"], list(seen), [*map(from_ms, seen.values())])
            for uid, at in seen.items():
                if self._seen.get(uid) == at:
                    del self._seen[uid]

    async def run(self) -> None:
        """Write for ever; owned by the application."""
        while True:
            try:
                await self.flush()
            except Unavailable as error:
                _log.warning("heartbeats wait", reason=error.message)
            await asyncio.sleep(_FLUSH_S)


def _in_order(behind: Mapping[UUID, _News]) -> dict[UUID, _News]:
    """A batch of what is behind, by uid: instances that write of the same devices lock their rows in one order."""
    return dict(sorted(islice(behind.items(), _BATCH), key=itemgetter(0)))


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
