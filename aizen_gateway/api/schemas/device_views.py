"""Shapes of what devices get (contract section 3)."""

from __future__ import annotations

from marshmallow import fields

from ...domain.values import CommandKind, CommandStatus
from .fields import choice
from .loading import View
from .shared_views import DIGEST_EXAMPLE, count, flag, moment, text, uuid


class RegisteredAnswer(View):
    device_id = text(data_key="deviceId")
    device_secret = text(data_key="deviceSecret", metadata={"description": "Shown this once."})
    customer_id = uuid(data_key="customerId")
    registered_at = moment(data_key="registeredAt")


class AuthenticatedAnswer(View):
    token = text()
    expires_in = count(data_key="expiresIn", metadata={"description": "Seconds.", "example": 604800})
    device_id = text(data_key="deviceId")


class HeartbeatAnswer(View):
    success = flag()
    timestamp = moment()
    next_heartbeat = count(data_key="nextHeartbeat", metadata={"description": "Milliseconds.", "example": 30000})
    pending_commands = count(data_key="pendingCommands")
    acknowledged = flag()


class Claimed(View):
    id = uuid()
    type = text()
    parameters = fields.Dict(keys=fields.String(), required=True)
    priority = count()
    session_id = uuid(data_key="sessionId")
    claim_token = text(data_key="claimToken")
    visible_until = moment(data_key="visibleUntil")
    lease_ms = count(data_key="leaseMs", metadata={"description": "What is left of the lease."})
    attempt = count()
    timeout_ms = count(data_key="timeoutMs")
    expires_at = moment(data_key="expiresAt")
    digest = text(metadata={"example": DIGEST_EXAMPLE})
    timestamp = moment()


class ClaimedAnswer(View):
    commands = fields.List(fields.Nested(Claimed), required=True)


class ExtendedAnswer(View):
    success = flag()
    visible_until = moment(data_key="visibleUntil")
    cancel_requested = fields.Boolean(
        data_key="cancelRequested", metadata={"description": "`true` tells the device to stop."}
    )


class NextCommand(View):
    id = uuid()


class ReportedAnswer(View):
    success = flag()
    status = choice(CommandStatus, required=True, metadata={"description": "The command's."})
    duplicate = flag()
    late = flag()
    next_command = fields.Nested(NextCommand, data_key="nextCommand")


class ReleasedAnswer(View):
    success = flag()


class DeviceCommand(View):
    id = uuid()
    type = text()
    kind = choice(CommandKind, required=True)
    parameters = fields.Dict(keys=fields.String(), required=True)
    priority = count()
    session_id = uuid(data_key="sessionId")
    status = choice(CommandStatus, required=True)
    attempt = count()
    timeout_ms = count(data_key="timeoutMs")
    expires_at = moment(data_key="expiresAt")
    digest = text(metadata={"example": DIGEST_EXAMPLE})
    created_at = moment(data_key="createdAt")
    claim_token = fields.String(data_key="claimToken", metadata={"description": "While the device holds the claim."})
    visible_until = fields.DateTime(data_key="visibleUntil")
    lease_ms = fields.Integer(data_key="leaseMs")
    timestamp = fields.DateTime()
    completed_at = fields.DateTime(data_key="completedAt")


class DeviceCommandAnswer(View):
    command = fields.Nested(DeviceCommand, required=True)
