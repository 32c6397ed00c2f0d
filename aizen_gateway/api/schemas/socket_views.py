"""Payloads of what the gateway sends over sockets, where REST has no such answer (contract section 6)."""

from __future__ import annotations

from typing import Any, ClassVar

from marshmallow import fields

from ...domain.values import Connection, DeviceStatus, Role
from .customer_views import Command, Session
from .fields import choice
from .loading import View
from .shared_views import count, flag, moment, moment_or_null, text, text_or_null, uuid


class ErrorPayload(View):
    code = text(metadata={"example": "INVALID_REQUEST", "pattern": "^[A-Z][A-Z_]*$"})
    message = text(metadata={"description": "For a person."})
    details = fields.Dict(
        keys=fields.String(),
        metadata={
            "description": "On `INVALID_REQUEST` `fields` names what is wrong; `retryAfter` is seconds.",
            "example": {"fields": {"commandId": ["Missing data for required field."]}},
        },
    )


class Pong(View):
    """Nothing."""


class DeviceGreeting(View):
    device_id = text(data_key="deviceId")
    connection_id = uuid(data_key="connectionId")
    server_time = moment(data_key="serverTime")
    heartbeat_interval_ms = count(data_key="heartbeatIntervalMs", metadata={"example": 30000})
    prefetch = count(metadata={"description": "How many commands are pushed ahead."})


class HeartbeatAck(View):
    timestamp = moment()
    next_heartbeat = count(data_key="nextHeartbeat", metadata={"description": "Milliseconds.", "example": 30000})
    pending_commands = count(data_key="pendingCommands")


class StatusAck(View):
    success = flag()


class CommandCanceled(View):
    id = uuid()
    reason = text_or_null(metadata={"description": "As it was given with the cancel."})


class ConfigUpdate(View):
    heartbeat_interval_ms = fields.Integer(data_key="heartbeatIntervalMs", metadata={"example": 30000})


class PortalGreeting(View):
    customer_id = uuid(data_key="customerId")
    connection_id = uuid(data_key="connectionId")
    server_time = moment(data_key="serverTime")


class AuthSuccess(View):
    customer_id = uuid(data_key="customerId")
    user_id = text(data_key="userId")
    role = choice(Role, required=True)
    expires_at = moment(data_key="expiresAt")


class AuthExpiring(View):
    expires_at = moment(data_key="expiresAt")


class Subscribed(View):
    room = text(metadata={"example": "device:edge-router-01"})
    last_event_id = text_or_null(data_key="lastEventId", metadata={"description": "Null while there is no event."})
    replayed = count(metadata={"description": "How many events follow from the past."})
    complete = flag(metadata={"description": "`false`: some had been dropped already, so reload."})


class Unsubscribed(View):
    room = text(metadata={"example": "device:edge-router-01"})


class RoomsJoined(View):
    rooms = fields.List(fields.String(), required=True, metadata={"description": "All that the socket is now in."})


class DeviceStatusEvent(View):
    device_id = text(data_key="deviceId")
    status = choice(DeviceStatus, required=True)
    connection = choice(Connection, required=True)
    last_seen = moment_or_null(data_key="lastSeen")


class ApprovalRequested(View):
    command = fields.Nested(Command)
    session = fields.Nested(Session)

    rules: ClassVar[dict[str, Any]] = {"oneOf": [{"required": ["command"]}, {"required": ["session"]}]}
