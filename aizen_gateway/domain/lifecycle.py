"""The command lifecycle as a table, and what time alone does to a command (contract sections 3 and 4).

Nothing here does I/O: services ask what may happen, write it down in one transaction, and announce it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from .records import Command
from .values import CommandStatus as S
from .values import ResultStatus

TRANSITIONS: Mapping[S, frozenset[S]] = {
    S.PENDING_APPROVAL: frozenset({S.QUEUED, S.REJECTED, S.CANCELED, S.EXPIRED}),
    S.QUEUED: frozenset({S.CLAIMED, S.CANCELED, S.EXPIRED, S.SUCCEEDED, S.FAILED, S.TIMED_OUT}),
    S.CLAIMED: frozenset(
        {
            S.QUEUED,
            S.CANCEL_REQUESTED,
            S.SUCCEEDED,
            S.FAILED,
            S.TIMED_OUT,
            S.CANCELED,
            S.EXPIRED,
            S.UNDELIVERABLE,
        }
    ),
    S.CANCEL_REQUESTED: frozenset({S.SUCCEEDED, S.FAILED, S.TIMED_OUT, S.CANCELED}),
    S.REJECTED: frozenset(),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELED: frozenset(),
    S.EXPIRED: frozenset(),
    # Presumptions of the gateway: the device's own result may replace them once (promise 5).
    S.TIMED_OUT: frozenset({S.SUCCEEDED, S.FAILED, S.TIMED_OUT, S.CANCELED}),
    S.UNDELIVERABLE: frozenset({S.SUCCEEDED, S.FAILED, S.TIMED_OUT, S.CANCELED}),
}

OPEN = frozenset({S.PENDING_APPROVAL, S.QUEUED, S.CLAIMED, S.CANCEL_REQUESTED})
HELD = frozenset({S.CLAIMED, S.CANCEL_REQUESTED})

FROM_RESULT: Mapping[ResultStatus, S] = {
    ResultStatus.SUCCESS: S.SUCCEEDED,
    ResultStatus.FAILURE: S.FAILED,
    ResultStatus.TIMEOUT: S.TIMED_OUT,
    ResultStatus.CANCELED: S.CANCELED,
}


def is_final(status: S) -> bool:
    """Whether a command in this status has ended."""
    return status not in OPEN


def is_stopped(command: Command) -> bool:
    """Whether a device that took this command is to stop: it was canceled while the device had it."""
    forced = command.status is S.CANCELED and command.claimed_at is not None and command.result is None
    return command.status is S.CANCEL_REQUESTED or forced


def due_at(command: Command) -> datetime | None:
    """When time alone will next change this command; None once it has ended."""
    if command.status in HELD:
        assert command.visible_until is not None
        assert command.deadline_at is not None
        return min(command.visible_until, command.deadline_at)
    return command.claim_by if command.status in OPEN else None


@dataclass(frozen=True, slots=True)
class Lapse:
    """What time has done to a command: the status it now has, and a word for the transcript."""

    status: S
    event: str


def lapse(command: Command, now: datetime) -> Lapse | None:
    """Return what the passing of time has made of `command` by `now`, or None when nothing.

    A lease that ends no later than the execution bound gives the command back to the queue while deliveries are
    left; an execution bound that comes before the lease's end is a time-out (promises 3 and 6).
    """
    if command.status in (S.PENDING_APPROVAL, S.QUEUED):
        return Lapse(S.EXPIRED, "command.expired") if now >= command.claim_by else None
    if command.status not in HELD:
        return None
    assert command.visible_until is not None
    assert command.deadline_at is not None
    if now < min(command.visible_until, command.deadline_at):
        return None
    if command.status is S.CANCEL_REQUESTED:
        if command.visible_until <= command.deadline_at:
            return Lapse(S.CANCELED, "command.canceled")
        return Lapse(S.TIMED_OUT, "command.timed_out")
    if command.deadline_at < command.visible_until:
        return Lapse(S.TIMED_OUT, "command.timed_out")
    if command.attempt >= command.max_deliveries:
        return Lapse(S.UNDELIVERABLE, "command.undeliverable")
    if now >= command.claim_by:
        return Lapse(S.EXPIRED, "command.expired")
    return Lapse(S.QUEUED, "command.lease_expired")


def moved(command: Command, status: S, **changes: object) -> Command:
    """Return `command` in another status, with `due_at` set to fit. Raises `ValueError` for a forbidden move."""
    if status is not command.status and status not in TRANSITIONS[command.status]:
        raise ValueError(f"a command cannot go from {command.status} to {status}")
    after = replace(command, status=status, **changes)  # type: ignore[arg-type]
    return replace(after, due_at=due_at(after))


def lapsed(command: Command, change: Lapse, now: datetime) -> Command:
    """Return `command` after `change`; a presumption keeps its claim token, for the device may still answer."""
    if not is_final(change.status):
        return moved(command, change.status)
    presumed = change.status in (S.TIMED_OUT, S.UNDELIVERABLE)
    return moved(command, change.status, completed_at=now, presumed=presumed)


def claimable_until(expires_at: datetime, session_ends: datetime, approval_ends: datetime | None = None) -> datetime:
    """The moment from which a command is no longer handed out: the earliest of its bounds."""
    bounds = [expires_at, session_ends]
    if approval_ends is not None:
        bounds.append(approval_ends)
    return min(bounds)


def after_ms(moment: datetime, milliseconds: int) -> datetime:
    """`moment` plus `milliseconds`."""
    return moment + timedelta(milliseconds=milliseconds)
