"""The commands that were pushed ahead on a device's socket: which they are, for how long, and what becomes of them.

What counts as pushed agrees with the leases of Redis, which the socket learns of when it opens and when it is in doubt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from ..domain import views
from ..domain.records import Command
from ..domain.values import DeviceCaller, Origin
from ..realtime.connection import Connection
from ..realtime.frames import frame
from .announcements import stop_payload
from .claiming import Claiming
from .delivery import Delivery

# Seconds. What was pushed less than this before the end, and after which nothing came, was not taken.
_TAKEN_AFTER = 5.0


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

    def has(self, command_id: UUID) -> bool:
        """Whether a command was pushed, and has not ended."""
        return command_id in self._pushed

    @property
    def lapsed(self) -> bool:
        """Whether a lease has run out."""
        now = asyncio.get_running_loop().time()
        return any(pushed.leased_until <= now for pushed in self._pushed.values())

    def drop(self, command_id: UUID) -> None:
        """A command has ended: there is room for another."""
        self._pushed.pop(command_id, None)

    def forget(self, command_id: UUID, claim_token: str) -> bool:
        """The device is done with a command; whether it was the one that was pushed, and not a newer claim."""
        pushed = self._pushed.get(command_id)
        if pushed is None or pushed.command.claim_token != claim_token:
            return False
        del self._pushed[command_id]
        return True

    def tell_canceled(self, payload: Mapping[str, Any], request_id: str | None) -> None:
        """Tell the device to stop a command."""
        self._told |= {UUID(payload["id"])}
        self._connection.send(frame("command_canceled", payload, request_id))

    async def agree(self, caller: DeviceCaller, leases: Mapping[UUID, float]) -> None:
        """Make what counts as pushed agree with the leases that there are, and tell of cancels that were missed."""
        if not (leases or self._pushed or self._told):
            return
        now = asyncio.get_running_loop().time()
        asked = (leases.keys() | self._pushed.keys()) - self._told
        for command in await self._delivery.to_stop(caller, list(asked)) if asked else ():
            self.tell_canceled(stop_payload(command), None)
        self._told = self._told.intersection(leases)
        self._pushed = {
            command_id: replace(pushed, leased_until=now + leases[command_id])
            for command_id, pushed in self._pushed.items()
            if command_id in leases
        }

    async def fill(self) -> float:
        """Push up to what may be ahead; return the seconds until a lease ends, infinity when none does.

        Raises `Unauthenticated`, `Unavailable`.
        """
        free = self._options.prefetch - len(self._pushed)
        if free > 0 and not self._connection.ending:
            claim = self._claiming.begin(self._token, free, self._options.visibility_ms, self._origin, pushed=True)
            commands = await claim.attempt(counted=False)
            self._caller = claim.caller
            for command in commands:
                self._push(command, views.claimed_view(command, claim.now))
            if len(commands) < free:
                ends = claim.next_lease_end_s
                return float("inf") if ends is None else ends
        if not self._pushed:
            return float("inf")
        return max(
            0.0, min(pushed.leased_until for pushed in self._pushed.values()) - asyncio.get_running_loop().time()
        )

    def _push(self, command: Command, view: views.View) -> None:
        now = asyncio.get_running_loop().time()
        self._pushed[command.id] = Pushed(command, now, now + view["leaseMs"] / 1000)
        self._told -= {command.id}
        self._connection.send(frame("command", view, command.request_id))

    def give_back(self, heard_text_at: float) -> None:
        """The socket has ended: hand back what was pushed just before and cannot have been taken.

        `heard_text_at` is when something came from the device last (the loop's clock, seconds).
        """
        now = asyncio.get_running_loop().time()
        untaken = [
            pushed.command
            for pushed in self._pushed.values()
            if now - pushed.sent_at < _TAKEN_AFTER and heard_text_at < pushed.sent_at
        ]
        if untaken:
            assert self._caller is not None
            self._claiming.give_up(self._caller, untaken, self._origin)
