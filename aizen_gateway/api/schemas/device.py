"""Bodies that devices send (contract section 3)."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from ...domain.values import HeartbeatStatus, ResultStatus
from .fields import NAME_CHARACTERS, Integer, Moment, Number, Text, choice, device_id, json_object
from .loading import DeviceBody

_OPTIONAL: dict[str, Any] = {"allow_none": True, "load_default": None}


class RegisterBody(DeviceBody):
    device_id = device_id(data_key="deviceId", required=True)
    activation_code = Text(
        64,
        1,
        data_key="activationCode",
        required=True,
        metadata={"description": "Read case-insensitively, with or without the hyphen.", "example": "7QK4M-X2WTD"},
    )
    device_name = Text(NAME_CHARACTERS, data_key="deviceName", **_OPTIONAL)
    metadata = json_object(metadata={"description": "Anything the device wants to tell of itself."}, **_OPTIONAL)


class AuthBody(DeviceBody):
    device_id = device_id(data_key="deviceId", required=True)
    device_secret = Text(256, 1, data_key="deviceSecret", required=True)


class LogoutBody(DeviceBody):
    pass


class HeartbeatBody(DeviceBody):
    status = choice(HeartbeatStatus, required=True)
    metrics = fields.Dict(
        keys=fields.String(),
        values=Number(),
        metadata={
            "description": "`cpu`, `memory`, `uptime` and any further numbers.",
            "example": {"cpu": 12.5, "memory": 48, "uptime": 86400},
        },
        **_OPTIONAL,
    )
    diagnostics = fields.Raw(metadata={"description": "Any JSON."}, **_OPTIONAL)
    timestamp = Moment(metadata={"description": "The device's own clock."}, **_OPTIONAL)


class ClaimBody(DeviceBody):
    limit = Integer(1, 10, load_default=1, allow_none=True)
    visibility_timeout = Integer(
        1000,
        3_600_000,
        data_key="visibilityTimeout",
        load_default=300_000,
        allow_none=True,
        metadata={"description": "The lease, in milliseconds."},
    )
    wait_ms = Integer(
        0,
        30_000,
        data_key="waitMs",
        load_default=0,
        allow_none=True,
        metadata={"description": "Long poll: how long to wait for a command, in milliseconds."},
    )


class ClaimTokenBody(DeviceBody):
    claim_token = Text(256, 1, data_key="claimToken", required=True)


class ExtendBody(ClaimTokenBody):
    extension_ms = Integer(1000, 300_000, data_key="extensionMs", load_default=300_000, allow_none=True)


class ReleaseBody(ClaimTokenBody):
    pass


class ResultBody(ClaimTokenBody):
    status = choice(ResultStatus, required=True)
    output = fields.String(metadata={"description": "Cut after 131,072 characters."}, **_OPTIONAL)
    error = fields.String(metadata={"description": "Cut after 8,192 characters."}, **_OPTIONAL)
    result = json_object(**_OPTIONAL)
    executed_at = Moment(data_key="executedAt", required=True)
    duration = Number(
        required=True, validate=validate.Range(min=0), metadata={"description": "Milliseconds.", "example": 42}
    )
