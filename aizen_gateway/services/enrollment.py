"""How a device comes in: registration with a one-time code, and sign-in with its secret (contract sections 2, 3)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import structlog

from ..domain import secrets
from ..domain.clock import from_ms, rfc3339
from ..domain.errors import DeviceNotProvisioned, DeviceSuspended, InvalidActivationCode, InvalidCredentials
from ..domain.values import ACTIVATION_GRACE_S, ACTIVATION_TRIES, Actor, ActorType, DeviceCaller, Origin
from ..logs import bind_context
from ..storage import queries
from ..storage.device_sessions import DeviceSessions
from ..storage.limits import Limits
from ..storage.postgres import Database, Transaction
from ..storage.rows import Row, device_of
from .dispatch import Dispatcher

_SQL = queries.load("devices")
_log = structlog.get_logger(__name__)


class Enrollment:
    """Registration, sign-in and sign-out of devices."""

    def __init__(self, database: Database, sessions: DeviceSessions, limits: Limits, dispatcher: Dispatcher) -> None:
        self._database = database
        self._sessions = sessions
        self._limits = limits
        self._dispatcher = dispatcher

    async def register(
        self,
        *,
        device_id: str,
        activation_code: str,
        device_name: str | None,
        metadata: dict[str, Any] | None,
        origin: Origin,
    ) -> dict[str, Any]:
        """Take an activation code and give the device its secret, shown this once.

        Raises `DeviceNotProvisioned`, `InvalidActivationCode`, `RateLimited`, `Unavailable`.
        """
        now = from_ms(await self._limits.admit_try(device_id, origin.ip or ""))
        secret = secrets.new_secret()
        async with self._database.transaction(now, origin) as transaction:
            row = await transaction.fetchrow(_SQL["lock_device_by_id"], device_id)
            right = row is not None and secrets.matches(
                secrets.normal_activation_code(activation_code), row["activation_hash"]
            )
            good = right and _code_counts(row, now)
            if good:
                await self._store_secret(transaction, row, secret, (device_name or "").strip(), metadata)
            elif row is not None and not right:
                await transaction.execute(_SQL["count_activation_failure"], row["uid"])
        if not good:
            _log.info("registration refused", device_id=device_id, known=row is not None)
            await self._limits.count_failure(device_id, origin.ip or "")
            raise DeviceNotProvisioned if row is None else InvalidActivationCode
        bind_context(device_id=device_id, customer_id=str(row["customer_id"]))
        await self._dispatcher.dispatch(transaction.changes)
        return {
            "deviceId": device_id,
            "deviceSecret": secret,
            "customerId": str(row["customer_id"]),
            "registeredAt": rfc3339(now),
        }

    @staticmethod
    async def _store_secret(
        transaction: Transaction, row: Row, secret: str, name: str, metadata: dict[str, Any] | None
    ) -> None:
        after = await transaction.fetchrow(
            _SQL["register_device"], row["uid"], secrets.hash_text(secret), transaction.now, name or None, metadata
        )
        device = device_of(after)
        again = row["activation_used_at"] is not None
        transaction.audit("device.registered", Actor(ActorType.DEVICE, device.id), device, {"again": again})
        transaction.announce(device, "registered")

    async def authenticate(self, *, device_id: str, device_secret: str, origin: Origin) -> dict[str, Any]:
        """Exchange the secret for a session token; `expiresIn` is seconds.

        Raises `InvalidCredentials`, `DeviceSuspended`, `RateLimited`, `Unavailable`.
        """
        address = origin.ip or ""
        now = from_ms(await self._limits.admit_try(device_id, address))
        row = await self._database.fetchrow(_SQL["read_device_by_id"], device_id)
        if not secrets.matches(device_secret, row["secret_hash"] if row is not None else None):
            _log.info("sign-in refused", device_id=device_id, known=row is not None)
            await self._limits.count_failure(device_id, address)
            raise InvalidCredentials
        bind_context(device_id=device_id, customer_id=str(row["customer_id"]))
        if row["suspended_at"] is not None:
            raise DeviceSuspended
        if row["secret_used_at"] is None:
            await self._database.execute(_SQL["use_secret"], row["uid"], now, row["secret_hash"])
        token = await self._sessions.open(device_id, row["uid"], row["customer_id"], row["credential_epoch"])
        if token is None:
            raise InvalidCredentials
        return {"token": token, "expiresIn": self._sessions.lifetime_s, "deviceId": device_id}

    async def logout(self, caller: DeviceCaller) -> None:
        """End the token of this call. Raises `Unavailable`."""
        await self._sessions.close(caller)


def _code_counts(row: Row, now: datetime) -> bool:
    """Whether the right code may be used: once and in time, or again while its answer may have been lost."""
    if row["activation_failures"] >= ACTIVATION_TRIES or row["suspended_at"] is not None:
        return False
    used = row["activation_used_at"]
    if used is None:
        return bool(now < row["activation_expires_at"])
    return row["secret_used_at"] is None and bool(now < used + timedelta(seconds=ACTIVATION_GRACE_S))
