"""Devices, sessions and commands as frozen records, the shape in which the layers hand them around."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from .values import Actor, ActorType, CommandKind, CommandStatus, SessionStatus, SessionType

# {decision, by, at, reason, digest, expiresAt?} as the contract shows it; times are RFC 3339 text.
Approval = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Device:
    """A row of `aizen.devices`, without the hashes of its secrets."""

    uid: UUID
    id: str
    customer_id: UUID
    name: str
    location: str | None
    registered_at: datetime | None
    suspended_at: datetime | None
    presence: str
    connection: str
    last_seen_at: datetime | None
    last_heartbeat_at: datetime | None
    metrics: dict[str, Any] | None
    diagnostics: Any
    credential_epoch: int


@dataclass(frozen=True, slots=True)
class Session:
    """A row of `aizen.sessions`."""

    id: UUID
    customer_id: UUID
    device_uid: UUID
    device_id: str
    type: SessionType
    status: SessionStatus
    description: str | None
    created_by: str
    created_by_type: ActorType
    created_at: datetime
    expires_at: datetime
    closed_at: datetime | None
    approval: Approval | None

    @property
    def creator(self) -> Actor:
        return Actor(self.created_by_type, self.created_by)


@dataclass(frozen=True, slots=True)
class Command:
    """A row of `aizen.commands`.

    `claim_by` is the earliest of its expiry, its session's end and its approval's end. `place` is its position in
    the queue, None until it is queued. `presumed` marks a final state that the gateway concluded by itself and that
    the device's own result may replace once (contract section 3, promise 5).
    """

    id: UUID
    customer_id: UUID
    device_uid: UUID
    device_id: str
    session_id: UUID
    type: str
    kind: CommandKind
    parameters: dict[str, Any]
    digest: str
    priority: int
    status: CommandStatus
    attempt: int
    max_deliveries: int
    timeout_ms: int
    proposed_by: str
    proposed_by_type: ActorType
    reason: str | None
    retry_of: UUID | None
    request_id: str | None
    approval: Approval | None
    place: int | None
    created_at: datetime
    expires_at: datetime
    claim_by: datetime
    due_at: datetime | None
    claim_token: str | None
    claimed_at: datetime | None
    visible_until: datetime | None
    deadline_at: datetime | None
    cancel_reason: str | None
    completed_at: datetime | None
    presumed: bool
    result: dict[str, Any] | None
    result_digest: bytes | None

    @property
    def proposer(self) -> Actor:
        return Actor(self.proposed_by_type, self.proposed_by)


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A row of `aizen.audit`."""

    id: int
    at: datetime
    action: str
    resource: str
    resource_id: str
    actor: str
    actor_type: str
    command_id: UUID | None
    ip: str | None
    user_agent: str | None
    request_id: str | None
    details: dict[str, Any]
