"""Writes a command's or a session's next state, with its audit record and its announcement, in one transaction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from ..domain.errors import CommandNotFound
from ..domain.lifecycle import HELD, moved
from ..domain.records import Command, Session
from ..domain.values import Actor, CommandStatus, DeviceCaller, SessionStatus
from ..storage import queries
from ..storage.postgres import Transaction
from ..storage.rows import command_of, session_of

_COMMANDS = queries.load("commands")
_SESSIONS = queries.load("sessions")


async def lock_command_of_device(transaction: Transaction, caller: DeviceCaller, command_id: UUID) -> Command:
    """A command of this life of a device, held until the transaction ends. Raises `CommandNotFound`."""
    row = await transaction.fetchrow(_COMMANDS["lock_command_of_device"], command_id, caller.uid)
    if row is None:
        raise CommandNotFound
    return command_of(row)


async def save_command(
    transaction: Transaction,
    command: Command,
    event: str,
    actor: Actor,
    details: dict[str, Any] | None = None,
    *,
    change: str = "updated",
) -> Command:
    """Write `command` as it now is; its row must be locked. Returns it as it was written, with its place."""
    row = await transaction.fetchrow(
        _COMMANDS["save_command"],
        command.id,
        command.status.value,
        command.attempt,
        command.approval,
        command.claim_by,
        command.due_at,
        command.claim_token,
        command.claimed_at,
        command.visible_until,
        command.deadline_at,
        command.cancel_reason,
        command.completed_at,
        command.presumed,
        command.result,
        command.result_digest,
    )
    saved = command_of(row)
    transaction.audit(event, actor, saved, details)
    transaction.announce(saved, change)
    return saved


async def save_session(
    transaction: Transaction,
    session: Session,
    event: str,
    actor: Actor,
    details: dict[str, Any] | None = None,
) -> Session:
    """Write `session` as it now is; its row must be locked."""
    row = await transaction.fetchrow(
        _SESSIONS["save_session"], session.id, session.status.value, session.closed_at, session.approval
    )
    saved = session_of(row)
    transaction.audit(event, actor, saved, details)
    transaction.announce(saved)
    return saved


async def cancel_command(
    transaction: Transaction, command: Command, actor: Actor, reason: str | None, *, force: bool = False
) -> Command:
    """Cancel an open command: at once when nobody has it, by asking its device otherwise (contract section 4).

    With `force` it is canceled at once all the same. One that is asked for already stays as it is.
    """
    if command.status in HELD and not force:
        if command.status is CommandStatus.CANCEL_REQUESTED:
            return command
        after = moved(command, CommandStatus.CANCEL_REQUESTED, cancel_reason=reason)
        return await save_command(transaction, after, "command.cancel_requested", actor, {"reason": reason})
    after = moved(command, CommandStatus.CANCELED, cancel_reason=reason, completed_at=transaction.now)
    return await save_command(transaction, after, "command.canceled", actor, {"reason": reason, "force": force})


async def end_session(
    transaction: Transaction,
    session: Session,
    status: SessionStatus,
    actor: Actor,
    reason: str | None,
    *,
    force: bool = False,
) -> Session:
    """Close or cancel a locked session; its open commands are canceled."""
    ended = replace(session, status=status, closed_at=transaction.now)
    for row in await transaction.fetch(_COMMANDS["lock_open_commands_of_session"], session.id):
        await cancel_command(transaction, command_of(row), actor, reason, force=force)
    return await save_session(transaction, ended, f"session.{status.value}", actor, {"reason": reason})


async def expire_session(transaction: Transaction, session: Session, actor: Actor) -> Session:
    """End a locked session whose time is over: what is not claimed expires, what is claimed may finish."""
    for row in await transaction.fetch(_COMMANDS["lock_open_commands_of_session"], session.id):
        command = command_of(row)
        if command.status not in HELD:
            after = moved(command, CommandStatus.EXPIRED, completed_at=transaction.now)
            await save_command(transaction, after, "command.expired", actor)
    ended = replace(session, status=SessionStatus.EXPIRED, closed_at=transaction.now)
    return await save_session(transaction, ended, "session.expired", actor)
