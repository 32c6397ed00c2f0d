"""People approve, and what a person approved is what runs (contract section 4, Approval)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from ..domain import views
from ..domain.clock import from_ms, rfc3339
from ..domain.errors import (
    AlreadyDecided,
    CommandAlreadyCompleted,
    DigestMismatch,
    InvalidRequest,
)
from ..domain.lifecycle import claimable_until, moved
from ..domain.policy import require_person, require_second_person
from ..domain.records import Approval, Command, Session
from ..domain.values import Actor, CommandKind, CommandStatus, Origin, Principal, SessionStatus
from ..storage import queries
from ..storage.postgres import Database, Transaction
from ..storage.rows import command_of, session_of
from . import cursors
from .access import still_member
from .commands import lock_command
from .dispatch import Dispatcher
from .sessions import lock_session, require_open
from .transitions import save_command, save_session

_CUSTOMERS = queries.load("customers")
_SESSIONS = queries.load("sessions")
_COMMANDS = queries.load("commands")


class Approvals:
    """Decisions about sessions and commands. `ttl_s` is how long an approved command may wait, in seconds."""

    def __init__(self, database: Database, dispatcher: Dispatcher, ttl_s: int) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._ttl = timedelta(seconds=ttl_s)

    async def decide(
        self,
        principal: Principal,
        session_id: UUID,
        *,
        approved: bool,
        reason: str | None,
        command_id: UUID | None,
        digest: str | None,
        origin: Origin,
    ) -> dict[str, Any]:
        """Decide a command, or the session when `command_id` is None. Final; of many at once one wins.

        Raises `Forbidden` (a viewer, a service), `SelfApproval`, `AlreadyDecided`, `DigestMismatch`, `SessionClosed`,
        `CommandAlreadyCompleted`, the 404s, `Unavailable`.
        """
        require_person(principal)
        if command_id is None and digest is not None:
            raise InvalidRequest.field("digest", "Goes with commandId: only a command has a digest.")
        async with self._database.transaction(from_ms(principal.now_ms), origin) as transaction:
            session = await lock_session(transaction, principal, session_id)
            principal = replace(principal, role=await still_member(transaction.connection, principal))
            require_person(principal)
            decision = _Decision(transaction, principal, approved, reason, self._ttl)
            if command_id is None:
                body = await decision.of_session(session)
            else:
                command = await lock_command(transaction, principal, session_id, command_id)
                body = await decision.of_command(session, command, digest)
        await self._dispatcher.dispatch(transaction.changes)
        return body

    async def list(self, principal: Principal, *, limit: int, cursor: str | None) -> dict[str, Any]:
        """A page of what now waits for a person, newest first. Raises `InvalidRequest` for a cursor that is none."""
        now, before = from_ms(principal.now_ms), cursors.record(cursor)
        async with self._database.connection() as connection:
            found = await connection.fetch(
                _SESSIONS["waiting_for_a_person"], principal.customer_id, now, *before, limit + 1
            )
            page = found[:limit]
            wanted = [row["id"] for row in page if row["kind"] == "command"]
            rows = await connection.fetch(_COMMANDS["read_commands"], wanted)
            commands = {row["id"]: command_of(row) for row in rows}
            ids = [row["id"] for row in page if row["kind"] == "session"]
            ids += [command.session_id for command in commands.values()]
            rows = await connection.fetch(_SESSIONS["read_sessions"], ids)
        sessions = {row["id"]: session_of(row) for row in rows}
        following = cursors.after_record(page[-1]["created_at"], page[-1]["id"]) if len(found) > limit else None
        approvals = [_waiting(row["id"], sessions, commands) for row in page]
        return {"approvals": approvals, "nextCursor": following}


def _waiting(waiting_id: UUID, sessions: dict[UUID, Session], commands: dict[UUID, Command]) -> dict[str, Any]:
    command = commands.get(waiting_id)
    session = sessions[command.session_id if command else waiting_id]
    view: dict[str, Any] = {"kind": "command" if command else "session", "session": views.session_view(session)}
    if command is not None:
        view["command"] = views.command_view(command)
    view["requestedBy"] = command.proposed_by if command else session.created_by
    view["requestedAt"] = rfc3339(command.created_at if command else session.created_at)
    view["expiresAt"] = rfc3339(command.claim_by if command else session.expires_at)
    return view


class _Decision:
    """One decision in its transaction, whose locks make exactly one of many concurrent ones win."""

    def __init__(
        self, transaction: Transaction, principal: Principal, approved: bool, reason: str | None, ttl: timedelta
    ) -> None:
        self._transaction = transaction
        self._principal = principal
        self._approved = approved
        self._reason = reason
        self._ttl = ttl

    def _approval(self, digest: str | None) -> Approval:
        approval: Approval = {
            "decision": "approved" if self._approved else "rejected",
            "by": self._principal.actor.id,
            "at": rfc3339(self._transaction.now),
            "reason": self._reason,
            "digest": digest,
        }
        if self._approved and digest is not None:
            approval["expiresAt"] = rfc3339(self._transaction.now + self._ttl)
        return approval

    async def _require_another(self, proposer: Actor) -> None:
        if self._approved:
            customer = await self._transaction.fetchrow(_CUSTOMERS["read_customer"], self._principal.customer_id)
            require_second_person(self._principal, proposer, second_approver=customer["require_second_approver"])

    async def of_session(self, session: Session) -> dict[str, Any]:
        """Decide the session. With an approval the diagnostics in it, and what was approved already, are queued."""
        transaction, actor = self._transaction, self._principal.actor
        if session.approval is not None:
            raise AlreadyDecided
        require_open(session, transaction)
        if session.status is SessionStatus.ACTIVE:
            raise AlreadyDecided
        await self._require_another(session.creator)
        approval = self._approval(None)
        if self._approved:
            session = replace(session, status=SessionStatus.ACTIVE, approval=approval)
        else:
            session = replace(session, status=SessionStatus.REJECTED, approval=approval, closed_at=transaction.now)
        word = "approved" if self._approved else "rejected"
        session = await save_session(transaction, session, f"session.{word}", actor, {"reason": self._reason})
        for row in await transaction.fetch(_COMMANDS["lock_open_commands_of_session"], session.id):
            await self._follow(command_of(row), approval)
        return {"success": True, "session": {"id": str(session.id), "status": session.status.value}}

    async def _follow(self, command: Command, approval: Approval) -> None:
        """What the session's decision does to a command that waited in it."""
        transaction, actor = self._transaction, self._principal.actor
        if not self._approved and command.approval is not None:
            # What a person said of the command itself stands.
            after = moved(command, CommandStatus.CANCELED, completed_at=transaction.now, cancel_reason=self._reason)
            await save_command(transaction, after, "command.canceled", actor, {"reason": self._reason})
        elif not self._approved:
            rejection = {**approval, "digest": command.digest}
            after = moved(command, CommandStatus.REJECTED, completed_at=transaction.now, approval=rejection)
            await save_command(transaction, after, "command.rejected", actor, {"reason": self._reason})
        elif command.claim_by > transaction.now and (command.kind is CommandKind.DIAGNOSTIC or command.approval):
            await save_command(transaction, moved(command, CommandStatus.QUEUED), "command.queued", actor)

    async def of_command(self, session: Session, command: Command, digest: str | None) -> dict[str, Any]:
        """Decide one command. An approved one is queued; in a session that still waits, with the session's approval."""
        transaction, actor = self._transaction, self._principal.actor
        if command.approval is not None:
            raise AlreadyDecided
        require_open(session, transaction)
        if command.status is not CommandStatus.PENDING_APPROVAL or command.claim_by <= transaction.now:
            raise _not_waiting(command)
        if digest is not None and digest != command.digest:
            raise DigestMismatch(details={"digest": command.digest})
        await self._require_another(command.proposer)
        details = {"reason": self._reason, "digest": command.digest}
        approval = self._approval(command.digest)
        if not self._approved:
            after = moved(command, CommandStatus.REJECTED, completed_at=transaction.now, approval=approval)
            await save_command(transaction, after, "command.rejected", actor, details)
            return _decided(command, "rejected")
        ends = transaction.now + self._ttl
        status = CommandStatus.QUEUED if session.status is SessionStatus.ACTIVE else CommandStatus.PENDING_APPROVAL
        claim_by = claimable_until(command.expires_at, session.expires_at, ends)
        after = moved(command, status, approval=approval, claim_by=claim_by)
        await save_command(transaction, after, "command.approved", actor, details)
        return _decided(command, "approved")


def _decided(command: Command, word: str) -> dict[str, Any]:
    return {"success": True, "command": {"id": str(command.id), "status": word}}


def _not_waiting(command: Command) -> AlreadyDecided | CommandAlreadyCompleted:
    """Why a command that nobody decided takes no decision: it needed none, or it ended without one."""
    if command.status in (CommandStatus.QUEUED, CommandStatus.CLAIMED, CommandStatus.CANCEL_REQUESTED):
        return AlreadyDecided()
    if command.result is not None or command.claimed_at is not None:
        return AlreadyDecided()
    return CommandAlreadyCompleted()
