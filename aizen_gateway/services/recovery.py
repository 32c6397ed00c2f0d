"""Losing Redis loses no command: the index is put back from the truth when it is gone, and audited now and then.

Each node of a cluster has a mark of its own, since one of them may lose what it had without the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from uuid import uuid4

import structlog

from ..domain.clock import from_ms
from ..domain.errors import Unavailable
from ..domain.lifecycle import HELD
from ..domain.records import Command
from ..domain.values import CommandStatus
from ..storage import keys, queries
from ..storage.postgres import Database
from ..storage.redis_store import RedisStore
from ..storage.rows import command_of
from .attendance import Attendance
from .dispatch import Dispatcher

_COMMANDS = queries.load("commands")
_PAGE = 500
# Less at a time while everything works, so that no caller waits for it.
_AUDIT_PAGE = 100
_LIVE = HELD | {CommandStatus.QUEUED}
_LOOK_EVERY_S = 1.0
_AUDIT_EVERY_S = 60.0
# The mark is renewed at every look; it ends by itself where no gateway runs any more, and is then built anew.
_EPOCH_TTL_MS = 86_400_000
_AUDIT_LOCK_MS = 50_000
# The more there is to compare, the longer all rest after it: what waits must not cost much just for waiting.
_REST = 50
_LONGEST_REST_MS = 600_000
# Slots that move one after another are audited together.
_MOVES_EVERY_S = 5.0
# A replica that takes over may have missed what the lost server was told last: far more than it can be behind.
_REVOKED_WITHIN_MS = 600_000

_log = structlog.get_logger(__name__)


class Recovery:
    """Notices an emptied Redis by a missing epoch key, and fills the index again."""

    def __init__(self, database: Database, store: RedisStore, dispatcher: Dispatcher, attendance: Attendance) -> None:
        self._database = database
        self._store = store
        self._dispatcher = dispatcher
        self._attendance = attendance
        self._audited = time.monotonic()
        self._servers = store.servers

    async def look(self) -> bool:
        """Fill the index when Redis, or one node of it, is empty; return whether it was. Raises `Unavailable`."""
        empty = [tag for tag in await self._store.tags(keys.INDEX) if not await self._is_whole(tag)]
        if not empty:
            return False
        filling = str(uuid4())
        for tag in empty:
            await self._store.call("SET", keys.building(tag), filling, "PX", 600_000)
        count = await self.fill()
        await self._attendance.watch_present(await self._store.time_ms())
        # Emptied again meanwhile, or another instance began later: the next look decides.
        marks = [[keys.epoch(tag), keys.building(tag)] for tag in empty]
        whole = [await self._store.run("set_epoch", mark, [filling, _EPOCH_TTL_MS]) for mark in marks]
        _log.info("queue index filled", commands=count, whole=all(whole))
        return True

    async def _is_whole(self, tag: str) -> bool:
        return await self._store.call("GETEX", keys.epoch(tag), "PX", _EPOCH_TTL_MS) is not None

    async def fill(self) -> int:
        """Make the index agree with every live command, page by page. Raises `Unavailable`.

        The most urgent come first: who claims meanwhile gets of its own what it would have got from the whole.
        """
        count = 0
        async for page in self._live(_PAGE):
            await self._dispatcher.index(page)
            count += len(page)
        return count

    async def put_back(self) -> int:
        """Index the live commands that the index does not know, and those that are queued but count there as claimed.

        Return how many. Raises `Unavailable`.

        What was read of a command may be old by the time it is looked for, so those that are missed are read again:
        a page put into the index as it was read would offer commands that have been claimed or ended since.
        """
        count = 0
        async for page in self._live(_AUDIT_PAGE):
            missing = await self._dispatcher.not_indexed(page)
            rows = await self._database.fetch(_COMMANDS["read_commands"], missing) if missing else []
            live = [command for command in map(command_of, rows) if command.status in _LIVE]
            await self._dispatcher.index(sorted(live, key=_urgency))
            count += len(live)
        return count

    async def _live(self, size: int) -> AsyncIterator[Sequence[Command]]:
        """Page by page the commands that must be in the index, the most urgent first."""
        last = (0, 0)
        while rows := await self._database.fetch(_COMMANDS["live_commands"], *last, size):
            yield (page := [command_of(row) for row in rows])
            last = _urgency(page[-1])

    async def audit(self) -> None:
        """Put back what a failover may have dropped: soon after one is noticed, and now and then, one instance for all.

        Now and then is a minute, and at most ten where so much waits that to compare it takes more than a second.
        Raises `Unavailable`.
        """
        since, servers = time.monotonic() - self._audited, self._store.servers
        moved = servers != self._servers and since >= _MOVES_EVERY_S
        if not moved and since < _AUDIT_EVERY_S:
            return
        if moved:
            now_ms = await self._store.time_ms()
            await self._dispatcher.revoke_again(from_ms(now_ms - _REVOKED_WITHIN_MS))
            await self.put_back()
        elif await self._store.call("SET", keys.AUDIT_LOCK, "1", "NX", "PX", _AUDIT_LOCK_MS):
            began = time.monotonic()
            try:
                await self.put_back()
            except BaseException:
                # Whoever looks next tries again.
                with suppress(Unavailable):
                    await self._store.call("DEL", keys.AUDIT_LOCK)
                raise
            rest_ms = int((time.monotonic() - began) * 1000 * _REST)
            pause_ms = max(_AUDIT_LOCK_MS, min(rest_ms, _LONGEST_REST_MS))
            await self._store.call("SET", keys.AUDIT_LOCK, "1", "PX", pause_ms)
        self._audited, self._servers = time.monotonic(), servers

    async def run(self) -> None:
        """Look for ever; owned by the application."""
        while True:
            try:
                await self.look()
                await self.audit()
            except Unavailable as error:
                _log.warning("recovery waits", reason=error.message)
            await asyncio.sleep(_LOOK_EVERY_S)


def _urgency(command: Command) -> tuple[int, int]:
    """Of two commands of a device, the one that comes first has the lower."""
    return command.priority, command.place or 0
