"""Diagnostic sessions: opened, listed, read, closed, and what happened in them (contract section 4)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from ..domain import views
from ..domain.clock import from_ms
from ..domain.errors import DeviceNotFound, DeviceSuspended, SessionActive, SessionClosed, SessionNotFound
from ..domain.policy import require_write
from ..domain.records import Session
from ..domain.values import GATEWAY, Answer, IdempotencyKey, Origin, Principal, SessionStatus, SessionType
from ..storage import queries
from ..storage.postgres import Database, Transaction
from ..storage.rows import audit_of, command_of, session_of
from . import cursors
from .dispatch import Dispatcher
from .idempotency import once
from .transitions import end_session, expire_session

_SQL = queries.load("sessions")
_COMMANDS = queries.load("commands")
_DEVICES = queries.load("devices")
_AUDIT = queries.load("audit")
# A session holds few commands for an hour: this bounds the answer, no honest session reaches it.
_MOST_ENTRIES = 10_000


class Sessions:
    """The sessions of a customer. `ttl_s` is how long one lives, in seconds."""

    def __init__(self, database: Database, dispatcher: Dispatcher, ttl_s: int) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._ttl = timedelta(seconds=ttl_s)

    async def open(
        self,
        principal: Principal,
        *,
        device_id: str,
        type: SessionType,
        description: str | None,
        idempotency: IdempotencyKey | None,
        origin: Origin,
    ) -> Answer:
        """Open the one session of a device: active at once for a person's diagnostics, else waiting for approval.

        Raises `DeviceNotFound`, `DeviceSuspended`, `SessionActive`, `Forbidden` and those of an idempotency key.
        """
        require_write(principal)
        async with self._database.transaction(from_ms(principal.now_ms), origin) as transaction:

            async def work() -> Answer:
                session = await self._insert(transaction, principal, device_id, type, description)
                return Answer(201, {"session": views.session_view(session, [])})

            answer = await once(transaction, principal.customer_id, idempotency, work)
        await self._dispatcher.dispatch(transaction.changes)
        return answer

    async def _insert(
        self, transaction: Transaction, principal: Principal, device_id: str, type: SessionType, description: str | None
    ) -> Session:
        device = await transaction.fetchrow(_DEVICES["lock_device"], device_id, principal.customer_id)
        if device is None:
            raise DeviceNotFound
        if device["suspended_at"] is not None:
            raise DeviceSuspended
        row = await transaction.fetchrow(_SQL["lock_open_session_of_device"], device["uid"])
        if row is not None:
            present = session_of(row)
            if present.expires_at > transaction.now:
                raise SessionActive(details={"sessionId": str(present.id)})
            await expire_session(transaction, present, GATEWAY)
        waits = type is SessionType.REMEDIATION or principal.is_service
        row = await transaction.fetchrow(
            _SQL["insert_session"],
            uuid4(),
            principal.customer_id,
            device["uid"],
            device_id,
            type.value,
            (SessionStatus.PENDING_APPROVAL if waits else SessionStatus.ACTIVE).value,
            description,
            principal.actor.id,
            principal.actor.type.value,
            transaction.now,
            transaction.now + self._ttl,
        )
        session = session_of(row)
        transaction.audit("session.opened", principal.actor, session, {"type": type.value, "status": session.status})
        transaction.announce(session, "opened")
        return session

    async def list(
        self, principal: Principal, *, status: str | None, device_id: str | None, limit: int, cursor: str | None
    ) -> dict[str, Any]:
        """A page of sessions, newest first. Raises `InvalidRequest` for a cursor that is none."""
        before = cursors.record(cursor)
        rows = await self._database.fetch(
            _SQL["list_sessions"], principal.customer_id, status, device_id, *before, limit + 1
        )
        page = [session_of(row) for row in rows[:limit]]
        following = cursors.after_record(page[-1].created_at, page[-1].id) if len(rows) > limit else None
        return {"sessions": [views.session_view(session) for session in page], "nextCursor": following}

    async def get(self, principal: Principal, session_id: UUID) -> dict[str, Any]:
        """A session with its commands in the order of their making. Raises `SessionNotFound`."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_SQL["read_session"], session_id, principal.customer_id)
            if row is None:
                raise SessionNotFound
            commands = await connection.fetch(_COMMANDS["commands_of_session"], session_id)
        return {"session": views.session_view(session_of(row), map(command_of, commands))}

    async def close(self, principal: Principal, session_id: UUID, *, origin: Origin) -> dict[str, Any]:
        """End a session; its open commands are canceled. Raises `SessionNotFound`, `SessionClosed`, `Forbidden`."""
        require_write(principal)
        async with self._database.transaction(from_ms(principal.now_ms), origin) as transaction:
            session = await lock_session(transaction, principal, session_id)
            require_open(session, transaction)
            waiting = session.status is SessionStatus.PENDING_APPROVAL
            status = SessionStatus.CANCELED if waiting else SessionStatus.COMPLETED
            session = await end_session(transaction, session, status, principal.actor, "The session was closed.")
            commands = await transaction.fetch(_COMMANDS["commands_of_session"], session_id)
        await self._dispatcher.dispatch(transaction.changes)
        return {"session": views.session_view(session, map(command_of, commands))}

    async def transcript(self, principal: Principal, session_id: UUID) -> dict[str, Any]:
        """Everything that happened in a session, in order. Raises `SessionNotFound`."""
        async with self._database.connection() as connection:
            if await connection.fetchrow(_SQL["read_session"], session_id, principal.customer_id) is None:
                raise SessionNotFound
            rows = await connection.fetch(_AUDIT["transcript"], session_id, principal.customer_id, _MOST_ENTRIES)
        return {"entries": [views.transcript_view(audit_of(row)) for row in rows]}


async def lock_session(transaction: Transaction, principal: Principal, session_id: UUID) -> Session:
    """The session, held until the transaction ends. Raises `SessionNotFound`."""
    row = await transaction.fetchrow(_SQL["lock_session"], session_id, principal.customer_id)
    if row is None:
        raise SessionNotFound
    return session_of(row)


def require_open(session: Session, transaction: Transaction) -> None:
    """Raise `SessionClosed` when the session has ended, whether or not anything has swept yet."""
    if not session.status.is_open or session.expires_at <= transaction.now:
        raise SessionClosed
