"""What a caller shows for itself, taken from the request's headers (contract sections 1 and 2)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..domain.errors import InvalidRequest
from .text import printable

_BEARER = re.compile(r"bearer[ \t]+(\S+)[ \t]*\Z", re.ASCII | re.IGNORECASE)
IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,128}\Z", re.ASCII)


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """The token of `Authorization: Bearer`, None when there is none that could be one."""
    match = _BEARER.match(headers.get("Authorization", ""))
    return _token(match[1]) if match else None


def device_token(headers: Mapping[str, str]) -> str | None:
    """A device's session token: `X-Device-Token`, else `X-Device-Session`, else the bearer token."""
    for name in ("X-Device-Token", "X-Device-Session"):
        if value := headers.get(name, "").strip():
            return _token(value)
    return bearer_token(headers)


def customer_header(headers: Mapping[str, str]) -> str | None:
    """`X-Customer-ID` as it was sent, without what could not be logged."""
    value = headers.get("X-Customer-ID")
    return None if value is None else printable(value.strip(), 128)


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """`Idempotency-Key`, None when not sent. Raises `InvalidRequest` unless it is 1-128 printable ASCII characters."""
    value = headers.get("Idempotency-Key")
    if value is not None and not IDEMPOTENCY_KEY.match(value):
        raise InvalidRequest.field("Idempotency-Key", "Must be 1 to 128 printable ASCII characters.")
    return value


def _token(value: str) -> str | None:
    # No token is anything but ASCII, and header bytes that are not UTF-8 arrive as lone surrogates.
    return value if value.isascii() else None
