"""The words of the OpenAPI document: what a reader needs to know before the first call, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DESCRIPTION = """\
Devices fetch commands and report results; customers see their devices, open diagnostic sessions, submit commands and
approve those that change something.

**Bodies** are JSON objects in UTF-8, at most 64 KiB (256 KiB for a command's result), not compressed, with
`Content-Type: application/json`. A missing body counts as `{}`. Doubled names, integers beyond ±2^53, numbers that no
double can hold and nesting deeper than 64 levels are refused. In free text NUL and lone surrogates become U+FFFD.
An integer is written without a fraction: `5.0` is refused. Unknown fields are ignored on the device API, where `null`
counts as absent, and refused on the customer API, where unknown or repeated query parameters are refused too; an empty
text parameter there counts as absent.

**Times** are RFC 3339 with an offset; the gateway writes UTC with `Z` and milliseconds. Durations carry their unit in
the name; `expiresIn` is in seconds.

**Errors** all have one shape, `ErrorAnswer`; `error.code` is stable. A thing of another customer is answered like one
that does not exist. `Retry-After` (seconds) comes with 429 and 503: the same call may then be repeated, with the same
`Idempotency-Key` where there is one. An unknown path is 404 `NOT_FOUND`, a wrong method 405 `METHOD_NOT_ALLOWED` with
`Allow`. A body is looked at only after its sender is known, except for claims and heartbeats, which check both at once.
"""

TAGS: list[dict[str, str]] = [
    {"name": "device", "description": "For device agents."},
    {"name": "customer", "description": "For portals, and for services that act for a customer."},
    {"name": "public", "description": "Health and documents; no token."},
]

SECURITY_SCHEMES: Mapping[str, Mapping[str, str]] = {
    "deviceToken": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Device-Token",
        "description": "The session token from `POST /api/v1/device/auth`.",
    },
    "deviceSession": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Device-Session",
        "description": "The same token, under the name that agents in the field use.",
    },
    "deviceBearer": {"type": "http", "scheme": "bearer", "description": "The same token once more."},
    "customerToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A user's Supabase access token.",
    },
    "serviceToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A Supabase JWT whose `role` is `service_role`. It never approves, rejects or decides.",
    },
    "customerId": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Customer-ID",
        "description": "The customer (a UUID) that a service acts for.",
    },
}

RESPONSE_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "X-Request-ID": {
        "description": "The request's own id, or one that was made for it; it is in every log line and record.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "Idempotent-Replay": {
        "description": "`true` when an earlier call with this Idempotency-Key is answered again.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}

_COMMAND = "8d4b1f0a-64a5-4a7e-9d53-0f8a7c1e2b90"
_CLAIM = {"claimToken": "the-claim-token"}

# By the name of the schema.
EXAMPLES: Mapping[str, Any] = {
    "RegisterBody": {"deviceId": "edge-router-01", "activationCode": "7QK4M-X2WTD", "deviceName": "Edge router"},
    "AuthBody": {"deviceId": "edge-router-01", "deviceSecret": "the-device-secret"},
    "HeartbeatBody": {"status": "online", "metrics": {"cpu": 12.5, "memory": 48, "uptime": 86400}},
    "ClaimBody": {"limit": 1, "visibilityTimeout": 60000, "waitMs": 25000},
    "ExtendBody": {**_CLAIM, "extensionMs": 60000},
    "ReleaseBody": _CLAIM,
    "ResultBody": {
        **_CLAIM,
        "status": "success",
        "output": "3 packets transmitted, 3 received",
        "result": {"sent": 3, "received": 3},
        "executedAt": "2026-01-31T12:00:00.000Z",
        "duration": 2041,
    },
    "ProvisionBody": {"deviceId": "edge-router-01", "name": "Edge router", "location": "Basement"},
    "UpdateDeviceBody": {"location": "Roof"},
    "OpenSessionBody": {"deviceId": "edge-router-01", "type": "diagnostic", "description": "Slow uplink"},
    "SubmitCommandBody": {"type": "ping", "parameters": {"target": "127.0.0.1", "count": 3}},
    "ApproveBody": {"approved": True, "commandId": _COMMAND},
    "CancelBody": {"reason": "No longer needed"},
    "AliveAnswer": {"status": "ok", "timestamp": "2026-01-31T12:00:00.000Z"},
    "ReadyAnswer": {"ready": True, "checks": {"database": True, "redis": True}},
}
