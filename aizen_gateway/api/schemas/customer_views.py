"""Shapes of what customers get (contract section 4), as `domain.views` makes them."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from ...domain.values import (
    ActorType,
    CommandKind,
    CommandStatus,
    Connection,
    DeviceStatus,
    ResultStatus,
    SessionStatus,
    SessionType,
)
from .fields import choice
from .loading import View
from .shared_views import DIGEST_EXAMPLE, count, flag, moment, moment_or_null, text, text_or_null, uuid


class Device(View):
    id = text()
    name = text()
    status = choice(DeviceStatus, required=True)
    last_seen = moment_or_null(data_key="lastSeen")
    location = text_or_null()
    registered_at = moment_or_null(data_key="registeredAt")


class DevicesAnswer(View):
    devices = fields.List(fields.Nested(Device), required=True)
    total = count()
    limit = count()
    offset = count()


class DeviceAnswer(View):
    device = fields.Nested(Device, required=True)


class Activation(View):
    id = text()
    activation_code = text(data_key="activationCode", metadata={"example": "7QK4M-X2WTD"})
    expires_at = moment(data_key="expiresAt")


class ProvisionedAnswer(View):
    device = fields.Nested(Activation, required=True)
    instructions = text()


class DeviceState(Device):
    connection = choice(Connection, required=True)
    last_heartbeat = moment_or_null(data_key="lastHeartbeat")
    metrics = fields.Dict(keys=fields.String(), required=True, allow_none=True)
    diagnostics = fields.Raw(required=True, allow_none=True, metadata={"description": "Any JSON."})
    active_session = fields.UUID(
        data_key="activeSession", metadata={"description": "The open session, where there is one."}
    )
    pending_commands = count(data_key="pendingCommands")


class DeviceStateAnswer(View):
    device = fields.Nested(DeviceState, required=True)


class Approval(View):
    decision = text(metadata={"enum": ["approved", "rejected"]})
    by = text()
    at = moment()
    reason = text_or_null()
    digest = text_or_null(metadata={"example": DIGEST_EXAMPLE})
    expires_at = fields.DateTime(data_key="expiresAt", metadata={"description": "By when it must be claimed."})


class CommandResult(View):
    status = choice(ResultStatus, required=True)
    output = text_or_null()
    error = text_or_null()
    result = fields.Dict(keys=fields.String(), required=True, allow_none=True)
    executed_at = moment(data_key="executedAt")
    duration = fields.Float(required=True, metadata={"description": "Milliseconds."})
    received_at = moment(data_key="receivedAt")
    late = flag()
    truncated = flag()
    original_bytes = fields.Integer(data_key="originalBytes")


class Command(View):
    id = uuid()
    device_id = text(data_key="deviceId")
    session_id = uuid(data_key="sessionId")
    type = text()
    kind = choice(CommandKind, required=True)
    parameters = fields.Dict(keys=fields.String(), required=True)
    priority = count()
    status = choice(CommandStatus, required=True)
    attempt = count()
    max_deliveries = count(data_key="maxDeliveries")
    timeout_ms = count(data_key="timeoutMs")
    digest = text(metadata={"example": DIGEST_EXAMPLE})
    proposed_by = text(data_key="proposedBy")
    created_at = moment(data_key="createdAt")
    expires_at = moment(data_key="expiresAt")
    reason = fields.String()
    retry_of = fields.UUID(data_key="retryOf")
    approval = fields.Nested(Approval)
    claimed_at = fields.DateTime(data_key="claimedAt")
    completed_at = fields.DateTime(data_key="completedAt")
    cancel_reason = fields.String(data_key="cancelReason")
    result = fields.Nested(CommandResult)


class CommandAnswer(View):
    command = fields.Nested(Command, required=True)


class Session(View):
    id = uuid()
    device_id = text(data_key="deviceId")
    type = choice(SessionType, required=True)
    status = choice(SessionStatus, required=True)
    description = text_or_null()
    created_by = text(data_key="createdBy")
    created_at = moment(data_key="createdAt")
    expires_at = moment(data_key="expiresAt")
    closed_at = fields.DateTime(data_key="closedAt")
    approval = fields.Nested(Approval)


class SessionWithCommands(Session):
    commands = fields.List(fields.Nested(Command), required=True)


class SessionAnswer(View):
    session = fields.Nested(Session, required=True)


class SessionWithCommandsAnswer(View):
    session = fields.Nested(SessionWithCommands, required=True)


class Page(View):
    next_cursor = text_or_null(data_key="nextCursor", metadata={"description": "Null on the last page."})


class CommandsPage(Page):
    commands = fields.List(fields.Nested(Command), required=True)


class SessionsPage(Page):
    sessions = fields.List(fields.Nested(Session), required=True)


class Decided(View):
    id = uuid()
    status = text()


class DecisionAnswer(View):
    success = flag()
    command = fields.Nested(Decided, metadata={"description": "Where a command was decided."})
    session = fields.Nested(Decided, metadata={"description": "Where the session was decided."})


class Waiting(View):
    kind = text(metadata={"enum": ["session", "command"]})
    session = fields.Nested(Session, required=True)
    command = fields.Nested(Command)
    requested_by = text(data_key="requestedBy")
    requested_at = moment(data_key="requestedAt")
    expires_at = moment(data_key="expiresAt")


class ApprovalsPage(Page):
    approvals = fields.List(fields.Nested(Waiting), required=True)


class AuditRecord(View):
    id = text()
    at = moment()
    action = text(metadata={"example": "command.approved"})
    resource = text(metadata={"example": "command"})
    resource_id = text(data_key="resourceId")
    actor = text()
    actor_type = choice(ActorType, data_key="actorType", required=True)
    ip = text_or_null()
    user_agent = text_or_null(data_key="userAgent")
    request_id = text_or_null(data_key="requestId")
    details = fields.Dict(keys=fields.String(), required=True)


class AuditPage(Page):
    records = fields.List(fields.Nested(AuditRecord), required=True)


class TranscriptEntry(View):
    id = text()
    at = moment()
    event = text(metadata={"example": "command.claimed"})
    actor = text()
    actor_type = choice(ActorType, data_key="actorType", required=True)
    details = fields.Dict(keys=fields.String(), required=True)
    command_id = fields.UUID(data_key="commandId")


class TranscriptAnswer(View):
    entries = fields.List(fields.Nested(TranscriptEntry), required=True)


def _object(**metadata: Any) -> fields.Dict:
    return fields.Dict(keys=fields.String(), required=True, metadata=metadata)


class SystemAnswer(View):
    version = text()
    build = text()
    environment = text()
    uptime = fields.Float(required=True, metadata={"description": "Seconds."})
    services = _object(description="Whether `database` and `redis` can be reached.")
    connections = _object(description="How many of each kind this instance holds.")
    features = _object(description="What this version can do.")
    limits = _object(description="Calls a minute, and open commands for each device; 0 is no limit.")
