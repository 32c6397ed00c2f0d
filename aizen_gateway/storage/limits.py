"""Rate limits in Redis, on Redis's clock: a steady rate a minute with a burst of as many (contract section 7)."""

from __future__ import annotations

from uuid import UUID

from ..domain.errors import RateLimited
from . import keys
from .redis_store import RedisStore

ADDRESS_FACTOR = 10


class Limits:
    """`customer` is calls a minute and user; `auth` is failed tries a minute and device id, ten times that an address.

    0 is no limit.
    """

    def __init__(self, store: RedisStore, *, customer: int, auth: int) -> None:
        self._store = store
        self._customer = customer
        self._auth = auth

    async def admit_user(self, customer_id: UUID, actor_id: str) -> int:
        """Count a call and return Redis's clock in milliseconds. Raises `RateLimited`, `Unavailable`."""
        wait, now = await self._store.run("limit", [keys.user_limit(customer_id, actor_id)], [self._customer, 1])
        if wait:
            raise RateLimited(retry_after=_seconds(wait))
        return int(now)

    async def admit_try(self, device_id: str, address: str) -> int:
        """Look, without counting, whether another try is allowed; return Redis's clock. Raises as `admit_user`."""
        now = 0
        for key, rate in self._tries(device_id, address):
            wait, now = await self._store.run("limit", [key], [rate, 0])
            if wait:
                raise RateLimited(retry_after=_seconds(wait))
        return int(now)

    async def count_failure(self, device_id: str, address: str) -> None:
        """Count a failed try. Raises as `admit_user` when others that failed meanwhile have left no room for it."""
        waits = [
            int((await self._store.run("limit", [key], [rate, 1]))[0]) for key, rate in self._tries(device_id, address)
        ]
        if any(waits):
            raise RateLimited(retry_after=_seconds(max(waits)))

    def _tries(self, device_id: str, address: str) -> list[tuple[str, int]]:
        return [
            (keys.failures_of_device(device_id), self._auth),
            (keys.failures_of_address(address), self._auth * ADDRESS_FACTOR),
        ]


def _seconds(milliseconds: int) -> int:
    return -(-int(milliseconds) // 1000)
