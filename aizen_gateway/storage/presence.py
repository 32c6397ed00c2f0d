"""Heartbeats and presence in Redis: the last heartbeat of each device, its socket, and whom to look at when.

Redis decides every change and gives it a moment; what the truth has not been told of yet is known here, so that a
process which dies in between takes no change with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import orjson

from ..domain.values import Connection, DeviceCaller, DeviceStatus
from . import keys
from .device_sessions import DeviceSessions, caller_of
from .keys import DeviceKeys
from .redis_store import Begun, RedisStore


@dataclass(frozen=True, slots=True)
class PresenceChange:
    """A change of status or connection that the truth must be told of, and its moment by Redis's clock."""

    device_id: str
    uid: UUID
    status: DeviceStatus
    connection: Connection
    at_ms: int


class Beat(NamedTuple):
    """What a heartbeat found: how many commands wait, and the presence when the heartbeat changed it."""

    caller: DeviceCaller
    pending: int
    change: PresenceChange | None


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a device found. `again_ms` is when it must be looked at again, 0 for not."""

    again_ms: int
    change: PresenceChange | None


@dataclass(frozen=True, slots=True)
class Connected:
    """An opened socket: its number among those of the device, and when its session ends by Redis's clock.

    `change` is what the truth must be told of, `leases` are as in `Stand`; with `nothing_waits` there is no command
    that could be claimed, now or when a lease ends.
    """

    caller: DeviceCaller
    number: int
    expires_ms: int
    change: PresenceChange | None
    leases: Mapping[UUID, float]
    nothing_waits: bool


class Standing(IntEnum):
    """How a socket stands that says again that it is open."""

    SUPERSEDED = 0
    OPEN = 1
    SIGNED_OUT = 2


@dataclass(frozen=True, slots=True)
class Stand:
    """The answer to a socket that says that it is open. `leases` are those of its device, in seconds that are left."""

    standing: Standing
    change: PresenceChange | None = None
    leases: Mapping[UUID, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """What Redis knows of a device: milliseconds of Redis's clock, and its last heartbeat as it came.

    `polled_ms` is the last call over REST since the last socket opened, `beat_ms` the last heartbeat over REST, which
    alone outlives a socket; `heard_ms` is the last heartbeat of either way.
    """

    uid: str | None
    presence: str | None
    seen_ms: int | None
    polled_ms: int | None
    beat_ms: int | None
    heard_ms: int | None
    heartbeat: dict[str, Any] | None
    socket: bool


# A socket's device is looked at this many milliseconds after the socket ended: one that comes back at once was never
# away, and one that does not is offline within the contract's 5 s.
_GRACE_MS = 2_500
# One that was on a socket when Redis lost everything has this long to sign in and come back.
_COMES_BACK_MS = 5_000
_SOCKETS_TTL_S = 30 * 86_400
# Renewed at every look. Longer than the index's mark lives: who looks again after it has ended fills the watch anew.
_WATCH_TTL_MS = 7 * 86_400_000
# Whoever takes a device to look at it has this long.
_TAKEN_MS = 5_000
_DEVICE_TTL_S = 7 * 86_400


class Presence:
    """Who is there (contract sections 3, 4 and 6). `timeout_s` is how long a heartbeat counts, in seconds."""

    def __init__(self, store: RedisStore, sessions: DeviceSessions, timeout_s: int, instance_id: str) -> None:
        self._store = store
        self._sessions = sessions
        self.timeout_s = timeout_s
        # Of this life alone: what an earlier one left behind under the same name is somebody else's.
        self._instance = f"{instance_id}:{uuid4().hex}"
        self._sockets = keys.instance_sockets(self._instance)

    async def beat(
        self, token: str | None, presence: str, heartbeat: dict[str, Any], *, over_socket: bool = False
    ) -> Beat:
        """Check the session and keep the heartbeat: one round trip, and a second one now and then for the watch.

        Raises `Unauthenticated`, `RateLimited`, `Unavailable`.
        """
        ticket = self._sessions.ticket(token)
        head = ticket.uncounted if over_socket else ticket.args
        timeout_ms = self.timeout_s * 1000
        answer = await self._store.run(
            "heartbeat",
            [*ticket.keys.entrance, *ticket.keys.queue],
            [*head, presence, orjson.dumps(heartbeat).decode(), timeout_ms, int(over_socket)],
        )
        caller = caller_of(ticket, answer)
        if answer[7]:
            await self.watch(ticket.device_id, caller.now_ms + timeout_ms)
            await self._store.run("watched", [ticket.keys.device], [caller.now_ms + 2 * timeout_ms])
        change = _change(caller.device_id, caller.uid, answer[6], presence, answer[8])
        return Beat(caller, int(answer[5]), change)

    async def connect(self, token: str | None, connection_id: UUID) -> Connected:
        """A device's socket, which is listed, opens: take the device over from whatever socket it has.

        Counts as no call. Raises `Unauthenticated`, `Unavailable`.
        """
        ticket = self._sessions.ticket(token)
        keys = ticket.keys
        args = [*ticket.uncounted, str(connection_id), keys.channel]
        answer = await self._store.run("connect", (*keys.entrance, keys.pending, keys.leased), args)
        caller = caller_of(ticket, answer)
        change = _change(caller.device_id, caller.uid, answer[7], answer[8], Connection.WEBSOCKET)
        return Connected(caller, int(answer[5]), int(answer[6]), change, _leases(answer[10:]), not answer[9])

    def list_socket(self, device_id: str, connection_id: UUID) -> Begun:
        """Add a socket to this instance's list: a socket that is in no list could never be missed.

        It is done when that has been awaited. Raises `Unavailable`.
        """
        return self._store.begin_call("HSET", self._sockets, str(connection_id), device_id)

    async def disconnect(self, device_id: str, connection_id: UUID) -> None:
        """A socket has ended; its device is looked at soon, unless a newer socket has it.

        Raises `Unavailable`; it must then be said again, which does no harm.
        """
        await self._ended(device_id, str(connection_id), _GRACE_MS)
        await self._store.call("HDEL", self._sockets, str(connection_id))

    async def _ended(self, device_id: str, connection_id: str, grace_ms: int) -> None:
        now = await self._store.run("disconnect", [DeviceKeys.of(device_id).device], [connection_id])
        # Also when it was not the device's socket any more: the answer to the first try may have been lost.
        await self._store.call("ZADD", keys.WATCH, "LT", int(now) + grace_ms, device_id)

    async def instance_beat(self, dead_after_ms: int) -> tuple[bool, Sequence[str]]:
        """Say that this instance lives; return whether that was known, and the ids of those that are dead.

        Each node of a cluster is told, for one that has lost what it had has forgotten sockets too.
        """
        places = [keys.instances(tag) for tag in await self._store.tags(keys.INDEX)]
        answers = [await self._store.run("instance_beat", [place], [self._instance, dead_after_ms]) for place in places]
        # Here rather than with each socket.
        await self._store.call("EXPIRE", self._sockets, _SOCKETS_TTL_S)
        return all(answer[0] for answer in answers), answers[0][1:]

    async def _forget(self, instance: str) -> None:
        for tag in await self._store.tags(keys.INDEX):
            await self._store.call("ZREM", keys.instances(tag), instance)

    async def instance_leaves(self) -> None:
        """Forget this instance, whose sockets have all ended. Raises `Unavailable`."""
        await self._store.call("DEL", self._sockets)
        await self._forget(self._instance)

    async def bury(self, instance: str, most: int) -> int:
        """End about `most` sockets of a dead instance; return how many. When there are none, the instance is forgotten.

        Several instances may do it at once. Raises `Unavailable`.
        """
        sockets = keys.instance_sockets(instance)
        fields = await self._store.call("HRANDFIELD", sockets, most)
        for connection_id in fields:
            device_id = await self._store.call("HGET", sockets, connection_id)
            if device_id is not None:
                await self._ended(device_id, connection_id, 0)
                await self._store.call("HDEL", sockets, connection_id)
        if not fields:
            await self._forget(instance)
        return len(fields)

    async def reassert(self, caller: DeviceCaller, connection_id: UUID, number: int) -> Stand:
        """Say that a socket is open, for Redis may have forgotten it, and learn how it stands. Raises `Unavailable`."""
        await self.list_socket(caller.device_id, connection_id)
        device = DeviceKeys.of(caller.device_id)
        args = [caller.token_hash, str(connection_id), str(number), str(caller.uid), str(caller.customer_id)]
        answer = await self._store.run("reassert", [device.sessions, device.device, device.leased], args)
        change = _change(caller.device_id, caller.uid, answer[1], answer[2], Connection.WEBSOCKET)
        return Stand(Standing(int(answer[0])), change, _leases(answer[3:]))

    async def written(self, change: PresenceChange) -> None:
        """The truth has this change. Raises `Unavailable`."""
        device = DeviceKeys.of(change.device_id).device
        await self._store.run("presence_written", [device], [str(change.uid), change.at_ms])

    async def watch(self, device_id: str, at_ms: int) -> None:
        """Have somebody look at the device at `at_ms`; an earlier appointment stays. Raises `Unavailable`."""
        await self._store.call("ZADD", keys.WATCH, "NX", at_ms, device_id)

    async def adopt(self, device_id: str, uid: UUID, presence: str, connection: str, now_ms: int) -> None:
        """Take up a device that the truth holds for present and Redis has forgotten; what Redis knows stays."""
        device = DeviceKeys.of(device_id).device
        known = {"uid": str(uid), "presence": presence, "way": connection}
        due = now_ms + _COMES_BACK_MS
        if connection != Connection.WEBSOCKET:
            known["beat"] = str(now_ms)
            due = now_ms + self.timeout_s * 1000
        for name, value in known.items():
            await self._store.call("HSETNX", device, name, value)
        await self._store.call("EXPIRE", device, _DEVICE_TTL_S)
        await self.watch(device_id, due)

    async def take_due(self, most: int) -> Sequence[str]:
        """Take the devices that are due to be looked at, at most `most`. Raises `Unavailable`."""
        args = [most, _TAKEN_MS, _WATCH_TTL_MS]
        return list(await self._store.run("take_due", [keys.WATCH, keys.TAKEN], args))

    async def check(self, device_id: str) -> Look:
        """Look at a taken device. Raises `Unavailable`."""
        device = DeviceKeys.of(device_id).device
        again, uid, moment, presence, way = await self._store.run("check_presence", [device], [self.timeout_s * 1000])
        return Look(int(again), _change(device_id, UUID(uid), moment, presence, way) if uid else None)

    async def checked(self, device_id: str, again_ms: int) -> None:
        """A taken device has been looked at and what was found is written. Raises `Unavailable`."""
        if again_ms:
            await self._store.call("ZADD", keys.WATCH, "LT", again_ms, device_id)
        await self._store.call("ZREM", keys.TAKEN, device_id)

    def look(self, device_id: str) -> Looking:
        """What is known of a device now; it is asked at once."""
        names = ("uid", "presence", "socket", "heartbeat", "seen", "polled", "beat", "heard")
        return Looking(self._store.begin_call("HMGET", DeviceKeys.of(device_id).device, *names))


class Looking:
    """A look at a device that is under way."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Begun) -> None:
        self._answer = answer

    async def seen(self) -> Seen:
        """What it found. Raises `Unavailable`."""
        uid, presence, socket, heartbeat, *times = await self._answer
        seen, polled, beat, heard = (int(time) if time else None for time in times)
        last = orjson.loads(heartbeat) if heartbeat else None
        return Seen(uid, presence, seen, polled, beat, heard, last, socket is not None)


def _change(device_id: str, uid: UUID, at_ms: Any, presence: str, way: str) -> PresenceChange | None:
    """A change at `at_ms`, None when that is 0."""
    if not int(at_ms):
        return None
    return PresenceChange(device_id, uid, DeviceStatus(presence), Connection(way), int(at_ms))


def _leases(pairs: Sequence[Any]) -> Mapping[UUID, float]:
    """Leases with the seconds that are left of each, of ids and milliseconds in turn."""
    return {UUID(pairs[n]): int(pairs[n + 1]) / 1000 for n in range(0, len(pairs), 2)}
