"""Claims: leased in Redis, confirmed in PostgreSQL. Whatever hands out commands comes through here (section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from ..domain import secrets
from ..domain.clock import from_ms, to_ms
from ..domain.errors import GatewayError, InDoubt, Unavailable
from ..domain.lifecycle import HELD
from ..domain.records import Command
from ..domain.values import CommandStatus, DeviceCaller, Origin
from ..logs import bind_context
from ..metrics import Metrics
from ..storage import queries
from ..storage.postgres import Change, Database
from ..storage.queue import Leased, Queue
from ..storage.rows import command_of
from .dispatch import Dispatcher
from .group_claims import Confirmed, GroupClaims, Wanted
from .heartbeats import Heartbeats
from .returns import Lost, Returns

_SQL = queries.load("commands")
# How often one claim looks again when the index offered what the truth refused; then it answers with what it has.
_LOOKS = 3
# Seconds that a claim which has found something may still take: the leases of what it found run meanwhile.
_MORE_S = 1.0


class Claiming:
    """Takes commands for a device."""

    def __init__(
        self,
        database: Database,
        queue: Queue,
        dispatcher: Dispatcher,
        heartbeats: Heartbeats,
        returns: Returns,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._queue = queue
        self._dispatcher = dispatcher
        self._heartbeats = heartbeats
        self._returns = returns
        self._metrics = metrics
        self._claims = GroupClaims(database)

    def begin(
        self, token: str | None, limit: int, visibility_ms: int, origin: Origin, *, pushed: bool = False
    ) -> Claim:
        """A claim of up to `limit` commands for `visibility_ms` ms, to be attempted; `pushed` when no device asks."""
        return Claim(self, token, limit, visibility_ms, origin, pushed)

    async def lease(
        self, token: str | None, limit: int, visibility_ms: int, *, counted: bool, pushed: bool = False
    ) -> Leased:
        """Check the session and lease in the index; note that the device was in touch, unless `pushed`."""
        leased = await self._queue.lease(token, limit, visibility_ms, counted=counted, pushed=pushed)
        bind_context(device_id=leased.caller.device_id, customer_id=leased.caller.customer_id)
        if not pushed:
            self._heartbeats.seen(leased.caller)
        return leased

    async def take(self, leased: Leased, visibility_ms: int, origin: Origin) -> Sequence[Command]:
        """Confirm what the index leased, announce it, and mend the index where the truth differs.

        Whatever breaks it off, what has been confirmed by then is handed back.
        """
        seed = secrets.new_claim_token()
        tokens = [f"{seed}.{number}" for number in range(len(leased.ids))]
        wanted = Wanted(leased.caller, leased.ids, tokens, visibility_ms, origin)
        try:
            confirmed = await self._claims.confirm(wanted)
        except InDoubt:
            # Not offered to others before that is known: the lease in the index is a short one.
            self._returns.give_up(_claims(wanted))
            raise
        except Unavailable:
            with suppress(Unavailable):
                await self._queue.give_back(leased.caller.device_id, leased.ids)
            raise
        except BaseException:
            self._returns.give_up(_claims(wanted), self._claims.settled)
            raise
        try:
            return await self._taken(wanted, confirmed)
        except BaseException:
            self._returns.give_up(_claims(wanted))
            raise

    async def _taken(self, wanted: Wanted, confirmed: Confirmed) -> Sequence[Command]:
        """What was confirmed, of all that was offered, is told and counted."""
        rows = confirmed.rows
        commands = [command_of(row) for row in rows]
        self._count(commands, wanted.now)
        refused = set(wanted.ids) - {command.id for command in commands}
        if confirmed.in_doubt:
            self._returns.give_up([claim for claim in _claims(wanted) if claim.command_id in refused])
        await self._dispatcher.dispatch(
            [
                Change("command", command, "claimed", wanted.origin.request_id, row["version"])
                for command, row in zip(commands, rows, strict=True)
            ]
        )
        if refused and not confirmed.in_doubt:
            # What was claimed is handed out all the same; what could not be mended is refused again.
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(_MORE_S if commands else None):
                    await self._mend(wanted.caller, refused)
        return commands

    def give_up(self, caller: DeviceCaller, commands: Sequence[Command], origin: Origin) -> None:
        """Have commands handed back that were claimed and that nobody is there to take."""
        self._returns.give_up([Lost.of(caller, command, origin) for command in commands])

    def _count(self, commands: Sequence[Command], now: datetime) -> None:
        self._metrics.claims.inc(len(commands))
        for command in commands:
            if command.attempt > 1:
                self._metrics.redeliveries.inc()
            else:
                self._metrics.claim_seconds.observe((now - command.created_at).total_seconds())

    async def _mend(self, caller: DeviceCaller, ids: AbstractSet[UUID]) -> None:
        """The index offered commands that the truth refused: make it say what they are."""
        held = await self._mend_once(caller, ids)
        if held:
            # Handed back meanwhile, one would be held here alone, until its lease had ended.
            await self._mend_once(caller, held)

    async def _mend_once(self, caller: DeviceCaller, ids: AbstractSet[UUID]) -> AbstractSet[UUID]:
        """Return the commands that somebody has."""
        now = from_ms(caller.now_ms)
        rows = await self._database.fetch(_SQL["read_commands"], list(ids))
        held: set[UUID] = set()
        for row in rows:
            command = command_of(row)
            if command.status in HELD and command.visible_until is not None and command.visible_until > now:
                await self._queue.hold(command)
                held.add(command.id)
            elif command.status is CommandStatus.QUEUED and command.device_uid == caller.uid and command.claim_by > now:
                # Handed back since, or not confirmed for a reason that has passed: it waits again.
                await self._queue.enqueue(command)
            else:
                # Ended, or about to be by the sweep, which puts back what may still be delivered.
                await self._queue.settle(caller.device_id, command.id)
        for gone in ids - {row["id"] for row in rows}:
            await self._queue.settle(caller.device_id, gone)
        return held

    async def close(self) -> None:
        """Let what runs end."""
        await self._claims.close()


def _claims(wanted: Wanted) -> list[Lost]:
    """What is wanted, as claims that may have been confirmed for nobody."""
    return [
        Lost(wanted.caller, command_id, token, wanted.lease_end, wanted.origin)
        for command_id, token in zip(wanted.ids, wanted.tokens, strict=True)
    ]


class Claim:
    """One device's claim call, which may look several times. `now` and `caller` are those of the last look."""

    def __init__(
        self,
        claiming: Claiming,
        token: str | None,
        limit: int,
        visibility_ms: int,
        origin: Origin,
        pushed: bool,
    ) -> None:
        self._claiming = claiming
        self.token = token
        self._limit = limit
        self._visibility_ms = visibility_ms
        self._origin = origin
        self._pushed = pushed
        self._leased: Leased | None = None

    @property
    def caller(self) -> DeviceCaller:
        assert self._leased is not None
        return self._leased.caller

    @property
    def now(self) -> datetime:
        return from_ms(self.caller.now_ms)

    @property
    def next_lease_end_s(self) -> float | None:
        """Seconds until the first lease of the device runs out, None when nothing is leased."""
        assert self._leased is not None
        ends = self._leased.next_lease_end_ms
        return max(0, ends - to_ms(self.now)) / 1000 if ends else None

    async def attempt(self, *, counted: bool) -> Sequence[Command]:
        """Lease and confirm; look again for as many as the truth refused of what the index offered."""
        found: list[Command] = []
        try:
            if not await self._look(found, counted=counted):
                await self._look_again(found)
        except (GatewayError, TimeoutError):
            # What was confirmed is the device's.
            if not found:
                raise
        except BaseException:
            if found:
                self._claiming.give_up(self.caller, found, self._origin)
            raise
        return found

    async def _look(self, found: list[Command], *, counted: bool) -> bool:
        """Add what is there to `found`; return whether that is all that the index offered."""
        self._leased = leased = await self._claiming.lease(
            self.token, self._limit - len(found), self._visibility_ms, counted=counted, pushed=self._pushed
        )
        if not leased.ids:
            return True
        taken = await self._claiming.take(leased, self._visibility_ms, self._origin)
        found += taken
        return len(taken) == len(leased.ids)

    async def _look_again(self, found: list[Command]) -> None:
        """Look until the index offers nothing that the truth refuses; not for long once something is found."""
        async with asyncio.timeout(None) as limit:
            for _ in range(_LOOKS - 1):
                if found and limit.when() is None:
                    limit.reschedule(asyncio.get_running_loop().time() + _MORE_S)
                if await self._look(found, counted=False):
                    return
