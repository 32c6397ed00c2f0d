"""The text frames that the gateway sends (contract section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson


def frame(type: str, payload: Mapping[str, Any], request_id: str | None = None) -> bytes:
    """`{"type", "requestId"?, "payload"}` as it goes over the wire."""
    message: dict[str, Any] = {"type": type}
    if request_id is not None:
        message["requestId"] = request_id
    message["payload"] = payload
    return orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS)
