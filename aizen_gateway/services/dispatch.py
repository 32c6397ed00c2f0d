"""After the commit: makes Redis agree with what changed and announces it; the relay does it for processes that died.

Everything is idempotent: the queue entry by command id, an event by the version of its subject.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from inspect import iscoroutine
from typing import Any
from uuid import UUID

import structlog

from ..domain.errors import Unavailable
from ..domain.lifecycle import HELD, is_final
from ..domain.records import Command, Device, Session
from ..domain.values import CommandStatus
from ..metrics import Metrics
from ..storage import queries
from ..storage.device_sessions import DeviceSessions
from ..storage.events import EventStream
from ..storage.postgres import Change, Database
from ..storage.queue import Queue
from ..storage.rows import command_of, device_of, session_of
from . import announcements

_OUTBOX = queries.load("outbox")
_COMMANDS = queries.load("commands")
_SESSIONS = queries.load("sessions")
_DEVICES = queries.load("devices")

# A process has this long to dispatch what it committed before the relay does it: longer than any call to Redis takes.
_LEFT_AFTER_MS = 5_000
_RELAY_BATCH = 200
_REVOKED_AT_ONCE = 500
_MOST_DONE = 10_000
# Changes of a device after which its sessions and sockets must end.
ENDING = frozenset({"registered", "suspended", "rotated", "deleted"})

Fetch = Callable[..., Awaitable[Sequence[Any]]]

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Telling:
    """What Redis is being told of one change: `first`, then its index entry, `then` the rest."""

    first: list[Awaitable[Any]]
    command_id: UUID | None = None
    indexed: Awaitable[str | None] | None = None
    then: list[Awaitable[Any]] = field(default_factory=list)

    async def done(self) -> dict[UUID, UUID | None]:
        """Wait for all of it; return what follows a command that ended. Raises `Unavailable`."""
        failure: Unavailable | None = None
        following: dict[UUID, UUID | None] = {}
        for step in self._steps:
            try:
                answer = await step
            except Unavailable as error:
                failure = error
            else:
                if step is self.indexed and self.command_id is not None:
                    following[self.command_id] = UUID(answer) if isinstance(answer, str) and answer else None
        if failure is not None:
            raise failure
        return following

    @property
    def _steps(self) -> Iterator[Awaitable[Any]]:
        yield from self.first
        if self.indexed is not None:
            yield self.indexed
        yield from self.then

    def drop(self) -> None:
        """Wait for nothing more."""
        for step in self._steps:
            if iscoroutine(step):
                step.close()


async def _nothing() -> None:
    """What waits for a person has no entry."""


class Dispatcher:
    """Owns what was dispatched and must leave the outbox."""

    def __init__(
        self, database: Database, queue: Queue, events: EventStream, sessions: DeviceSessions, metrics: Metrics
    ) -> None:
        self._database = database
        self._queue = queue
        self._events = events
        self._sessions = sessions
        self._metrics = metrics
        self._done: list[int] = []

    async def dispatch(self, changes: Sequence[Change]) -> dict[UUID, UUID | None]:
        """Tell Redis; return, for each command that ended, the next claimable one of its device.

        Never raises for a Redis that is away: what is accepted is durable, and the relay tells Redis later.
        """
        following: dict[UUID, UUID | None] = {}
        for change in changes:
            # Before the first of them can fail: the relay does not count.
            if isinstance(change.record, Command) and is_final(change.record.status):
                self._metrics.ended.labels(change.record.status.value).inc()
        # All that can be is sent before the first answer is waited for; Redis does it in this order.
        told = [(change, self._tell(change)) for change in changes]
        try:
            for change, telling in told:
                try:
                    following |= await telling.done()
                except Unavailable:
                    self._metrics.left_to_relay.inc()
                    _log.warning("left to the relay", subject=change.subject, change=change.change)
                else:
                    if len(self._done) < _MOST_DONE:
                        self._done.append(change.version)
        finally:
            # A caller that gave up leaves the rest to the relay.
            for _, telling in told:
                telling.drop()
        return following

    def _tell(self, change: Change) -> _Telling:
        """Begin to tell Redis of a change."""
        record = change.record
        if isinstance(record, Device):
            return _Telling([self._tell_of_device(change, record)])
        # The event goes first: a command is announced before anybody can claim it.
        telling = _Telling([*self._announce(change)])
        if isinstance(record, Command):
            telling.command_id, telling.indexed = record.id, self._index(record)
            if (notice := announcements.stop_notice(record, change)) is not None:
                telling.then.append(self._queue.tell_canceled(record.device_id, notice))
        return telling

    async def _tell_of_device(self, change: Change, device: Device) -> None:
        if change.change in ENDING:
            await self._revoke(device, change.change)
        for published in self._announce(change):
            await published
        if change.change == "deleted":
            await self._sessions.forget(device.id, device.uid, device.credential_epoch)

    async def _revoke(self, device: Device, why: str) -> None:
        offline = why in ("suspended", "deleted")
        await self._sessions.revoke(device.id, device.credential_epoch, why, offline=offline)

    def _announce(self, change: Change) -> Iterator[Awaitable[str]]:
        for told in announcements.of(change):
            customer_id = change.record.customer_id
            yield self._events.publish(customer_id, told.subject, change.version, told.rooms, told.event)

    def _index(self, command: Command) -> Awaitable[str | None]:
        """Make the queue's entry of `command` what the command is; for an ended one, the id of what follows it."""
        if command.status is CommandStatus.QUEUED:
            return self._queue.enqueue(command)
        if is_final(command.status):
            return self._queue.settle(command.device_id, command.id)
        if command.status in HELD:
            return self._queue.hold(command)
        return _nothing()

    async def index(self, commands: Sequence[Command]) -> None:
        """Make the index say of commands what the truth says, each device's in this order, without announcing them.

        Raises `Unavailable`; then some are there.
        """
        await self._index_all(commands)
        await self._check(commands, self._database.fetch)

    async def _index_all(self, commands: Iterable[Command]) -> None:
        of_device: dict[str, list[Command]] = {}
        for command in commands:
            of_device.setdefault(command.device_id, []).append(command)
        # All have ended when this does: none tells later what has become old by then.
        for outcome in await asyncio.gather(*map(self._index_in_order, of_device.values()), return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def _index_in_order(self, commands: Sequence[Command]) -> None:
        for command in commands:
            await self._index(command)

    async def _check(self, told: Sequence[Command], fetch: Fetch) -> None:
        """What changed while it was told has been told already by whoever changed it, and was undone by that."""
        while told:
            now = map(command_of, await fetch(_COMMANDS["read_commands"], [command.id for command in told]))
            then = {command.id: command for command in told}
            told = [command for command in now if command != then[command.id]]
            await self._index_all(told)

    async def not_indexed(self, commands: Sequence[Command]) -> list[UUID]:
        """Those of `commands` that the index does not know, or not for what they are. Raises `Unavailable`."""
        known = await asyncio.gather(*map(self._queue.knows, commands))
        return [command.id for command, found in zip(commands, known, strict=True) if not found]

    async def revoke_again(self, since: datetime) -> int:
        """End once more what was signed in with credentials that became void since then; return of how many changes.

        Where Redis knows of it nothing happens. Raises `Unavailable`.
        """
        count, last = 0, (since, 0)
        while rows := await self._database.fetch(_DEVICES["credentials_voided"], *last, _REVOKED_AT_ONCE):
            for row in rows:
                device, gone = device_of(row), row["deleted_at"] is not None
                why = "deleted" if gone else "suspended" if device.suspended_at else "rotated"
                await self._revoke(device, why)
            count += len(rows)
            last = rows[-1]["voided_at"], rows[-1]["audit_id"]
        return count

    async def clear_done(self) -> None:
        """Delete the outbox rows that were dispatched. Raises `Unavailable`; then they are tried again."""
        done, self._done = self._done, []
        if done:
            try:
                await self._database.execute(_OUTBOX["delete_outbox"], done)
            except BaseException:
                self._done = (done + self._done)[:_MOST_DONE]
                raise

    async def relay(self) -> int:
        """Dispatch what other processes left behind; return how many rows. Raises `Unavailable`."""
        await self.clear_done()
        async with self._database.unit() as connection:
            rows = await connection.fetch(_OUTBOX["left_in_outbox"], _LEFT_AFTER_MS, _RELAY_BATCH)
            for row in rows:
                record = await self._read(connection, row["subject"], row["subject_id"])
                if record is not None:
                    change = Change(row["subject"], record, row["change"], row["request_id"], row["id"])
                    telling = self._tell(change)
                    try:
                        await telling.done()
                    finally:
                        telling.drop()
                    if isinstance(record, Command):
                        await self._check([record], connection.fetch)
            await connection.execute(_OUTBOX["delete_outbox"], [row["id"] for row in rows])
        return len(rows)

    @staticmethod
    async def _read(connection: object, subject: str, subject_id: UUID) -> Command | Session | Device | None:
        fetchrow = connection.fetchrow  # type: ignore[attr-defined]
        if subject == "command":
            row = await fetchrow(_COMMANDS["read_command"], subject_id)
            return command_of(row) if row else None
        if subject == "session":
            row = await fetchrow(_SESSIONS["read_session_by_id"], subject_id)
            return session_of(row) if row else None
        row = await fetchrow(_DEVICES["read_device_by_uid"], subject_id)
        return device_of(row) if row else None

    async def run(self) -> None:
        """Clear and relay for ever; owned by the application."""
        while True:
            try:
                while await self.relay() == _RELAY_BATCH:
                    pass
            except Unavailable as error:
                _log.warning("relay waits", reason=error.message)
            await asyncio.sleep(0.5)
