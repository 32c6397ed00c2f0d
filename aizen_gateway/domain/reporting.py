"""What a device's result does to a command, decided without I/O (contract section 3, promises 4, 5 and 10)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .clock import rfc3339
from .errors import ClaimExpired, CommandAlreadyCompleted, CommandCanceled, InvalidClaimToken
from .lifecycle import FROM_RESULT, HELD, is_final, moved
from .records import Command
from .sameness import fingerprint
from .values import MAX_ERROR_CHARACTERS, MAX_OUTPUT_CHARACTERS, CommandStatus, ResultStatus


@dataclass(frozen=True, slots=True)
class Report:
    """A device's result as it was parsed; `duration` is milliseconds."""

    status: ResultStatus
    output: str | None
    error: str | None
    result: dict[str, Any] | None
    executed_at: datetime
    duration: float

    def digest(self) -> bytes:
        """Tells the same result sent twice from another one: over the known fields as they were parsed."""
        moment = rfc3339(self.executed_at)
        return fingerprint([self.status.value, self.output, self.error, self.result, moment, self.duration])

    def record(self, received_at: datetime, *, late: bool) -> dict[str, Any]:
        """The `result` of the command as the contract shows it; what is over its limit is cut and said to be cut."""
        output, error = self.output, self.error
        cut_output = output is not None and len(output) > MAX_OUTPUT_CHARACTERS
        cut_error = error is not None and len(error) > MAX_ERROR_CHARACTERS
        record: dict[str, Any] = {
            "status": self.status.value,
            "output": output[:MAX_OUTPUT_CHARACTERS] if output is not None else None,
            "error": error[:MAX_ERROR_CHARACTERS] if error is not None else None,
            "result": self.result,
            "executedAt": rfc3339(self.executed_at),
            "duration": self.duration,
            "receivedAt": rfc3339(received_at),
            "late": late,
            "truncated": cut_output or cut_error,
        }
        if cut_output or cut_error:
            record["originalBytes"] = len((output or "").encode()) if cut_output else len((error or "").encode())
        return record


def same_token(command: Command, token: str) -> bool:
    """Whether `token` is that of the latest claim, in constant time."""
    return command.claim_token is not None and hmac.compare_digest(command.claim_token.encode(), token.encode())


@dataclass(frozen=True, slots=True)
class Verdict:
    """The command after a result, None when the result was a repeat and nothing changes."""

    after: Command | None
    late: bool


def take_result(command: Command, token: str, report: Report, now: datetime) -> Verdict:
    """Decide a result that comes with `token`.

    Raises `InvalidClaimToken` for an older token, `CommandCanceled` or `CommandAlreadyCompleted` after the end.
    """
    latest, digest = same_token(command, token), report.digest()
    if is_final(command.status):
        if latest and command.result_digest is not None and hmac.compare_digest(command.result_digest, digest):
            return Verdict(None, bool((command.result or {}).get("late")))
        if not (latest and command.presumed):
            raise ended(command)
    elif not latest:
        raise InvalidClaimToken
    assert command.visible_until is not None
    assert command.deadline_at is not None
    late = is_final(command.status) or now >= min(command.visible_until, command.deadline_at)
    after = moved(
        command,
        FROM_RESULT[report.status],
        completed_at=now,
        presumed=False,
        result=report.record(now, late=late),
        result_digest=digest,
    )
    return Verdict(after, late)


def require_lease(command: Command, token: str, now: datetime) -> None:
    """Check that `token` holds the command at `now`.

    Raises `InvalidClaimToken`, `ClaimExpired`, `CommandCanceled` or `CommandAlreadyCompleted`.
    """
    if is_final(command.status):
        raise ended(command)
    if not same_token(command, token):
        raise InvalidClaimToken
    if command.status not in HELD or command.visible_until is None or command.visible_until <= now:
        raise ClaimExpired
    if command.deadline_at is not None and command.deadline_at <= now:
        raise CommandAlreadyCompleted("The time for its execution is over.")


def ended(command: Command) -> CommandCanceled | CommandAlreadyCompleted:
    """The error that tells a device how the command ended."""
    return CommandCanceled() if command.status is CommandStatus.CANCELED else CommandAlreadyCompleted()
