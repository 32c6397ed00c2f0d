"""Whether two JSON values say the same: for results and requests that are sent again (contract sections 1 and 3)."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(value: Any) -> bytes:
    """SHA-256 of what `value` says after parsing: the order of names counts nothing, and 1 and 1.0 are one number."""
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
