"""The words of the AsyncAPI document: what a reader needs to know before the first frame, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .openapi_text import EXAMPLES as BODIES
from .openapi_text import SECURITY_SCHEMES as REST_SCHEMES

DESCRIPTION = """\
The sockets of devices and portals; `/openapi.json` has the REST API, with the same services and the same error codes.

**Frames** are text, one JSON object each: `type`, `payload`, and `requestId`, which a client may leave out and which
comes back on the answer, in at most 128 characters. Payloads are read as strictly as the bodies of REST: a device's
unknown fields are ignored, a portal's are refused. A message of an unknown type, or one that is wrong, is answered
`error` and the socket goes on. At most 256 KiB a frame; binary frames are refused; no compression.

**Before the upgrade** a handshake is refused with a status and an error body of REST: 400 for wrong query parameters,
401 for a token that is missing or not valid (a portal may send its token as the first message instead), 403 for a page
of an origin that is not allowed and for a user without a customer, 429 and 503 with `Retry-After`.

**Alive**: the gateway pings about every 30 s and drops a peer from which nothing has come for 10 s after. `ping` is
for clients that cannot send protocol pings.

**Close codes**

| code | meaning |
|---|---|
"""

DEVICE = """\
A device has one socket: a newer one supersedes it. Commands are pushed ahead, up to `prefetch` of them, each leased
for `visibilityTimeout` milliseconds; every `command_result`, `release` and ended lease makes room for another. What was
pushed to a socket that is lost stays leased, and is answered over the next one or over REST. Commands that were pushed
less than 5 s before the end, and after which no text frame came, are given back at once.
"""

CUSTOMER = """\
A portal joins rooms: `customer` (every event), `device:<id>` (its sessions' events too) and `session:<id>`; it gives
either `room`, or `deviceId` for `device:<id>`. An event comes once, with the most specific of its rooms. `eventId`s
increase over the customer's whole stream: subscribe with the `lastEventId` that was seen and nothing is missed, for at
least 10 minutes or 1,000 events. Without a token in the handshake the first message must be `auth`, within 10 s. A
service names its customer with `X-Customer-ID`. A portal that does not read is closed 1013 past 256 waiting frames or
1 MiB, and can resume.
"""

ALIAS = "The same as `{address}`, where its messages and operations are described."

SECURITY_SCHEMES: Mapping[str, Mapping[str, str]] = {
    **{
        name: {**scheme, "type": "httpApiKey"} if scheme["type"] == "apiKey" else scheme
        for name, scheme in REST_SCHEMES.items()
    },
    "socketProtocol": {
        "type": "httpApiKey",
        "in": "header",
        "name": "Sec-WebSocket-Protocol",
        "description": "`aizen.v1, auth-<token>`, for browsers, which can set no other header.",
    },
    "socketToken": {
        "type": "httpApiKey",
        "in": "query",
        "name": "token",
        "description": "The token, for clients that can do nothing else: addresses end up in logs.",
    },
}

_COMMAND = "8d4b1f0a-64a5-4a7e-9d53-0f8a7c1e2b90"
_SESSION = "0b7e3f0e-7c52-4a43-9f0c-1d1f3ff5a0b4"

# Payloads by the name of their schema.
EXAMPLES: Mapping[str, Any] = {
    "HeartbeatBody": BODIES["HeartbeatBody"],
    "StatusMessage": {"status": "busy"},
    "ClaimMessage": {"limit": 1, "visibilityTimeout": 60000},
    "ExtendMessage": {"commandId": _COMMAND, **BODIES["ExtendBody"]},
    "ReleaseMessage": {"commandId": _COMMAND, **BODIES["ReleaseBody"]},
    "ResultMessage": {"commandId": _COMMAND, **BODIES["ResultBody"]},
    "AuthMessage": {"token": "the-access-token"},
    "SubscribeMessage": {"room": "device:edge-router-01", "lastEventId": "1769860800000-0"},
    "UnsubscribeMessage": {"deviceId": "edge-router-01"},
    "JoinRoomsMessage": {},
    "SendCommandMessage": {"sessionId": _SESSION, **BODIES["SubmitCommandBody"]},
    "ApproveMessage": {"sessionId": _SESSION, **BODIES["ApproveBody"]},
}
