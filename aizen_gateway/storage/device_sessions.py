"""Device session tokens in Redis: opened at sign-in, checked and slid by whatever script the call runs anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from ..domain import secrets
from ..domain.errors import RateLimited, Unauthenticated
from ..domain.values import DeviceCaller
from .keys import MOST_AT_HAND, DeviceKeys
from .redis_store import RedisStore

# More than any one device needs; a device that signs in over and over pushes out its oldest sessions.
MOST_SESSIONS = 16


@dataclass(frozen=True, slots=True)
class SessionRules:
    """`ttl_s` and `max_age_s` are seconds, `rate` is calls a minute and device (0 for no limit)."""

    ttl_s: int
    max_age_s: int
    rate: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """A token before it was checked: the keys of the device it names, and the head of a script's arguments."""

    device_id: str
    token_hash: str
    keys: DeviceKeys
    args: tuple[str | int, ...]

    @property
    def uncounted(self) -> tuple[str | int, ...]:
        """As `args`, for a call that is no request of its own."""
        return (*self.args[:3], -1)

    @property
    def unused(self) -> tuple[str | int, ...]:
        """As `args`, for a look on the device's behalf: it counts as no use of the token, which does not slide."""
        return (self.args[0], 0, self.args[2], -1)


class DeviceSessions:
    """The session tokens of devices (contract section 2)."""

    def __init__(self, store: RedisStore, rules: SessionRules) -> None:
        self._store = store
        self._rules = rules
        # Devices show the same token over and over; what it says does not change, only whether it still counts.
        self._tickets = lru_cache(maxsize=MOST_AT_HAND)(self._read)

    def ticket(self, token: str | None) -> Ticket:
        """Read a token without asking anybody. Raises `Unauthenticated` when it cannot be one of ours."""
        if token is None:
            raise Unauthenticated
        return self._tickets(token)

    def _read(self, token: str) -> Ticket:
        device_id = secrets.device_of_token(token)
        if device_id is None:
            raise Unauthenticated
        token_hash = secrets.hash_hex(token)
        rules = self._rules
        args = (token_hash, rules.ttl_s * 1000, rules.max_age_s * 1000, rules.rate)
        return Ticket(device_id, token_hash, DeviceKeys.of(device_id), args)

    async def enter(self, token: str | None, *, counted: bool = True) -> DeviceCaller:
        """Check and slide a session. Unless `counted`, the call does not count against the device's limit.

        Raises `Unauthenticated`, `RateLimited`, `Unavailable`.
        """
        ticket = self.ticket(token)
        args = ticket.args if counted else ticket.uncounted
        return caller_of(ticket, await self._store.run("enter", ticket.keys.entrance, args))

    async def open(self, device_id: str, uid: UUID, customer_id: UUID, credential_epoch: int) -> str | None:
        """Store a new session and return its token; None when all sessions were ended since the credentials' check."""
        token = secrets.new_session_token(device_id)
        keys = DeviceKeys.of(device_id)
        rules = self._rules
        stored, _ = await self._store.run(
            "open_session",
            [keys.sessions, keys.epoch],
            [
                secrets.hash_hex(token),
                rules.ttl_s * 1000,
                rules.max_age_s * 1000,
                str(uid),
                str(customer_id),
                credential_epoch,
                MOST_SESSIONS,
            ],
        )
        return token if stored else None

    @property
    def lifetime_s(self) -> int:
        """Seconds that a new token lives when it is not used."""
        return min(self._rules.ttl_s, self._rules.max_age_s)

    async def close(self, caller: DeviceCaller) -> None:
        """End this one session, and the sockets that were opened with it."""
        keys = DeviceKeys.of(caller.device_id)
        await self._store.run("close_session", [keys.sessions], [caller.token_hash, keys.channel])

    async def left_ms(self, caller: DeviceCaller) -> int:
        """How long a session lives unless it is used again; 0 when it has ended. Slides nothing."""
        record = await self._store.call("HGET", DeviceKeys.of(caller.device_id).sessions, caller.token_hash)
        return max(0, int(record.split(":")[1]) - await self._store.time_ms()) if record else 0

    async def revoke(self, device_id: str, credential_epoch: int, why: str, *, offline: bool) -> None:
        """End all sessions of a device and tell every instance `why`; older credentials cannot sign in any more.

        With `offline` its presence is offline from now on, as the truth has it already.
        """
        keys = DeviceKeys.of(device_id)
        args: list[str | int] = [credential_epoch, keys.channel, f"revoked {why}", int(offline)]
        await self._store.run("revoke", [keys.sessions, keys.epoch, keys.device], args)

    async def forget(self, device_id: str, uid: UUID, credential_epoch: int) -> None:
        """Leave nothing of a deleted device but the mark that its credentials are void, which ends by itself.

        What a newer life of the same id has is left alone.
        """
        keys = DeviceKeys.of(device_id)
        places = [keys.sessions, keys.epoch, keys.device, keys.limit, *keys.queue]
        await self._store.run("forget", places, [str(uid), credential_epoch])


def caller_of(ticket: Ticket, answer: Sequence[Any]) -> DeviceCaller:
    """The caller that a script's head admitted. Raises `Unauthenticated` or `RateLimited`."""
    code, now, uid, customer, wait = answer[:5]
    if code == 1:
        raise Unauthenticated
    if code == 2:
        raise RateLimited(retry_after=-(-int(wait) // 1000))
    return DeviceCaller(ticket.device_id, _uuid(uid), _uuid(customer), ticket.token_hash, int(now))


# The same few over and over.
_uuid = lru_cache(maxsize=MOST_AT_HAND)(UUID)
