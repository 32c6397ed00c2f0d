"""The body of a result (contract section 3), made to fit before it is sent.

The gateway cuts long texts itself, but takes no request over 256 KiB; what is too long is therefore cut here, and
says so, instead of being refused there.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from aizen_gateway.dev.diagnostics import Outcome
from aizen_gateway.domain.clock import rfc3339
from aizen_gateway.domain.values import MAX_ERROR_CHARACTERS, MAX_OUTPUT_CHARACTERS, ResultStatus

# Half a KiB is left for the claim token and the names around it.
MAX_BODY_BYTES = 256 * 1024 - 512
_MAX_FINDINGS_BYTES = 112 * 1024


def result_body(
    status: ResultStatus,
    *,
    executed_at: datetime,
    duration_ms: int,
    outcome: Outcome | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """Return the result without its claim token, no larger than `MAX_BODY_BYTES` as JSON.

    `executed_at` is an aware datetime. Findings that are too large are left out whole, since half a JSON object is
    none; an output that is too long is cut at its end. `result` then names what happened.
    """
    findings = dict(outcome.result) if outcome is not None else {}
    size = _size(findings)
    if size > _MAX_FINDINGS_BYTES:
        findings = {"agentDroppedBytes": size}
    body: dict[str, Any] = {
        "status": status.value,
        "result": findings,
        "executedAt": rfc3339(executed_at),
        "duration": max(0, duration_ms),
    }
    if error is not None:
        body["error"] = _clean(error)[:MAX_ERROR_CHARACTERS]
    if outcome is not None:
        output = _clean(outcome.output)
        body["output"] = _fitting(output, MAX_BODY_BYTES - _size(body) - 64)
        if len(body["output"]) < len(output):
            findings["agentCutOutputCharacters"] = len(output)
    return body


def _fitting(text: str, room: int) -> str:
    """The longest beginning of `text` that the contract and `room` bytes of JSON allow."""
    low, high = 0, min(len(text), MAX_OUTPUT_CHARACTERS)
    if _size(text[:high]) <= room:
        return text[:high]
    while low < high:
        middle = (low + high + 1) // 2
        if _size(text[:middle]) <= room:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _clean(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot say, and NUL, which the gateway would replace as well."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
