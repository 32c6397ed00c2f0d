"""Free text made safe to store and to log: what no database column and no log line can hold is replaced."""

from __future__ import annotations

import re

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
REPLACEMENT = "\ufffd"


def storable(text: str) -> str:
    """Return `text` with NUL and lone surrogates replaced by U+FFFD (contract section 1)."""
    return _UNSTORABLE.sub(REPLACEMENT, text)


def printable(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`, with control characters replaced as well: for headers."""
    return _UNPRINTABLE.sub(REPLACEMENT, text[:limit])
