"""Records as the JSON of the contract. One place, so that REST answers and events never differ (section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from .clock import rfc3339, rfc3339_or_none, to_ms
from .lifecycle import HELD
from .records import AuditRecord, Command, Device, Session
from .values import DeviceStatus

View = dict[str, Any]


def device_status(device: Device, presence: str | None = None) -> DeviceStatus:
    """What a customer sees: suspension first, then registration, then `presence` (from the row when None)."""
    if device.suspended_at is not None:
        return DeviceStatus.SUSPENDED
    if device.registered_at is None:
        return DeviceStatus.PROVISIONED
    return DeviceStatus(presence or device.presence)


def device_view(device: Device) -> View:
    """`Device` of a list."""
    return {
        "id": device.id,
        "name": device.name,
        "status": device_status(device).value,
        "lastSeen": rfc3339_or_none(device.last_seen_at),
        "location": device.location,
        "registeredAt": rfc3339_or_none(device.registered_at),
    }


def command_view(command: Command) -> View:
    """`Command` as customers see it."""
    view: View = {
        "id": str(command.id),
        "deviceId": command.device_id,
        "sessionId": str(command.session_id),
        "type": command.type,
        "kind": command.kind.value,
        "parameters": command.parameters,
        "priority": command.priority,
        "status": command.status.value,
        "attempt": command.attempt,
        "maxDeliveries": command.max_deliveries,
        "timeoutMs": command.timeout_ms,
        "digest": command.digest,
        "proposedBy": command.proposed_by,
        "createdAt": rfc3339(command.created_at),
        "expiresAt": rfc3339(command.expires_at),
    }
    if command.reason is not None:
        view["reason"] = command.reason
    if command.retry_of is not None:
        view["retryOf"] = str(command.retry_of)
    if command.approval is not None:
        view["approval"] = command.approval
    if command.claimed_at is not None:
        view["claimedAt"] = rfc3339(command.claimed_at)
    if command.completed_at is not None:
        view["completedAt"] = rfc3339(command.completed_at)
    if command.cancel_reason is not None:
        view["cancelReason"] = command.cancel_reason
    if command.result is not None:
        view["result"] = command.result
    return view


def claimed_view(command: Command, now: datetime) -> View:
    """`Claimed`: what a device gets with its claim. `now` is the lease clock; `leaseMs` is what is left."""
    assert command.visible_until is not None
    return {
        "id": str(command.id),
        "type": command.type,
        "parameters": command.parameters,
        "priority": command.priority,
        "sessionId": str(command.session_id),
        "claimToken": command.claim_token,
        "visibleUntil": rfc3339(command.visible_until),
        "leaseMs": max(0, to_ms(command.visible_until) - to_ms(now)),
        "attempt": command.attempt,
        "timeoutMs": command.timeout_ms,
        "expiresAt": rfc3339(command.expires_at),
        "digest": command.digest,
        "timestamp": rfc3339(now),
    }


def device_command_view(command: Command, now: datetime) -> View:
    """A command as its device may see it: the claim's fields while it holds the claim (section 3)."""
    view: View = {
        "id": str(command.id),
        "type": command.type,
        "kind": command.kind.value,
        "parameters": command.parameters,
        "priority": command.priority,
        "sessionId": str(command.session_id),
        "status": command.status.value,
        "attempt": command.attempt,
        "timeoutMs": command.timeout_ms,
        "expiresAt": rfc3339(command.expires_at),
        "digest": command.digest,
        "createdAt": rfc3339(command.created_at),
    }
    if command.status in HELD and command.visible_until is not None and command.visible_until > now:
        view |= claimed_view(command, now)
    if command.completed_at is not None:
        view["completedAt"] = rfc3339(command.completed_at)
    return view


def session_view(session: Session, commands: Iterable[Command] | None = None) -> View:
    """A session; with its commands when they are given."""
    view: View = {
        "id": str(session.id),
        "deviceId": session.device_id,
        "type": session.type.value,
        "status": session.status.value,
        "description": session.description,
        "createdBy": session.created_by,
        "createdAt": rfc3339(session.created_at),
        "expiresAt": rfc3339(session.expires_at),
    }
    if session.closed_at is not None:
        view["closedAt"] = rfc3339(session.closed_at)
    if session.approval is not None:
        view["approval"] = session.approval
    if commands is not None:
        view["commands"] = [command_view(command) for command in commands]
    return view


def audit_view(record: AuditRecord) -> View:
    """A record of `GET /audit`."""
    return {
        "id": str(record.id),
        "at": rfc3339(record.at),
        "action": record.action,
        "resource": record.resource,
        "resourceId": record.resource_id,
        "actor": record.actor,
        "actorType": record.actor_type,
        "ip": record.ip,
        "userAgent": record.user_agent,
        "requestId": record.request_id,
        "details": record.details,
    }


def transcript_view(record: AuditRecord) -> View:
    """An entry of a session's transcript."""
    view: View = {
        "id": str(record.id),
        "at": rfc3339(record.at),
        "event": record.action,
        "actor": record.actor,
        "actorType": record.actor_type,
        "details": record.details,
    }
    if record.command_id is not None:
        view["commandId"] = str(record.command_id)
    return view
