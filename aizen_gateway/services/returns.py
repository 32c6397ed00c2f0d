"""Claims are handed back: by their device, or because nobody has them (contract section 3)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from uuid import UUID

import structlog

from ..domain.clock import from_ms
from ..domain.errors import GatewayError, Unavailable
from ..domain.lifecycle import moved
from ..domain.reporting import require_lease
from ..domain.values import CommandStatus, DeviceCaller, Origin
from ..storage.postgres import Database
from ..storage.queue import Queue
from .dispatch import Dispatcher
from .transitions import lock_command_of_device, save_command

# Seconds: for so long a claim that nobody has is tried to be handed back, with so much in between at most.
_TRY_FOR, _BETWEEN = 60.0, 2.0
# So many callers' claims are tried at a time; one more stays leased until its lease ends.
_MOST = 1_000
# Seconds in which what is under way may still end when the gateway does.
_LAST = 2.0

_log = structlog.get_logger(__name__)


class Returns:
    """Hands claims back without counting a delivery. Owns what is tried in the background."""

    def __init__(self, database: Database, queue: Queue, dispatcher: Dispatcher) -> None:
        self._database = database
        self._queue = queue
        self._dispatcher = dispatcher
        self._trying: set[asyncio.Task[None]] = set()

    async def hand_back(
        self, caller: DeviceCaller, command_id: UUID, claim_token: str, now: datetime, origin: Origin
    ) -> None:
        """End a claim; one that was to stop is canceled by that.

        Raises `InvalidClaimToken`, `ClaimExpired`, `CommandNotFound`, `CommandAlreadyCompleted`, `CommandCanceled`,
        `Unavailable`.
        """
        async with self._database.transaction(now, origin) as transaction:
            command = await lock_command_of_device(transaction, caller, command_id)
            require_lease(command, claim_token, now)
            if command.status is CommandStatus.CANCEL_REQUESTED:
                after = moved(command, CommandStatus.CANCELED, completed_at=now)
                await save_command(transaction, after, "command.canceled", caller.actor, {"released": True})
            else:
                after = moved(
                    command,
                    CommandStatus.QUEUED,
                    attempt=command.attempt - 1,
                    claim_token=None,
                    claimed_at=None,
                    visible_until=None,
                    deadline_at=None,
                )
                await save_command(transaction, after, "command.released", caller.actor)
        await self._dispatcher.dispatch(transaction.changes)

    async def hand_back_now(self, caller: DeviceCaller, command_id: UUID, claim_token: str, origin: Origin) -> None:
        """As `hand_back`, at the present moment."""
        await self.hand_back(caller, command_id, claim_token, from_ms(await self._queue.now_ms()), origin)

    def hand_back_soon(
        self,
        caller: DeviceCaller,
        claims: Mapping[UUID, str],
        origin: Origin,
        *,
        after: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Have claims handed back that nobody has, or that may never have been: commands and their claim tokens.

        Begun when `after` has ended. What is not there to be handed back is left as it is.
        """
        if len(self._trying) >= _MOST:
            _log.warning("claims that nobody has stay leased", commands=len(claims))
            return
        task = asyncio.create_task(self._try(caller, dict(claims), origin, after), name="hand-back")
        self._trying.add(task)
        task.add_done_callback(self._trying.discard)

    async def _try(
        self, caller: DeviceCaller, left: dict[UUID, str], origin: Origin, after: Callable[[], Awaitable[None]] | None
    ) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _TRY_FOR
        if after is not None:
            await after()
        while left:
            try:
                command_id = next(iter(left))
                await self.hand_back_now(caller, command_id, left[command_id], origin)
            except Unavailable as error:
                if loop.time() >= until:
                    _log.warning("claims that nobody has stay leased", commands=len(left), reason=error.message)
                    return
                await asyncio.sleep(random.uniform(0, _BETWEEN))
                continue
            except GatewayError as error:
                _log.debug("nothing to hand back", command_id=str(command_id), error_code=error.code)
            del left[command_id]

    async def close(self) -> None:
        """Let what runs end, for a moment."""
        if self._trying:
            _, late = await asyncio.wait(self._trying, timeout=_LAST)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
