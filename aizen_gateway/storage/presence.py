"""Heartbeats and presence in Redis: the last heartbeat of each device, and an index of whom to look at when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from uuid import UUID

import orjson

from ..domain.values import DeviceCaller
from . import keys
from .device_sessions import DeviceSessions, caller_of
from .keys import DeviceKeys
from .redis_store import RedisStore


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat found. `changed_ms` is the moment at which it changed the presence, None when it did not."""

    caller: DeviceCaller
    pending: int
    changed_ms: int | None


@dataclass(frozen=True, slots=True)
class Silence:
    """A device that has just gone offline, told to one caller only."""

    device_id: str
    uid: UUID
    changed_ms: int


@dataclass(frozen=True, slots=True)
class Connected:
    """An opened socket: its number among those of the device, and when its session ends.

    `changed_ms` is the moment at which it changed the presence, to `shown`, None when it did not. All times are
    Redis's clock.
    """

    caller: DeviceCaller
    number: int
    changed_ms: int | None
    shown: str
    expires_ms: int


class Standing(IntEnum):
    """How a socket stands that says again that it is open."""

    SUPERSEDED = 0
    OPEN = 1
    SIGNED_OUT = 2


@dataclass(frozen=True, slots=True)
class Seen:
    """What Redis knows of a device: milliseconds of Redis's clock, and its last heartbeat as it came.

    `beat_ms` is the last heartbeat over REST, which alone outlives a socket; `heard_ms` is the last one of either way.
    """

    uid: str | None
    presence: str | None
    seen_ms: int | None
    beat_ms: int | None
    heard_ms: int | None
    heartbeat: dict[str, Any] | None
    socket: bool


# A socket's device is looked at this many milliseconds after the socket ended: one that comes back at once was never
# away, and one that does not is offline within the contract's 5 s.
_GRACE_MS = 2_500
_SOCKETS_TTL_S = 30 * 86_400


class Presence:
    """Who is there (contract sections 3, 4 and 6). `timeout_s` is how long a heartbeat counts, in seconds."""

    def __init__(self, store: RedisStore, sessions: DeviceSessions, timeout_s: int, instance_id: str) -> None:
        self._store = store
        self._sessions = sessions
        self.timeout_s = timeout_s
        self._instance_id = instance_id

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
        return Beat(caller, int(answer[5]), int(answer[6]) or None)

    async def connect(self, token: str | None, connection_id: UUID) -> Connected:
        """A device's socket opens here: take the device over from whatever socket it has.

        Raises `Unauthenticated`, `RateLimited`, `Unavailable`.
        """
        ticket = self._sessions.ticket(token)
        keys_ = ticket.keys
        # First the instance's own list: a socket that is in no list could never be missed.
        sockets = keys.instance_sockets(self._instance_id)
        await self._store.call("HSET", sockets, ticket.device_id, str(connection_id))
        await self._store.call("EXPIRE", sockets, _SOCKETS_TTL_S)
        args = [*ticket.args, str(connection_id), self._instance_id, keys_.channel]
        answer = await self._store.run("connect", keys_.entrance, args)
        caller = caller_of(ticket, answer)
        return Connected(caller, int(answer[5]), int(answer[6]) or None, answer[8], int(answer[7]))

    async def disconnect(self, device_id: str, connection_id: UUID) -> None:
        """A socket has ended; its device is looked at soon, unless a newer socket has it. Raises `Unavailable`."""
        if await self._ended(device_id, str(connection_id), _GRACE_MS):
            await self._store.call("HDEL", keys.instance_sockets(self._instance_id), device_id)

    async def _ended(self, device_id: str, connection_id: str, grace_ms: int) -> bool:
        ours, now = await self._store.run("disconnect", [DeviceKeys.of(device_id).device], [connection_id])
        if ours:
            await self._store.call("ZADD", keys.WATCH, "LT", int(now) + grace_ms, device_id)
        return bool(ours)

    async def instance_beat(self, dead_after_ms: int) -> tuple[bool, Sequence[str]]:
        """Say that this instance lives; return whether that was known, and the ids of those that are dead."""
        answer = await self._store.run("instance_beat", [keys.INSTANCES], [self._instance_id, dead_after_ms])
        return bool(answer[0]), answer[1:]

    async def instance_leaves(self) -> None:
        """Forget this instance, whose sockets have all ended. Raises `Unavailable`."""
        await self._store.call("ZREM", keys.INSTANCES, self._instance_id)
        await self._store.call("DEL", keys.instance_sockets(self._instance_id))

    async def bury(self, instance_id: str) -> int:
        """End the sockets of a dead instance; several may do it at once. Return how many there were."""
        sockets = keys.instance_sockets(instance_id)
        found: dict[str, str] = await self._store.call("HGETALL", sockets)
        for device_id, connection_id in found.items():
            await self._ended(device_id, connection_id, 0)
        await self._store.call("DEL", sockets)
        await self._store.call("ZREM", keys.INSTANCES, instance_id)
        return len(found)

    async def reassert(self, caller: DeviceCaller, connection_id: UUID, number: int) -> tuple[Standing, int | None]:
        """Say again that a socket is open; return how it stands, and the moment at which that made it online."""
        device = DeviceKeys.of(caller.device_id)
        await self._store.call("HSET", keys.instance_sockets(self._instance_id), caller.device_id, str(connection_id))
        names = [str(connection_id), self._instance_id, str(number), str(caller.uid), str(caller.customer_id)]
        answer = await self._store.run("reassert", [device.sessions, device.device], [caller.token_hash, *names])
        return Standing(int(answer[0])), int(answer[1]) or None

    async def watch(self, device_id: str, at_ms: int) -> None:
        """Have somebody look at the device at `at_ms`; an earlier appointment stays."""
        await self._store.call("ZADD", keys.WATCH, "NX", at_ms, device_id)

    async def adopt(self, device_id: str, uid: UUID, presence: str, now_ms: int) -> None:
        """Take up a device that the truth holds for present and Redis has forgotten; what Redis knows stays."""
        device = DeviceKeys.of(device_id).device
        for field, value in (("uid", str(uid)), ("presence", presence), ("beat", now_ms)):
            await self._store.call("HSETNX", device, field, value)
        await self._store.call("EXPIRE", device, 7 * 86_400)
        await self.watch(device_id, now_ms + self.timeout_s * 1000)

    async def fallen_silent(self, limit: int) -> Sequence[Silence]:
        """Look at the devices whose time has come, at most `limit`; return those that went offline just now."""
        now = await self._store.time_ms()
        due = await self._store.call("ZRANGEBYSCORE", keys.WATCH, "-inf", now, "LIMIT", 0, limit)
        silent = []
        for device_id in due:
            device = DeviceKeys.of(device_id).device
            again, uid, changed = await self._store.run("check_presence", [device], [self.timeout_s * 1000])
            if again:
                await self._store.call("ZADD", keys.WATCH, again, device_id)
            else:
                await self._store.call("ZREM", keys.WATCH, device_id)
            if changed:
                silent.append(Silence(device_id, UUID(uid), int(changed)))
        return silent

    async def look(self, device_id: str) -> Seen:
        """What is known of a device now."""
        device = DeviceKeys.of(device_id).device
        names = ("uid", "presence", "seen", "beat", "heard", "heartbeat", "socket")
        uid, presence, seen, beat, heard, heartbeat, socket = await self._store.call("HMGET", device, *names)
        return Seen(
            uid,
            presence,
            int(seen) if seen else None,
            int(beat) if beat else None,
            int(heard) if heard else None,
            orjson.loads(heartbeat) if heartbeat else None,
            socket is not None,
        )
