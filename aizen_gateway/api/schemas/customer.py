"""Bodies and query parameters on the customer API (contract section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from marshmallow import ValidationError, validates_schema

from ...domain.values import CommandStatus, DeviceStatus, SessionStatus, SessionType
from .fields import (
    NAME_CHARACTERS,
    TEXT_CHARACTERS,
    Boolean,
    Integer,
    Name,
    QueryChoice,
    QueryInteger,
    QueryText,
    Text,
    Uuid,
    choice,
    command_type,
    device_id,
    parameters,
)
from .loading import CustomerBody, Query

_NULLABLE: dict[str, Any] = {"allow_none": True, "load_default": None}
# A null where it could be mistaken for another wish, as `commandId` could, is refused.
_ABSENT: dict[str, Any] = {"allow_none": False, "load_default": None}


class EmptyBody(CustomerBody):
    pass


class ProvisionBody(CustomerBody):
    device_id = device_id(data_key="deviceId", required=True)
    name = Name(metadata={"description": "The device's id when not given."}, **_ABSENT)
    location = Text(NAME_CHARACTERS, **_NULLABLE)


class UpdateDeviceBody(CustomerBody):
    name = Name()
    location = Text(NAME_CHARACTERS, allow_none=True)


class OpenSessionBody(CustomerBody):
    device_id = device_id(data_key="deviceId", required=True)
    type = choice(SessionType, required=True)
    description = Text(TEXT_CHARACTERS, **_NULLABLE)


class SubmitCommandBody(CustomerBody):
    type = command_type(required=True)
    parameters = parameters(
        metadata={"description": "At most 16 KiB as compact JSON.", "example": {"target": "127.0.0.1", "count": 3}}
    )
    priority = Integer(1, 10, load_default=5, metadata={"description": "1 is the most urgent."})
    timeout_ms = Integer(
        1000,
        3_600_000,
        data_key="timeoutMs",
        load_default=300_000,
        metadata={"description": "Bounds the execution, counted from the claim."},
    )
    expires_in_ms = Integer(
        1000,
        604_800_000,
        data_key="expiresInMs",
        metadata={"description": "The command is not handed out later; the session's end when not given."},
        **_ABSENT,
    )
    max_deliveries = Integer(
        1,
        20,
        data_key="maxDeliveries",
        metadata={"description": "5 for diagnostics and 1 for remediation when not given."},
        **_ABSENT,
    )
    reason = Text(TEXT_CHARACTERS, **_NULLABLE)


class ApproveBody(CustomerBody):
    approved = Boolean(required=True)
    reason = Text(TEXT_CHARACTERS, metadata={"description": "A rejection needs one that is not blank."}, **_NULLABLE)
    command_id = Uuid(data_key="commandId", metadata={"description": "Without it the session is decided."}, **_ABSENT)
    digest = Text(
        256,
        metadata={"description": "The digest of the command that was looked at; only with `commandId`."},
        **_ABSENT,
    )

    rules: ClassVar[Mapping[str, Any]] = {
        "if": {"properties": {"approved": {"const": False}}},
        "then": {"required": ["reason"], "properties": {"reason": {"type": "string", "pattern": r"\S"}}},
        "dependentRequired": {"digest": ["commandId"]},
    }

    @validates_schema
    def _complete(self, data: dict[str, Any], **_options: Any) -> None:
        if not data["approved"] and not (data["reason"] or "").strip():
            raise ValidationError("A rejection needs a reason.", "reason")
        if data["digest"] is not None and data["command_id"] is None:
            raise ValidationError("Only a command has a digest: name it with commandId.", "digest")


class CancelBody(CustomerBody):
    reason = Text(TEXT_CHARACTERS, **_NULLABLE)
    force = Boolean(load_default=False, metadata={"description": "End a claimed command without waiting."})


class NoQuery(Query):
    pass


class CursorQuery(Query):
    limit = QueryInteger(1, 200, load_default=50)
    cursor = QueryText(512, metadata={"description": "`nextCursor` of the page before; opaque."})


class DevicesQuery(Query):
    status = QueryChoice((*(word.value for word in DeviceStatus), "all"), "all")
    limit = QueryInteger(1, 200, load_default=50)
    offset = QueryInteger(0, 1_000_000_000, load_default=0)
    search = QueryText(NAME_CHARACTERS, metadata={"description": "Part of an id, a name or a location."})


class DeviceCommandsQuery(CursorQuery):
    status = QueryChoice(tuple(word.value for word in CommandStatus))


class SessionsQuery(CursorQuery):
    status = QueryChoice(tuple(word.value for word in SessionStatus))
    device_id = QueryText(64, data_key="deviceId")


class AuditQuery(CursorQuery):
    action = QueryText(100, metadata={"description": "Exactly this action, such as `command.approved`."})
    resource = QueryText(100, metadata={"description": "Exactly this kind of resource, such as `device`."})
