"""The commands that were pushed ahead on a device's socket: which they are, for how long, and what becomes of them.

What counts as pushed agrees with the leases of Redis, which the socket learns of when it opens and when it is in doubt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from ..domain import views
from ..domain.lifecycle import HELD, is_stopped
from ..domain.records import Command
from ..domain.values import DeviceCaller, Origin
from ..realtime.connection import Connection
from ..realtime.frames import frame
from .announcements import stop_payload
from .claiming import Claim, Claiming
from .delivery import Delivery

# Seconds. What was pushed less than this before the end, and after which nothing came, was not taken.
_TAKEN_AFTER = 5.0
# Hints that wait for what is being claimed; when there are more, what was claimed is looked at anew.
_MOST_MEANWHILE = 16

# What a canceled command's device is told: `command_canceled` and the request id.
Notice = tuple[Mapping[str, Any], str | None]


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """`prefetch` is how many commands are pushed ahead, `visibility_ms` their lease in milliseconds."""

    prefetch: int
    visibility_ms: int


@dataclass(frozen=True, slots=True)
class Pushed:
    """A command on its way: when it was sent, and until when it is leased (the loop's clock, seconds)."""

    command: Command
    sent_at: float
    leased_until: float


class Prefetch:
    """What is ahead on one socket."""

    __slots__ = (
        "_caller",
        "_claiming",
        "_connection",
        "_delivery",
        "_meanwhile",
        "_options",
        "_origin",
        "_pushed",
        "_token",
        "_told",
    )

    def __init__(
        self,
        claiming: Claiming,
        delivery: Delivery,
        connection: Connection,
        token: str,
        options: SocketOptions,
        origin: Origin,
    ) -> None:
        self._claiming = claiming
        self._delivery = delivery
        self._connection = connection
        self._token = token
        self._options = options
        self._origin = origin
        # Known once something was pushed.
        self._caller: DeviceCaller | None = None
        self._pushed: dict[UUID, Pushed] = {}
        # Canceled commands of which the device has been told.
        self._told: frozenset[UUID] = frozenset()
        # What is heard while commands are claimed, for it may be about them: with a notice, or that one has ended.
        self._meanwhile: list[tuple[UUID, Notice | None]] | None = None

    def has(self, command_id: UUID) -> bool:
        """Whether a command was pushed, and has not ended."""
        return command_id in self._pushed

    @property
    def lapsed(self) -> bool:
        """Whether a lease has run out."""
        now = asyncio.get_running_loop().time()
        return any(pushed.leased_until <= now for pushed in self._pushed.values())

    def hear(self, command_id: UUID, notice: Notice | None) -> None:
        """A command is to stop, with its `notice`, or it has ended, and there is room for another."""
        heard = self._meanwhile
        if heard is not None and command_id not in self._pushed and len(heard) < _MOST_MEANWHILE:
            heard.append((command_id, notice))
        else:
            self._act(command_id, notice)

    def _act(self, command_id: UUID, notice: Notice | None) -> None:
        if notice is None:
            self._pushed.pop(command_id, None)
        else:
            self._tell_canceled(command_id, *notice)

    def forget(self, command_id: UUID, claim_token: str) -> bool:
        """The device is done with a command; whether it was the one that was pushed, and not a newer claim."""
        pushed = self._pushed.get(command_id)
        if pushed is None or pushed.command.claim_token != claim_token:
            return False
        del self._pushed[command_id]
        return True

    def _tell_canceled(self, command_id: UUID, payload: Mapping[str, Any], request_id: str | None) -> None:
        """Tell the device to stop a command."""
        self._told |= {command_id}
        self._connection.send(frame("command_canceled", payload, request_id))

    async def agree(self, caller: DeviceCaller, leases: Mapping[UUID, float]) -> None:
        """Make what counts as pushed agree with the leases that there are, and tell of cancels that were missed.

        A command that was claimed anew counts no longer: by whomever, it is not what was pushed here.
        """
        if not (leases or self._pushed or self._told):
            return
        now = asyncio.get_running_loop().time()
        asked = self._pushed.keys() | (leases.keys() - self._told)
        held: dict[UUID, str | None] = {}
        for command in await self._delivery.of_device(caller, list(asked)) if asked else ():
            if is_stopped(command) and command.id not in self._told:
                self._tell_canceled(command.id, stop_payload(command), None)
            if command.status in HELD:
                held[command.id] = command.claim_token
        self._told = self._told.intersection(leases)
        self._pushed = {
            command_id: replace(pushed, leased_until=now + leases[command_id])
            for command_id, pushed in self._pushed.items()
            if command_id in leases and held.get(command_id) == pushed.command.claim_token
        }

    async def fill(self) -> float:
        """Push up to what may be ahead; return the seconds until a lease ends, infinity when none does.

        Raises `Unauthenticated`, `Unavailable`.
        """
        free = self._options.prefetch - len(self._pushed)
        if free > 0 and not self._connection.ending:
            claim = self._claiming.begin(self._token, free, self._options.visibility_ms, self._origin, pushed=True)
            commands, sure = await self._push_what_comes(claim)
            if not sure:
                return 0.0
            if len(commands) < free:
                ends = claim.next_lease_end_s
                return float("inf") if ends is None else ends
        if not self._pushed:
            return float("inf")
        return max(
            0.0, min(pushed.leased_until for pushed in self._pushed.values()) - asyncio.get_running_loop().time()
        )

    async def _push_what_comes(self, claim: Claim) -> tuple[Sequence[Command], bool]:
        """Claim and push; return what was pushed, and whether all is known that was heard of it meanwhile."""
        heard = self._meanwhile = []
        try:
            commands = await claim.attempt(counted=False)
            self._caller = claim.caller
            # What was heard of them may be forgotten: as leases that have run out they are looked at anew.
            sure = len(heard) < _MOST_MEANWHILE or not commands
            for command in commands:
                self._push(command, views.claimed_view(command, claim.now), sure=sure)
        finally:
            # Whatever came of it: what it was not about was for others that the device has.
            self._meanwhile = None
            for command_id, notice in heard:
                self._act(command_id, notice)
        return commands, sure

    def _push(self, command: Command, view: views.View, *, sure: bool) -> None:
        now = asyncio.get_running_loop().time()
        self._pushed[command.id] = Pushed(command, now, now + view["leaseMs"] / 1000 if sure else now)
        self._told -= {command.id}
        self._connection.send(frame("command", view, command.request_id))

    def give_back(self, ended_at: float, heard_text_at: float) -> None:
        """The socket has ended: hand back what was pushed just before and cannot have been taken.

        `ended_at` is when it ended, and `heard_text_at` when something came from the device last (the loop's clock,
        seconds).
        """
        untaken = [
            pushed.command
            for pushed in self._pushed.values()
            if ended_at - pushed.sent_at < _TAKEN_AFTER and heard_text_at < pushed.sent_at
        ]
        if untaken:
            assert self._caller is not None
            self._claiming.give_up(self._caller, untaken, self._origin)
