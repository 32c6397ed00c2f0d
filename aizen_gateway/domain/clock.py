"""Times as the contract writes them: RFC 3339, UTC, `Z`, milliseconds (section 1)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def from_ms(milliseconds: int) -> datetime:
    """Milliseconds since the epoch as an aware datetime, exactly."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def to_ms(moment: datetime) -> int:
    """An aware datetime as whole milliseconds since the epoch, rounded down."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def rfc3339(moment: datetime) -> str:
    """`2026-01-31T12:00:00.000Z`. Takes an aware datetime."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def rfc3339_or_none(moment: datetime | None) -> str | None:
    """As `rfc3339`, with None for None."""
    return None if moment is None else rfc3339(moment)


def rfc3339_ms(ms: int) -> str:
    """As `rfc3339` of `from_ms`, for moments that follow each other: the second's text is made once."""
    second, rest = divmod(ms, 1000)
    return f"{_second_text(second)}.{rest:03d}Z"


@lru_cache(maxsize=64)
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
