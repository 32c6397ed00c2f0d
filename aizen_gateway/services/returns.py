"""Claims are handed back: by their device, or because nobody has them (contract section 3)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import structlog

from ..domain.clock import from_ms
from ..domain.errors import GatewayError, InvalidClaimToken, Unavailable
from ..domain.lifecycle import moved
from ..domain.records import Command
from ..domain.reporting import require_lease
from ..domain.values import GATEWAY, Actor, CommandStatus, DeviceCaller, Origin
from ..realtime.tasks import end
from ..storage.postgres import Database
from ..storage.queue import Queue
from .dispatch import Dispatcher
from .transitions import lock_command_of_device, save_command

# Seconds. At once or not at all: a device that has such a claim after all may be at work by and by.
_TRY_FOR = 5.0
_BETWEEN = 0.25
# So many are handed back at a time, and so many wait at most; one more stays leased until its lease ends.
_AT_ONCE = 4
_MOST = 100_000
# Seconds in which what is under way may still end when the gateway does.
_LAST = 2.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """A claim that nobody has, or that may never have been; `visible_until` is when its lease was to end."""

    caller: DeviceCaller
    command_id: UUID
    claim_token: str
    visible_until: datetime | None
    origin: Origin

    @classmethod
    def of(cls, caller: DeviceCaller, command: Command, origin: Origin) -> Lost:
        """The claim of a command as it was handed out."""
        return cls(caller, command.id, command.claim_token or "", command.visible_until, origin)


class _GivenUp(NamedTuple):
    """What is to be handed back when `after` has ended, `until` a moment of the loop's clock or not at all."""

    claim: Lost
    after: Callable[[], Awaitable[None]] | None
    until: float


class Returns:
    """Hands claims back without counting a delivery. Owns what is handed back in the background."""

    def __init__(self, database: Database, queue: Queue, dispatcher: Dispatcher) -> None:
        self._database = database
        self._queue = queue
        self._dispatcher = dispatcher
        self._waiting: deque[_GivenUp] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._closed = False

    async def release(
        self, caller: DeviceCaller, command_id: UUID, claim_token: str, now: datetime, origin: Origin
    ) -> None:
        """A device hands a claim back; one that was to stop is canceled by that.

        Raises `InvalidClaimToken`, `ClaimExpired`, `CommandNotFound`, `CommandAlreadyCompleted`, `CommandCanceled`,
        `Unavailable`.
        """
        await self._hand_back(Lost(caller, command_id, claim_token, None, origin), caller.actor, now)

    async def _hand_back(self, claim: Lost, actor: Actor, now: datetime) -> None:
        async with self._database.transaction(now, claim.origin) as transaction:
            command = await lock_command_of_device(transaction, claim.caller, claim.command_id)
            require_lease(command, claim.claim_token, now)
            if claim.visible_until is not None and command.visible_until != claim.visible_until:
                # Its device has extended it since: somebody has it.
                raise InvalidClaimToken
            if command.status is CommandStatus.CANCEL_REQUESTED:
                after = moved(command, CommandStatus.CANCELED, completed_at=now)
                await save_command(transaction, after, "command.canceled", actor, {"released": True}, change="stopped")
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
                await save_command(transaction, after, "command.released", actor)
        await self._dispatcher.dispatch(transaction.changes)

    def give_up(self, claims: Sequence[Lost], after: Callable[[], Awaitable[None]] | None = None) -> None:
        """Have claims handed back, each when `after` has ended. What is not there is left as it is."""
        if self._closed or len(self._waiting) + len(claims) > _MOST:
            _log.warning("claims that nobody has stay leased", commands=len(claims))
            return
        until = asyncio.get_running_loop().time() + _TRY_FOR
        for claim in claims:
            self._waiting.append(_GivenUp(claim, after, until))
            self._begin_working()

    def _begin_working(self) -> None:
        if len(self._workers) < _AT_ONCE:
            # In a context of its own: it hands back whatever comes, and not only what was given up just now.
            worker = asyncio.create_task(self._work(), name="hand-back", context=Context())
            self._workers.add(worker)
            worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if self._waiting and not worker.cancelled():
            self._begin_working()

    async def _work(self) -> None:
        while self._waiting:
            claim, after, until = self._waiting.popleft()
            try:
                if after is not None:
                    await after()
                await self._try(claim, until)
            except GatewayError as error:
                away = isinstance(error, Unavailable)
                tell = _log.warning if away else _log.debug
                said = "claim that nobody has stays leased" if away else "nothing to hand back"
                tell(said, command_id=str(claim.command_id), error_code=error.code, request_id=claim.origin.request_id)
            except Exception:
                _log.exception("hand back failed", command_id=str(claim.command_id), request_id=claim.origin.request_id)

    async def _try(self, claim: Lost, until: float) -> None:
        """Hand one back as soon as that is possible, `until` a moment of the loop's clock. Raises as `release` does."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            try:
                await self._hand_back(claim, GATEWAY, from_ms(await self._queue.now_ms()))
            except Unavailable:
                if self._closed:
                    raise
                await asyncio.sleep(_BETWEEN)
            else:
                return
        raise Unavailable("It took too long.")

    async def close(self) -> None:
        """Let what runs or waits end, for a moment; nothing is begun any more."""
        self._closed = True
        if self._workers:
            await asyncio.wait(tuple(self._workers), timeout=_LAST)
            await end(*self._workers)
