"""Why sockets are closed, and what a client is to make of it: one table for code, documents and tests (section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class CloseCode(IntEnum):
    """Why the gateway closes a socket (contract section 6)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    UNSUPPORTED = 1003
    INVALID_DATA = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    SUPERSEDED = 4409
    TOO_MANY_MESSAGES = 4429


# What a client is to make of each.
CLOSE_MEANINGS: Mapping[CloseCode, str] = {
    CloseCode.NORMAL: "The client has closed, and this is the answer.",
    CloseCode.GOING_AWAY: "The instance goes away (reason `draining`): connect again, after a random moment.",
    CloseCode.UNSUPPORTED: "A binary frame came: only text frames are understood.",
    CloseCode.INVALID_DATA: "A frame that is not UTF-8, or the third one that is no JSON object.",
    CloseCode.POLICY: "The socket may not be had like this; the reason is an error code.",
    CloseCode.TOO_BIG: "A frame of more than 256 KiB came.",
    CloseCode.INTERNAL_ERROR: "The gateway failed: connect again, after a random moment.",
    CloseCode.TRY_AGAIN_LATER: "The client reads too slowly, or what the gateway needs is away: connect again.",
    CloseCode.UNAUTHENTICATED: "The token is missing, not valid, expired, rotated or logged out: get another one.",
    CloseCode.FORBIDDEN: "The device is suspended or deleted, or the user belongs to no customer any more.",
    CloseCode.SUPERSEDED: "A newer connection of the same device is open: do not connect again at once.",
    CloseCode.TOO_MANY_MESSAGES: "Too many messages within a minute: send less.",
}
