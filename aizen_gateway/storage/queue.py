"""The live command queue in Redis: an index of the truth that says, in one round trip, what a device gets next.

PostgreSQL confirms every claim, so nothing here can make a command run twice; what is lost here is put back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple
from uuid import UUID

from ..domain.clock import to_ms
from ..domain.records import Command
from ..domain.values import CommandStatus, DeviceCaller
from .device_sessions import DeviceSessions, caller_of
from .keys import DeviceKeys
from .redis_store import RedisStore

# Priority in the high bits, place in the low ones: exact in a double up to 2**49 commands.
_PLACES = 2**49
WAKE = "wake"


class Leased(NamedTuple):
    """What one claim took from the index. `next_lease_end_ms` is 0 when nothing is leased; times are Redis's clock."""

    caller: DeviceCaller
    ids: Sequence[UUID]
    next_lease_end_ms: int


class Queue:
    """The pending and leased commands of every device."""

    def __init__(self, store: RedisStore, sessions: DeviceSessions) -> None:
        self._store = store
        self._sessions = sessions

    async def lease(
        self, token: str | None, limit: int, visibility_ms: int, *, counted: bool = True, pushed: bool = False
    ) -> Leased:
        """Check the session and lease up to `limit` commands, most urgent first: one round trip.

        Unless `counted`, the call does not count against the device's limit. With `pushed` the device did not ask, so
        its session does not slide.
        Raises `Unauthenticated`, `RateLimited`, `Unavailable`.
        """
        ticket = self._sessions.ticket(token)
        keys = ticket.keys
        head = ticket.unused if pushed else ticket.args if counted else ticket.uncounted
        answer = await self._store.run("claim", [*keys.entrance, *keys.queue], [*head, limit, visibility_ms])
        return Leased(caller_of(ticket, answer), [UUID(text) for text in answer[6:]], int(answer[5]))

    async def now_ms(self) -> int:
        """The clock of all leases. Raises `Unavailable`."""
        return await self._store.time_ms()

    def enqueue(self, command: Command) -> Awaitable[None]:
        """Put a queued command at its place and wake who waits for it. Idempotent.

        As `hold` and `settle` it is sent at once.
        """
        keys = DeviceKeys.of(command.device_id)
        args = [str(command.id), _record(command), _score(command), keys.channel]
        return self._store.begin("enqueue", keys.queue, args)

    def hold(self, command: Command) -> Awaitable[None]:
        """Make the lease of a claimed command what the truth says it is. Idempotent."""
        assert command.visible_until is not None
        keys = DeviceKeys.of(command.device_id)
        return self._store.begin("hold", keys.queue, [str(command.id), _record(command), to_ms(command.visible_until)])

    async def knows(self, command: Command) -> bool:
        """Whether the index has a command, and one that is queued where it can be claimed. Raises `Unavailable`."""
        args: list[str | int] = [str(command.id), int(command.status is CommandStatus.QUEUED)]
        return bool(await self._store.run("knows", DeviceKeys.of(command.device_id).queue, args))

    async def give_back(self, device_id: str, ids: Sequence[UUID]) -> None:
        """Undo leases that the truth never saw."""
        keys = DeviceKeys.of(device_id)
        await self._store.run("give_back", keys.queue, [keys.channel, *map(str, ids)])

    async def wake(self, device_id: str) -> None:
        """Have whoever waits for the device look again. Raises `Unavailable`."""
        await self._store.call("PUBLISH", DeviceKeys.of(device_id).channel, f"{WAKE} ")

    async def tell_canceled(self, device_id: str, notice: str) -> None:
        """Tell the device's socket, wherever it is, that a command it may have is to stop; `notice` is JSON."""
        await self._store.call("PUBLISH", DeviceKeys.of(device_id).channel, f"canceled {notice}")

    def settle(self, device_id: str, command_id: UUID) -> Awaitable[str]:
        """Leave nothing of an ended command; return the id of the next one that could be claimed, '' for none."""
        keys = DeviceKeys.of(device_id)
        return self._store.begin("settle", keys.queue, [str(command_id), keys.channel])


def _score(command: Command) -> str:
    return str(command.priority * _PLACES + (command.place or 0))


def _record(command: Command) -> str:
    deadline = to_ms(command.deadline_at) if command.deadline_at and command.status != "queued" else 0
    left = command.max_deliveries - command.attempt
    if command.status == "cancel_requested":
        left = 0
    return f"{_score(command)}:{to_ms(command.claim_by)}:{left}:{command.timeout_ms}:{deadline}"
