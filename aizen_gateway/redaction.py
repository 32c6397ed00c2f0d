"""What must never reach a log line, and how it is taken out (contract section 1: no token, secret, code or JWT).

Two nets: a value under a key that sounds secret is replaced whole, and every other string is searched for what
looks like a credential wherever it stands, so that an exception's text or a library's message is covered too. What
comes out is plain JSON data of bounded size, whatever went in. A word too many hidden is the price.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

REDACTED = "[redacted]"

_MAX_DEPTH = 6
_MAX_ITEMS = 100
_MAX_TEXT = 16 * 1024
# Read this much before anything is left out, so that no cut parts a credential from what gives it away.
_MAX_READ = 4 * _MAX_TEXT

_TELLTALES = (
    "token|secret|passw(?:or)?d|passphrase|authorization|jwt|cookie|api_?-?key|credential|private_?-?key"
    "|activation_?-?code|device_?-?session|dsn"
)
_SECRET_KEY = re.compile(rf"{_TELLTALES}|^(?:code|pw|auth)$", re.IGNORECASE)
# Cheap to look for; a string without any of these holds nothing that the patterns below would find.
_SUSPICIOUS = re.compile(r"eyJ|[=:@]|earer|basic|auth-|[\w-]{40}", re.IGNORECASE)

# Every repetition is bounded or begins at something rare: log lines quote what strangers send, and a pattern that
# is slow on some text would stop the event loop.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # scheme://user:password@host
    (re.compile(r"://[^\s/?#\"'<>]*@"), f"://{REDACTED}@"),
    # A JWT, whole or cut short.
    (re.compile(r"eyJ[\w-]{4,300}(?:\.[\w-]*)+={0,2}", re.ASCII), REDACTED),
    (re.compile(r"\b(Bearer|Basic)(?:\s+|%20)(?!\[redacted\])[^\s\"',;]+", re.IGNORECASE), rf"\1 {REDACTED}"),
    # Sec-WebSocket-Protocol: aizen.v1, auth-<token>
    (re.compile(r"\bauth-[\w.~+/=-]{12,}", re.ASCII), f"auth-{REDACTED}"),
    # ?token=..., secret='...', "deviceSecret": "..."
    (
        re.compile(
            rf"(?P<key>(?:(?:{_TELLTALES})[\w-]{{0,40}}|[?&;]code)(?:\s{{0,4}}=\s{{0,4}}|\\?[\"']\s{{0,4}}:\s{{0,4}}))"
            r"(?!None\b|null\b|True\b|False\b|true\b|false\b)(?P<open>b?(?P<quote>\\?[\"']))?(?!\[redacted\])"
            r"(?(quote)(?:(?!(?P=quote))(?:\\.|[^\\]))+|[^\s\"'&,;<>)}\]#]+)",
            re.IGNORECASE,
        ),
        rf"\g<key>\g<open>{REDACTED}",
    ),
    # A header in a message: the rest of the line may all be secret.
    (
        re.compile(
            r"\b((?:proxy-)?authorization|x-device-(?:token|session)|(?:set-)?cookie|apikey|sec-websocket-protocol)"
            r"(\s{0,4}:\s{0,4})(?!\[redacted\])[^\r\n]+",
            re.IGNORECASE,
        ),
        rf"\1\2{REDACTED}",
    ),
    # A device's session token, which names its device, and a bare 256-bit secret.
    (re.compile(r"\b([A-Za-z0-9][\w-]{2,63})\.[\w-]{40,64}(?![\w-])", re.ASCII), rf"\1.{REDACTED}"),
    (re.compile(r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[A-Z])(?=[\w-]*[a-z])[\w-]{43}(?![\w-])", re.ASCII), REDACTED),
)


def is_secret_key(key: str) -> bool:
    """Whether what stands under this key is hidden whole. `code` is one: log an error's as `error_code`."""
    return _SECRET_KEY.search(key) is not None


def redact_text(text: str) -> str:
    """`text` without credentials, without lone surrogates (no JSON can hold them) and of bounded length."""
    clean = text[:_MAX_READ]
    if not clean.isascii():
        clean = clean.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if _SUSPICIOUS.search(clean):
        for pattern, replacement in _PATTERNS:
            clean = pattern.sub(replacement, clean)
    if len(clean) > _MAX_TEXT or len(text) > _MAX_READ:
        # Both ends: a traceback says what happened in its last line.
        half = _MAX_TEXT // 2
        return f"{clean[:half]} ... of {len(text)} characters ... {clean[-half:]}"
    return clean


def redact(value: object, depth: int = 0) -> Any:
    """`value` as JSON data without secrets. Never raises: what cannot be shown becomes a word saying so."""
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str:
        return redact_text(value)
    if isinstance(value, int | float) and not isinstance(value, Enum):
        return _number(value)
    if depth >= _MAX_DEPTH and isinstance(value, Mapping | list | tuple | set | frozenset):
        return "[too deep]"
    try:
        if isinstance(value, Mapping):
            return redact_mapping(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            return _items(value, len(value), depth)
        return redact_text(_shown(value))
    except Exception:  # whatever a foreign object's own methods raise
        return f"[unprintable {type(value).__name__}]"


def redact_mapping(mapping: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
    """As `redact`, key by key; keys become text."""
    clean: dict[str, Any] = {}
    for key, value in mapping.items():
        if len(clean) >= _MAX_ITEMS:
            clean["..."] = f"{len(mapping)} in all"
            break
        text = redact_text(key if type(key) is str else _shown(key))
        hidden = not isinstance(value, bool | None) and is_secret_key(text)
        clean[text] = REDACTED if hidden else redact(value, depth + 1)
    return clean


def _items(values: Iterable[object], count: int, depth: int) -> list[Any]:
    clean = [redact(value, depth + 1) for _, value in zip(range(_MAX_ITEMS), values, strict=False)]
    return [*clean, f"... {count} in all"] if count > _MAX_ITEMS else clean


def _number(value: float) -> int | float | str:
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else hex(value)[:66]
    return float(value) if math.isfinite(value) else str(float(value))


def _shown(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str | UUID | PurePath):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return repr(bytes(value[:_MAX_READ]))
    return repr(value)
