"""Commands as customers give them: submitted, canceled, tried again (contract section 4)."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID, uuid4

from ..domain import views
from ..domain.clock import from_ms
from ..domain.digest import command_digest
from ..domain.errors import CommandAlreadyCompleted, CommandNotEnded, CommandNotFound, InvalidRequest, QueueFull
from ..domain.lifecycle import after_ms, claimable_until, is_final, lapse, lapsed
from ..domain.policy import require_write
from ..domain.records import Command, Session
from ..domain.values import (
    GATEWAY,
    MAX_OPEN_COMMANDS,
    Answer,
    CommandKind,
    CommandStatus,
    IdempotencyKey,
    Origin,
    Principal,
    SessionStatus,
)
from ..storage import queries
from ..storage.postgres import Database, Transaction
from ..storage.rows import command_of
from .dispatch import Dispatcher
from .group_orders import GroupOrders, Order, Placing
from .idempotency import once
from .sessions import lock_session, require_open
from .transitions import cancel_command, save_command

_SQL = queries.load("commands")


class Commands:
    """The commands of a customer. Types in `diagnostic_types` only read; every other is remediation."""

    def __init__(self, database: Database, dispatcher: Dispatcher, diagnostic_types: frozenset[str]) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._diagnostic_types = diagnostic_types
        self._orders = GroupOrders(database)

    async def close(self) -> None:
        """Let what runs end."""
        await self._orders.close()

    def _kind(self, type: str) -> CommandKind:
        return CommandKind.DIAGNOSTIC if type in self._diagnostic_types else CommandKind.REMEDIATION

    async def submit(
        self,
        principal: Principal,
        session_id: UUID,
        *,
        type: str,
        parameters: dict[str, Any],
        priority: int,
        timeout_ms: int,
        expires_in_ms: int | None,
        max_deliveries: int | None,
        reason: str | None,
        idempotency: IdempotencyKey | None,
        origin: Origin,
    ) -> Answer:
        """Queue a command, or have it wait for approval; once this returns it is durable.

        Raises `SessionNotFound`, `SessionClosed`, `QueueFull`, `Forbidden` and those of an idempotency key.
        """
        require_write(principal)
        now = from_ms(principal.now_ms)
        expires_at = after_ms(now, expires_in_ms) if expires_in_ms is not None else None
        kind, digest = self._kind(type), _digest(type, parameters)
        order = Order(type, kind, parameters, digest, priority, timeout_ms, expires_at, max_deliveries, reason)
        if idempotency is None:
            change = await self._orders.place(Placing(principal, session_id, order, now, origin))
            if change is not None:
                await self._dispatcher.dispatch([change])
                return Answer(201, {"command": views.command_view(cast("Command", change.record))})
        async with self._database.transaction(now, origin) as transaction:

            async def work() -> Answer:
                session = await lock_session(transaction, principal, session_id)
                require_open(session, transaction)
                return await self._place(transaction, principal, session, order)

            answer = await once(transaction, principal.customer_id, idempotency, work)
        await self._dispatcher.dispatch(transaction.changes)
        return answer

    async def _place(self, transaction: Transaction, principal: Principal, session: Session, order: Order) -> Answer:
        """Insert a command into a locked, open session."""
        if (await transaction.fetchrow(_SQL["count_open_commands"], session.device_uid))["count"] >= MAX_OPEN_COMMANDS:
            raise QueueFull(details={"limit": MAX_OPEN_COMMANDS})
        waits = order.kind is CommandKind.REMEDIATION or session.status is SessionStatus.PENDING_APPROVAL
        status = CommandStatus.PENDING_APPROVAL if waits else CommandStatus.QUEUED
        # An expiry past the session's end would never be reached: what is not claimed by then has expired.
        expires_at = claimable_until(order.expires_at or session.expires_at, session.expires_at)
        row = await transaction.fetchrow(
            _SQL["insert_command"],
            uuid4(),
            session.customer_id,
            session.device_uid,
            session.device_id,
            session.id,
            order.type,
            order.kind.value,
            order.parameters,
            order.digest,
            order.priority,
            status.value,
            order.deliveries,
            order.timeout_ms,
            principal.actor.id,
            principal.actor.type.value,
            order.reason,
            order.retry_of,
            transaction.origin.request_id,
            transaction.now,
            expires_at,
            expires_at,
            expires_at,
        )
        command = command_of(row)
        details = {"type": command.type, "digest": command.digest, "status": command.status.value}
        if order.retry_of is not None:
            details["retryOf"] = str(order.retry_of)
        transaction.audit("command.submitted", principal.actor, command, details)
        # In a session that waits, a diagnostic needs nothing but the session's own approval.
        asks = waits and order.kind is CommandKind.REMEDIATION
        transaction.announce(command, "proposed" if asks else "submitted")
        return Answer(201, {"command": views.command_view(command)})

    async def cancel(
        self,
        principal: Principal,
        session_id: UUID,
        command_id: UUID,
        *,
        reason: str | None,
        force: bool,
        origin: Origin,
    ) -> dict[str, Any]:
        """Cancel an open command, or ask its device to stop.

        Raises `CommandAlreadyCompleted`, the 404s, `Forbidden`.
        """
        require_write(principal)
        ended = False
        async with self._database.transaction(from_ms(principal.now_ms), origin) as transaction:
            await lock_session(transaction, principal, session_id)
            command = await lock_command(transaction, principal, session_id, command_id)
            # Time may have ended the command, or its lease, before anything swept.
            change = lapse(command, transaction.now)
            if change is not None:
                command = await save_command(
                    transaction, lapsed(command, change, transaction.now), change.event, GATEWAY
                )
            ended = is_final(command.status)
            if not ended:
                command = await cancel_command(transaction, command, principal.actor, reason, force=force)
        await self._dispatcher.dispatch(transaction.changes)
        if ended:
            raise CommandAlreadyCompleted
        return {"command": views.command_view(command)}

    async def retry(self, principal: Principal, session_id: UUID, command_id: UUID, *, origin: Origin) -> Answer:
        """Submit a new command like an ended one.

        Raises `SessionClosed`, `CommandNotEnded`, `QueueFull`, the 404s, `Forbidden`.
        """
        require_write(principal)
        async with self._database.transaction(from_ms(principal.now_ms), origin) as transaction:
            session = await lock_session(transaction, principal, session_id)
            source = await lock_command(transaction, principal, session_id, command_id)
            require_open(session, transaction)
            if not is_final(source.status):
                raise CommandNotEnded
            whole = source.expires_at >= session.expires_at
            answer = await self._place(
                transaction,
                principal,
                session,
                Order(
                    source.type,
                    self._kind(source.type),
                    source.parameters,
                    source.digest,
                    source.priority,
                    source.timeout_ms,
                    None if whole else transaction.now + (source.expires_at - source.created_at),
                    source.max_deliveries,
                    source.reason,
                    source.id,
                ),
            )
        await self._dispatcher.dispatch(transaction.changes)
        return answer


async def lock_command(transaction: Transaction, principal: Principal, session_id: UUID, command_id: UUID) -> Command:
    """A command of a session, held until the transaction ends. Raises `CommandNotFound`."""
    row = await transaction.fetchrow(_SQL["lock_command"], command_id, session_id, principal.customer_id)
    if row is None:
        raise CommandNotFound
    return command_of(row)


def _digest(type: str, parameters: dict[str, Any]) -> str:
    try:
        return command_digest(type, parameters)
    except ValueError as error:
        raise InvalidRequest.field("parameters", "Has no canonical JSON form.") from error
