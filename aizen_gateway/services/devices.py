"""What a customer does with devices: provision, look, change, suspend, rotate, delete (contract section 4)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from ..domain import secrets, views
from ..domain.clock import from_ms, rfc3339, rfc3339_or_none, to_ms
from ..domain.errors import DeviceExists, DeviceNotFound
from ..domain.policy import require_write
from ..domain.records import Device
from ..domain.values import ACTIVATION_TTL_S, Actor, Connection, DeviceStatus, Origin, Principal, SessionStatus
from ..storage import queries
from ..storage.postgres import Database, Transaction
from ..storage.presence import Presence, Seen
from ..storage.rows import Row, command_of, device_of, session_of
from . import cursors
from .dispatch import Dispatcher
from .group_looks import GroupLooks, Wanted
from .transitions import cancel_command, end_session

_SQL = queries.load("devices")
_COMMANDS = queries.load("commands")
_SESSIONS = queries.load("sessions")

INSTRUCTIONS = (
    "Enter the activation code on the device within 24 hours. It works once and for this device only, "
    "and a newer code voids it."
)


class Devices:
    """The devices of a customer."""

    def __init__(self, database: Database, presence: Presence, dispatcher: Dispatcher) -> None:
        self._database = database
        self._presence = presence
        self._dispatcher = dispatcher
        self._looks = GroupLooks(database)

    async def close(self) -> None:
        """Let what runs end."""
        await self._looks.close()

    async def list(
        self, principal: Principal, *, status: str = "all", limit: int = 50, offset: int = 0, search: str | None = None
    ) -> dict[str, Any]:
        """A page of devices with the number of all that fit. Raises `Unavailable`."""
        shown = None if status == "all" else status
        args = (principal.customer_id, shown, search or None)
        rows = await self._database.fetch(_SQL["list_devices"], *args, limit, offset)
        total = rows[0]["total"] if rows else 0
        if not rows and offset:
            total = (await self._database.fetchrow(_SQL["count_devices"], *args))["count"]
        devices = [views.device_view(device_of(row)) for row in rows]
        return {"devices": devices, "total": total, "limit": limit, "offset": offset}

    async def provision(
        self, principal: Principal, *, device_id: str, name: str | None, location: str | None, origin: Origin
    ) -> dict[str, Any]:
        """Make a device, or give one that never registered a new code.

        Raises `DeviceExists`, `Forbidden`, `Unavailable`.
        """
        require_write(principal)
        now, code = from_ms(principal.now_ms), secrets.new_activation_code()
        digest, expires = _hash(code), now + timedelta(seconds=ACTIVATION_TTL_S)
        async with self._database.transaction(now, origin) as transaction:
            owner = principal.customer_id
            row = await transaction.fetchrow(
                _SQL["insert_device"], uuid4(), device_id, owner, name or device_id, location, digest, expires
            )
            if row is None:
                row = await transaction.fetchrow(_SQL["lock_device_by_id"], device_id)
                if row is None or row["customer_id"] != owner or row["registered_at"] is not None:
                    raise DeviceExists
                row = await transaction.fetchrow(_SQL["renew_activation"], row["uid"], digest, expires, name, location)
            device = device_of(row)
            transaction.audit("device.provisioned", principal.actor, device)
            transaction.announce(device, "provisioned")
        await self._dispatcher.dispatch(transaction.changes)
        return _activation(device, code, expires)

    async def rotate_secret(self, principal: Principal, device_id: str, *, origin: Origin) -> dict[str, Any]:
        """Void the secret and all sessions, and give a new activation code. Raises `DeviceNotFound`, `Forbidden`."""
        require_write(principal)
        return await self.rotate_as(principal.actor, device_id, principal, from_ms(principal.now_ms), origin)

    async def rotate_as(
        self, actor: Actor, device_id: str, principal: Principal | None, now: datetime, origin: Origin
    ) -> dict[str, Any]:
        """As `rotate_secret`, for an operator when `principal` is None."""
        code, expires = secrets.new_activation_code(), now + timedelta(seconds=ACTIVATION_TTL_S)
        async with self._database.transaction(now, origin) as transaction:
            row = await self._lock(transaction, principal, device_id)
            row = await transaction.fetchrow(_SQL["renew_activation"], row["uid"], _hash(code), expires, None, None)
            device = device_of(row)
            transaction.audit("device.secret_rotated", actor, device)
            transaction.announce(device, "rotated")
        await self._dispatcher.dispatch(transaction.changes)
        return _activation(device, code, expires)

    async def status(self, principal: Principal, device_id: str) -> dict[str, Any]:
        """A device with its connection, last heartbeat, open session and queue. Raises `DeviceNotFound`."""
        now = from_ms(principal.now_ms)
        # Redis answers while PostgreSQL still looks.
        looking = self._presence.look(device_id)
        row = await self._looks.read(Wanted(device_id, principal.customer_id, now))
        if row is None:
            raise DeviceNotFound
        seen = await looking.seen()
        return {"device": _status_view(row, seen, principal.now_ms, self._presence.timeout_s * 1000)}

    async def commands(
        self, principal: Principal, device_id: str, *, status: str | None, limit: int, cursor: str | None
    ) -> dict[str, Any]:
        """A page of a device's commands, newest first. Raises `DeviceNotFound`, `InvalidRequest`."""
        row = await self._database.fetchrow(_SQL["read_device"], device_id, principal.customer_id)
        if row is None:
            raise DeviceNotFound
        before = cursors.record(cursor)
        rows = await self._database.fetch(_COMMANDS["commands_of_device"], row["uid"], status, *before, limit + 1)
        page = [command_of(found) for found in rows[:limit]]
        following = cursors.after_record(page[-1].created_at, page[-1].id) if len(rows) > limit else None
        return {"commands": [views.command_view(command) for command in page], "nextCursor": following}

    async def update(
        self, principal: Principal, device_id: str, *, changes: dict[str, Any], origin: Origin
    ) -> dict[str, Any]:
        """Change name or location. Raises `DeviceNotFound`, `Forbidden`."""
        require_write(principal)
        async with self._database.transaction(from_ms(principal.now_ms), origin) as transaction:
            row = await self._lock(transaction, principal, device_id)
            name, location = changes.get("name", row["name"]), changes.get("location", row["location"])
            device = device_of(await transaction.fetchrow(_SQL["update_device"], row["uid"], name, location))
            transaction.audit("device.updated", principal.actor, device, changes)
            transaction.announce(device)
        await self._dispatcher.dispatch(transaction.changes)
        return {"device": views.device_view(device)}

    async def suspend(self, principal: Principal, device_id: str, *, origin: Origin) -> dict[str, Any]:
        """End the device's sessions and sockets and cancel its open session. Raises `DeviceNotFound`, `Forbidden`."""
        require_write(principal)
        return await self.suspend_as(principal.actor, device_id, principal, from_ms(principal.now_ms), origin)

    async def suspend_as(
        self, actor: Actor, device_id: str, principal: Principal | None, now: datetime, origin: Origin
    ) -> dict[str, Any]:
        """As `suspend`, for an operator when `principal` is None."""
        async with self._database.transaction(now, origin) as transaction:
            row = await self._lock(transaction, principal, device_id)
            device = device_of(row)
            if device.suspended_at is None:
                await self._cancel_session(transaction, device, actor, "The device was suspended.")
                device = device_of(await transaction.fetchrow(_SQL["suspend_device"], device.uid, now))
                transaction.audit("device.suspended", actor, device)
                transaction.announce(device, "suspended")
        await self._dispatcher.dispatch(transaction.changes)
        return {"device": views.device_view(device)}

    async def resume(self, principal: Principal, device_id: str, *, origin: Origin) -> dict[str, Any]:
        """Let a suspended device sign in again. Raises `DeviceNotFound`, `Forbidden`."""
        require_write(principal)
        return await self.resume_as(principal.actor, device_id, principal, from_ms(principal.now_ms), origin)

    async def resume_as(
        self, actor: Actor, device_id: str, principal: Principal | None, now: datetime, origin: Origin
    ) -> dict[str, Any]:
        """As `resume`, for an operator when `principal` is None."""
        async with self._database.transaction(now, origin) as transaction:
            device = device_of(await self._lock(transaction, principal, device_id))
            if device.suspended_at is not None:
                device = device_of(await transaction.fetchrow(_SQL["resume_device"], device.uid))
                transaction.audit("device.resumed", actor, device)
                transaction.announce(device, "resumed")
        await self._dispatcher.dispatch(transaction.changes)
        return {"device": views.device_view(device)}

    async def delete(self, principal: Principal, device_id: str, *, origin: Origin) -> None:
        """End everything of the device; its history stays in the audit log. Raises `DeviceNotFound`, `Forbidden`."""
        require_write(principal)
        async with self._database.transaction(from_ms(principal.now_ms), origin) as transaction:
            device = device_of(await self._lock(transaction, principal, device_id))
            await self._cancel_session(transaction, device, principal.actor, "The device was deleted.", force=True)
            for row in await transaction.fetch(_COMMANDS["lock_open_commands_of_device"], device.uid):
                await cancel_command(
                    transaction, command_of(row), principal.actor, "The device was deleted.", force=True
                )
            device = device_of(await transaction.fetchrow(_SQL["delete_device"], device.uid, transaction.now))
            transaction.audit("device.deleted", principal.actor, device)
            transaction.announce(device, "deleted")
        await self._dispatcher.dispatch(transaction.changes)

    @staticmethod
    async def _lock(transaction: Transaction, principal: Principal | None, device_id: str) -> Row:
        if principal is None:
            row = await transaction.fetchrow(_SQL["lock_device_by_id"], device_id)
        else:
            row = await transaction.fetchrow(_SQL["lock_device"], device_id, principal.customer_id)
        if row is None:
            raise DeviceNotFound
        return row

    @staticmethod
    async def _cancel_session(
        transaction: Transaction, device: Device, actor: Actor, reason: str, *, force: bool = False
    ) -> None:
        row = await transaction.fetchrow(_SESSIONS["lock_open_session_of_device"], device.uid)
        if row is not None:
            await end_session(transaction, session_of(row), SessionStatus.CANCELED, actor, reason, force=force)


def _hash(code: str) -> bytes:
    return secrets.hash_text(secrets.normal_activation_code(code))


def _activation(device: Device, code: str, expires: datetime) -> dict[str, Any]:
    return {
        "device": {"id": device.id, "activationCode": code, "expiresAt": rfc3339(expires)},
        "instructions": INSTRUCTIONS,
    }


def _status_view(row: Row, seen: Seen, now_ms: int, timeout_ms: int) -> dict[str, Any]:
    """What PostgreSQL holds, with the fresher news of Redis over it."""
    device = device_of(row)
    known = seen.uid == str(device.uid)
    beat = seen.heartbeat if known and seen.heartbeat else {}
    fresh = known and (seen.socket or (seen.beat_ms is not None and now_ms < seen.beat_ms + timeout_ms))
    presence = (seen.presence if fresh else None) or DeviceStatus.OFFLINE.value
    in_touch = known and seen.polled_ms is not None and now_ms < seen.polled_ms + timeout_ms
    seen_ms = [seen.seen_ms] if known and seen.seen_ms else []
    seen_ms += [to_ms(device.last_seen_at)] if device.last_seen_at else []
    beat_at = from_ms(seen.heard_ms) if known and beat and seen.heard_ms else device.last_heartbeat_at
    connection = Connection.POLLING if in_touch else Connection.NONE
    if known and seen.socket:
        connection = Connection.WEBSOCKET
    status = views.device_status(device, presence)
    view: dict[str, Any] = {
        "id": device.id,
        "name": device.name,
        "location": device.location,
        "status": status.value,
        "connection": connection.value,
        "lastSeen": rfc3339_or_none(from_ms(max(seen_ms)) if seen_ms else None),
        "lastHeartbeat": rfc3339_or_none(beat_at),
        "metrics": beat["metrics"] if beat else device.metrics,
        "diagnostics": beat["diagnostics"] if beat else device.diagnostics,
        "pendingCommands": row["pending_commands"],
        "registeredAt": rfc3339_or_none(device.registered_at),
    }
    if row["active_session"] is not None:
        view["activeSession"] = str(row["active_session"])
    return view
