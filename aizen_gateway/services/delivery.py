"""Commands as devices take them: claimed, extended, reported, handed back, read (contract section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from ..domain import views
from ..domain.clock import from_ms, rfc3339
from ..domain.errors import CommandNotFound, Unavailable
from ..domain.lifecycle import after_ms, due_at
from ..domain.records import Command
from ..domain.reporting import Report, require_lease
from ..domain.values import CommandStatus, DeviceCaller, Origin, ResultStatus
from ..metrics import Metrics
from ..realtime.bus import Bus
from ..storage import queries
from ..storage.device_sessions import DeviceSessions
from ..storage.postgres import Database
from ..storage.queue import Queue
from ..storage.rows import command_of
from .claiming import Claim, Claiming
from .dispatch import Dispatcher
from .group_results import GroupResults, Reported
from .returns import Returns
from .transitions import lock_command_of_device

_SQL = queries.load("commands")
# Redis forgets a lease at its end, not before: look this many seconds later.
_AFTER_LEASE = 0.02

_log = structlog.get_logger(__name__)


class Delivery:
    """The device's side of the queue."""

    def __init__(
        self,
        database: Database,
        queue: Queue,
        sessions: DeviceSessions,
        dispatcher: Dispatcher,
        bus: Bus,
        claiming: Claiming,
        returns: Returns,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._queue = queue
        self._sessions = sessions
        self._dispatcher = dispatcher
        self._bus = bus
        self._claiming = claiming
        self._returns = returns
        self._metrics = metrics
        self._results = GroupResults(database)
        self._draining = False

    async def close(self) -> None:
        """Let what runs end."""
        await self._results.close()

    def drain(self) -> None:
        """Have the long polls that wait answer now, and let no new one wait."""
        self._draining = True
        self._bus.wake_all()

    async def claim(
        self,
        token: str | None,
        *,
        limit: int,
        visibility_timeout: int,
        wait_ms: int,
        connected: Callable[[], bool],
        origin: Origin,
        counted: bool = True,
    ) -> dict[str, Any]:
        """Lease up to `limit` commands for `visibility_timeout` ms; wait up to `wait_ms` ms for the first.

        `connected` tells whether the client is still there: nothing is claimed for one that has gone. An empty claim
        that does not wait is one round trip to Redis and no SQL. Raises `Unauthenticated`, `RateLimited`,
        `Unavailable`.
        """
        claim = self._claiming.begin(token, limit, visibility_timeout, origin)
        commands = await claim.attempt(counted=counted)
        if not commands and wait_ms > 0 and not self._draining:
            commands = await self._wait(claim, wait_ms / 1000, connected)
        if commands and not connected():
            self._claiming.give_up(claim.caller, commands, origin)
            commands = []
        return {"commands": [views.claimed_view(command, claim.now) for command in commands]}

    async def _wait(self, claim: Claim, seconds: float, connected: Callable[[], bool]) -> Sequence[Command]:
        """Wait for a hint, or for a lease to run out, and look again; a lost hint costs one look at the end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        async with self._bus.listen(self._sessions.ticket(claim.token).keys.channel) as listener:
            while True:
                commands = await claim.attempt(counted=False)
                left = until - loop.time()
                if commands or left <= 0 or self._draining or not connected():
                    return commands
                lease_ends = claim.next_lease_end_s
                await listener.wait(left if lease_ends is None else min(left, lease_ends + _AFTER_LEASE))
                if not connected():
                    return []

    async def extend(
        self, caller: DeviceCaller, command_id: UUID, *, claim_token: str, extension_ms: int, origin: Origin
    ) -> dict[str, Any]:
        """Make the lease end `extension_ms` from now.

        Raises `InvalidClaimToken`, `ClaimExpired`, `CommandNotFound`, `CommandAlreadyCompleted`, `CommandCanceled`.
        """
        now = from_ms(caller.now_ms)
        async with self._database.transaction(now, origin) as transaction:
            command = await lock_command_of_device(transaction, caller, command_id)
            require_lease(command, claim_token, now)
            before = command.visible_until
            command = replace(command, visible_until=after_ms(now, extension_ms))
            command = replace(command, due_at=due_at(command))
            assert command.visible_until is not None
            await transaction.execute(_SQL["extend_lease"], command.id, command.visible_until, command.due_at)
        try:
            await self._queue.hold(command)
            if before is not None and command.visible_until < before:
                # Who waits for the lease to end waits for a later moment.
                await self._queue.wake(command.device_id)
        except Unavailable as error:
            # The truth holds the lease: an index that did not hear of it is mended at the next claim.
            _log.warning("lease is indexed later", reason=error.message, command_id=str(command.id))
        answer: dict[str, Any] = {"success": True, "visibleUntil": rfc3339(command.visible_until)}
        if command.status is CommandStatus.CANCEL_REQUESTED:
            answer["cancelRequested"] = True
        return answer

    async def report(
        self,
        caller: DeviceCaller,
        command_id: UUID,
        *,
        claim_token: str,
        status: ResultStatus,
        output: str | None,
        error: str | None,
        result: dict[str, Any] | None,
        executed_at: datetime,
        duration: float,
        origin: Origin,
    ) -> dict[str, Any]:
        """Take a result; once this returns it is durable. The same result again changes nothing.

        Raises as `extend` does, but never `ClaimExpired`: a late result of the latest claim counts.
        """
        report = Report(status, output, error, result, executed_at, duration)
        reported = Reported(caller, command_id, claim_token, report, origin)
        taken = await self._results.take(reported)
        after = taken.verdict.after
        following: dict[UUID, UUID | None] = {}
        if taken.change is not None:
            self._metrics.result_seconds.observe((reported.now - taken.before.created_at).total_seconds())
            following = await self._dispatcher.dispatch([taken.change])
        answer: dict[str, Any] = {
            "success": True,
            "status": (after or taken.before).status.value,
            "duplicate": after is None,
            "late": taken.verdict.late,
        }
        if following.get(command_id) is not None:
            answer["nextCommand"] = {"id": str(following[command_id])}
        return answer

    async def release(
        self, caller: DeviceCaller, command_id: UUID, *, claim_token: str, origin: Origin
    ) -> dict[str, Any]:
        """Hand a command back unexecuted, without counting a delivery. Raises as `extend` does."""
        await self._returns.release(caller, command_id, claim_token, from_ms(caller.now_ms), origin)
        return {"success": True}

    async def of_device(self, caller: DeviceCaller, ids: Sequence[UUID]) -> Sequence[Command]:
        """Those of `ids` that are commands of the device, as they are now. Raises `Unavailable`."""
        rows = await self._database.fetch(_SQL["read_commands"], list(ids))
        return [command_of(row) for row in rows if row["device_uid"] == caller.uid]

    async def read(self, caller: DeviceCaller, command_id: UUID) -> dict[str, Any]:
        """A command as its device may see it; reading never changes a claim. Raises `CommandNotFound`."""
        row = await self._database.fetchrow(_SQL["read_command_of_device"], command_id, caller.uid)
        if row is None:
            raise CommandNotFound
        return {"command": views.device_command_view(command_of(row), from_ms(caller.now_ms))}
