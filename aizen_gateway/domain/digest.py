"""The digest that ties an approval to what runs: SHA-256 of the canonical JSON (RFC 8785) of type and parameters."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

# The canonicalizer takes integers below 2**53; the contract allows 2**53 itself, whose double prints the same digits.
_LARGEST = 2**53


def command_digest(command_type: str, parameters: dict[str, Any]) -> str:
    """Return `sha256:<hex>` of the canonical JSON of `{type, parameters}` (contract section 4, Approval).

    Raises `ValueError` for what JSON cannot say: NaN, infinities, integers beyond ±2**53, lone surrogates.
    """
    canonical = rfc8785.dumps({"type": command_type, "parameters": _within_doubles(parameters)})
    return "sha256:" + hashlib.sha256(canonical).hexdigest()


def _within_doubles(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _within_doubles(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_within_doubles(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) == _LARGEST:
        return float(value)
    return value
