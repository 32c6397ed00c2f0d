"""Database rows as the records of the domain."""

from __future__ import annotations

from typing import Any

from ..domain.records import AuditRecord, Command, Device, Session
from ..domain.values import ActorType, CommandKind, CommandStatus, SessionStatus, SessionType

Row = Any  # asyncpg.Record


def command_of(row: Row) -> Command:
    """A row of `aizen.commands`."""
    return Command(
        id=row["id"],
        customer_id=row["customer_id"],
        device_uid=row["device_uid"],
        device_id=row["device_id"],
        session_id=row["session_id"],
        type=row["type"],
        kind=CommandKind(row["kind"]),
        parameters=row["parameters"],
        digest=row["digest"],
        priority=row["priority"],
        status=CommandStatus(row["status"]),
        attempt=row["attempt"],
        max_deliveries=row["max_deliveries"],
        timeout_ms=row["timeout_ms"],
        proposed_by=row["proposed_by"],
        proposed_by_type=ActorType(row["proposed_by_type"]),
        reason=row["reason"],
        retry_of=row["retry_of"],
        request_id=row["request_id"],
        approval=row["approval"],
        place=row["place"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        claim_by=row["claim_by"],
        due_at=row["due_at"],
        claim_token=row["claim_token"],
        claimed_at=row["claimed_at"],
        visible_until=row["visible_until"],
        deadline_at=row["deadline_at"],
        cancel_reason=row["cancel_reason"],
        completed_at=row["completed_at"],
        presumed=row["presumed"],
        result=row["result"],
        result_digest=row["result_digest"],
    )


def session_of(row: Row) -> Session:
    """A row of `aizen.sessions`."""
    return Session(
        id=row["id"],
        customer_id=row["customer_id"],
        device_uid=row["device_uid"],
        device_id=row["device_id"],
        type=SessionType(row["type"]),
        status=SessionStatus(row["status"]),
        description=row["description"],
        created_by=row["created_by"],
        created_by_type=ActorType(row["created_by_type"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        closed_at=row["closed_at"],
        approval=row["approval"],
    )


def device_of(row: Row) -> Device:
    """A row of `aizen.devices`."""
    return Device(
        uid=row["uid"],
        id=row["id"],
        customer_id=row["customer_id"],
        name=row["name"],
        location=row["location"],
        registered_at=row["registered_at"],
        suspended_at=row["suspended_at"],
        presence=row["presence"],
        connection=row["connection"],
        last_seen_at=row["last_seen_at"],
        last_heartbeat_at=row["last_heartbeat_at"],
        metrics=row["metrics"],
        diagnostics=row["diagnostics"],
        credential_epoch=row["credential_epoch"],
    )


def audit_of(row: Row) -> AuditRecord:
    """A row of `aizen.audit`."""
    return AuditRecord(
        id=row["id"],
        at=row["at"],
        action=row["action"],
        resource=row["resource"],
        resource_id=row["resource_id"],
        actor=row["actor"],
        actor_type=row["actor_type"],
        command_id=row["command_id"],
        ip=row["ip"],
        user_agent=row["user_agent"],
        request_id=row["request_id"],
        details=row["details"],
    )
