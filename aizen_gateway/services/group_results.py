"""Results of several devices, taken in one transaction (contract section 3, promises 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from ..domain.clock import from_ms
from ..domain.errors import CommandNotFound, GatewayError
from ..domain.records import Command
from ..domain.reporting import Report, Verdict, take_result
from ..domain.values import DeviceCaller, Origin
from ..storage import queries
from ..storage.groups import Groups
from ..storage.postgres import Change, Connection, Database, columns
from ..storage.rows import command_of

_SQL = queries.load("commands")
_LOCK = _SQL["lock_commands"]
# What somebody else holds just now is left to a transaction of its own, so that one device never waits for another's.
_LOCK_AT_HAND = queries.at_hand(_LOCK)


@dataclass(frozen=True, slots=True)
class Reported:
    """One result as a device sent it."""

    caller: DeviceCaller
    command_id: UUID
    claim_token: str
    report: Report
    origin: Origin

    @property
    def now(self) -> datetime:
        return from_ms(self.caller.now_ms)


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of it. `before` is the command as it was; `change` is None for a repeat."""

    before: Command
    verdict: Verdict
    change: Change | None


class GroupResults:
    """Writes results to the truth."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups: Groups[Reported, Taken | GatewayError] = Groups(self._take_together)

    async def take(self, reported: Reported) -> Taken:
        """Take a result. Raises as `take_result`, `CommandNotFound`, and `Unavailable`."""
        taken = await self._groups.do(reported)
        if taken is None:
            (taken,) = await self._take(_LOCK, [reported])
        if taken is None:
            raise CommandNotFound
        if isinstance(taken, GatewayError):
            raise taken
        return taken

    async def _take_together(self, group: Sequence[Reported]) -> Sequence[Taken | GatewayError | None]:
        return await self._take(_LOCK_AT_HAND, group)

    async def _take(self, lock: str, group: Sequence[Reported]) -> Sequence[Taken | GatewayError | None]:
        async with self._database.unit() as connection:
            rows = await connection.fetch(lock, [one.command_id for one in group])
            # A command of another device, or of another life of this one, is none.
            commands = {(row["id"], row["device_uid"]): command_of(row) for row in rows}
            taken: list[Taken | GatewayError | None] = []
            for one in group:
                # Of several results of one command the others are taken after the first, each alone.
                command = commands.pop((one.command_id, one.caller.uid), None)
                taken.append(None if command is None else _judged(one, command))
            versions = await _save(connection, group, taken)
        return [_announced(one, result, versions) for one, result in zip(group, taken, strict=True)]

    async def close(self) -> None:
        """Let what runs end."""
        await self._groups.close()


def _judged(one: Reported, command: Command) -> Taken | GatewayError:
    try:
        return Taken(command, take_result(command, one.claim_token, one.report, one.now), None)
    except GatewayError as error:
        return error


async def _save(
    connection: Connection, group: Sequence[Reported], taken: Sequence[Taken | GatewayError | None]
) -> dict[UUID, int]:
    """Write what is new; return the outbox row of each command."""
    rows: list[tuple[Any, ...]] = []
    for one, result in zip(group, taken, strict=True):
        if isinstance(result, Taken) and (after := result.verdict.after) is not None:
            rows.append(
                (
                    *(after.id, after.status.value, after.completed_at, orjson.dumps(after.result).decode()),
                    *(after.result_digest, one.caller.device_id),
                    *(one.origin.request_id, one.origin.ip, one.origin.user_agent),
                    _audit_details(one.report, result.verdict),
                )
            )
    if not rows:
        return {}
    return {row["id"]: row["version"] for row in await connection.fetch(_SQL["save_results"], *columns(rows))}


def _announced(
    one: Reported, result: Taken | GatewayError | None, versions: dict[UUID, int]
) -> Taken | GatewayError | None:
    if not isinstance(result, Taken) or (after := result.verdict.after) is None:
        return result
    change = Change("command", after, "updated", one.origin.request_id, versions[after.id])
    return Taken(result.before, result.verdict, change)


def _audit_details(report: Report, verdict: Verdict) -> dict[str, Any]:
    """What the audit record of a result says."""
    return {"status": report.status.value, "late": verdict.late, "duration": report.duration}
