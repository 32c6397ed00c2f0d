"""Opaque cursors of the lists that go newest first."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from ..domain.clock import EPOCH, from_ms
from ..domain.errors import InvalidRequest


def encode(*parts: Any) -> str:
    """A cursor of JSON values."""
    return base64.urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


def _decode(cursor: str, length: int) -> list[Any]:
    try:
        parts = orjson.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error, UnicodeEncodeError):
        parts = None
    if not isinstance(parts, list) or len(parts) != length:
        raise InvalidRequest.field("cursor", "Not a cursor of this list.")
    return parts


def after_record(moment: datetime, record_id: UUID) -> str:
    """The cursor behind a record, in microseconds: the exact value of the column."""
    microseconds = (moment - EPOCH) // (from_ms(1) - EPOCH) * 1000 + moment.microsecond % 1000
    return encode(microseconds, str(record_id))


def record(cursor: str | None) -> tuple[datetime | None, UUID | None]:
    """What `after_record` encoded. Raises `InvalidRequest` that names `cursor`."""
    if cursor is None:
        return None, None
    microseconds, record_id = _decode(cursor, 2)
    try:
        if not isinstance(microseconds, int):
            raise ValueError
        return from_ms(microseconds // 1000).replace(microsecond=microseconds % 1_000_000), UUID(record_id)
    except (ValueError, OverflowError, AttributeError, TypeError) as error:
        raise InvalidRequest.field("cursor", "Not a cursor of this list.") from error


def number(cursor: str | None) -> int | None:
    """What `encode(<int>)` encoded. Raises `InvalidRequest` that names `cursor`."""
    if cursor is None:
        return None
    (value,) = _decode(cursor, 1)
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidRequest.field("cursor", "Not a cursor of this list.")
    return value
