"""Every failure the gateway expects, each with the stable code of the contract, in one place.

Services raise these; `api.errors` has the table that turns a code into an HTTP status, and sockets send the
same codes (contract sections 1 and 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class GatewayError(Exception):
    """An expected failure that a client is told about.

    `code` is the contract's SNAKE_UPPER code, `message` is for a person and holds no secret, `details` is put into
    the answer as it is, `retry_after` is seconds for the `Retry-After` header.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    default_message: ClassVar[str] = "Something went wrong."

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.message = message or self.default_message
        self.details: dict[str, Any] = dict(details or {})
        self.retry_after = retry_after
        super().__init__(self.message)


class InvalidRequest(GatewayError):
    """400: malformed JSON, a wrong type or value; `details.fields` names what is wrong."""

    code = "INVALID_REQUEST"
    default_message = "The request is not valid."

    @classmethod
    def of(cls, fields: Mapping[str, Any], message: str | None = None) -> InvalidRequest:
        """Build the error from field name -> list of messages."""
        return cls(message, details={"fields": dict(fields)})

    @classmethod
    def field(cls, name: str, problem: str) -> InvalidRequest:
        """Build the error for one field."""
        return cls.of({name: [problem]})


class Unauthenticated(GatewayError):
    """401: no token, or one that is not (or no longer) valid."""

    code = "UNAUTHENTICATED"
    default_message = "A valid token is required."


class InvalidActivationCode(GatewayError):
    """401: wrong, expired, used, locked, or for another device: one answer for all."""

    code = "INVALID_ACTIVATION_CODE"
    default_message = "The activation code is not valid for this device."


class InvalidCredentials(GatewayError):
    """401: unknown device and wrong secret alike."""

    code = "INVALID_CREDENTIALS"
    default_message = "The device id or the secret is not right."


class Forbidden(GatewayError):
    """403: the caller is known but may not do this."""

    code = "FORBIDDEN"
    default_message = "You may not do this."


class NoCustomer(GatewayError):
    """403: the token is good but belongs to no customer (contract section 2)."""

    code = "NO_CUSTOMER"
    default_message = "This account belongs to no customer."


class DeviceSuspended(GatewayError):
    """403: the secret is right but the device is suspended."""

    code = "DEVICE_SUSPENDED"
    default_message = "This device is suspended."


class SelfApproval(GatewayError):
    """403: the customer requires a second approver and the approver proposed it."""

    code = "SELF_APPROVAL"
    default_message = "Whoever proposed it may not approve it."


class InvalidClaimToken(GatewayError):
    """403: not the token of the latest claim."""

    code = "INVALID_CLAIM_TOKEN"
    default_message = "The claim token is not that of the latest claim."


class ClaimExpired(GatewayError):
    """403: the latest claim's token, but its lease has run out."""

    code = "CLAIM_EXPIRED"
    default_message = "The lease of this claim has run out."


class NotFound(GatewayError):
    """404: no such thing, or a thing of another customer."""

    code = "NOT_FOUND"
    default_message = "There is no such resource."


class DeviceNotFound(NotFound):
    """404 for a device."""

    code = "DEVICE_NOT_FOUND"
    default_message = "There is no such device."


class DeviceNotProvisioned(NotFound):
    """404: nobody has provisioned a device of this id."""

    code = "DEVICE_NOT_PROVISIONED"
    default_message = "This device has not been provisioned."


class SessionNotFound(NotFound):
    """404 for a session."""

    code = "SESSION_NOT_FOUND"
    default_message = "There is no such session."


class CommandNotFound(NotFound):
    """404 for a command."""

    code = "COMMAND_NOT_FOUND"
    default_message = "There is no such command."


class MethodNotAllowed(GatewayError):
    """405."""

    code = "METHOD_NOT_ALLOWED"
    default_message = "This method is not allowed here."


class Conflict(GatewayError):
    """409: the state of the thing does not allow it; every use has a code of its own."""


class DeviceExists(Conflict):
    """409: a device of this id is there already."""

    code = "DEVICE_EXISTS"
    default_message = "A device of this id exists already."


class SessionActive(Conflict):
    """409: one open session a device; `details.sessionId` names it."""

    code = "SESSION_ACTIVE"
    default_message = "The device has an open session already."


class SessionClosed(Conflict):
    """409: the session has ended."""

    code = "SESSION_CLOSED"
    default_message = "The session has ended."


class AlreadyDecided(Conflict):
    """409: somebody has decided it before; decisions are final."""

    code = "ALREADY_DECIDED"
    default_message = "This has been decided already, or needs no decision."


class DigestMismatch(Conflict):
    """409: the decision names another digest than the command has."""

    code = "DIGEST_MISMATCH"
    default_message = "The digest is not that of the command."


class CommandAlreadyCompleted(Conflict):
    """409: the command has ended."""

    code = "COMMAND_ALREADY_COMPLETED"
    default_message = "The command has ended already."


class CommandCanceled(Conflict):
    """409: the command was canceled."""

    code = "COMMAND_CANCELED"
    default_message = "The command has been canceled."


class CommandNotEnded(Conflict):
    """409: only an ended command can be retried."""

    code = "COMMAND_NOT_ENDED"
    default_message = "The command has not ended yet."


class QueueFull(Conflict):
    """409: the device holds its maximum of open commands."""

    code = "QUEUE_FULL"
    default_message = "The device holds as many open commands as it may."


class IdempotencyInProgress(Conflict):
    """409: the first call with this key is still under way."""

    code = "IDEMPOTENCY_IN_PROGRESS"
    default_message = "The first call with this Idempotency-Key is still under way."


class IdempotencyKeyReused(GatewayError):
    """422: the key was used before with another body."""

    code = "IDEMPOTENCY_KEY_REUSED"
    default_message = "This Idempotency-Key was used with another body."


class PayloadTooLarge(GatewayError):
    """413."""

    code = "PAYLOAD_TOO_LARGE"
    default_message = "The body is too large."


class UnsupportedMediaType(GatewayError):
    """415."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    default_message = "The body must be application/json in UTF-8."


class RateLimited(GatewayError):
    """429, with `retry_after`."""

    code = "RATE_LIMITED"
    default_message = "Too many requests."


class Unavailable(GatewayError):
    """503: a dependency is down; the same call may be repeated."""

    code = "UNAVAILABLE"
    default_message = "A service the gateway needs is not reachable."

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: int | None = 2,
    ) -> None:
        super().__init__(message, details=details, retry_after=retry_after)


class InDoubt(Unavailable):
    """503: the answer to a commit was lost, and nobody knows whether it has been done."""
