"""Fields that take exactly the JSON type the contract names: no "5" for 5, no true for 1, no 5.0 for 5.

marshmallow's own fields convert what they can; two agents that send the same thing differently would then be told
that they agree (promise 5 compares results), and OpenAPI would promise less than is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson
from marshmallow import ValidationError, fields, validate

from ...domain.values import COMMAND_TYPE, DEVICE_ID, MAX_PARAMETERS_BYTES
from ..text import storable

NAME_CHARACTERS = 200
TEXT_CHARACTERS = 2000

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z", re.ASCII | re.IGNORECASE)
_TIME = re.compile(r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,64}))?([Zz]|[+-]\d{2}:\d{2})\Z", re.ASCII)
_QUERY_INTEGER = re.compile(r"-?[0-9]{1,15}\Z", re.ASCII)


def parse_uuid(text: str) -> UUID | None:
    """The UUID that `text` writes in the usual form with hyphens, else None."""
    return UUID(text) if _UUID.match(text) else None


class Integer(fields.Integer):
    """A JSON integer between `least` and `most`."""

    def __init__(self, least: int, most: int, **options: Any) -> None:
        super().__init__(strict=True, validate=validate.Range(least, most), **options)


class QueryInteger(Integer):
    """As `Integer`, from the digits of a query parameter."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> int:
        if not isinstance(value, str) or not _QUERY_INTEGER.match(value):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(int(value), attr, data, **options)


class Number(fields.Float):
    """A JSON number, kept as it was written: an integer stays one."""

    def _validated(self, value: Any) -> float:
        if type(value) not in (int, float):
            raise self.make_error("invalid", input=value)
        number: float = value
        return number


class Boolean(fields.Boolean):
    """`true` or `false`."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Moment(fields.DateTime):
    """An RFC 3339 time with its offset, as an aware datetime in UTC."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> datetime:
        match = _TIME.match(value) if isinstance(value, str) else None
        if match is None:
            raise ValidationError("Not an RFC 3339 time with an offset.")
        day, clock, fraction, offset = match.groups()
        microseconds = (fraction or "0")[:6].ljust(6, "0")
        try:
            moment = datetime.fromisoformat(f"{day}T{clock}.{microseconds}{offset.upper().replace('Z', '+00:00')}")
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValidationError("There is no such time.") from None


class Uuid(fields.UUID):
    """A UUID in its usual form."""

    def _validated(self, value: Any) -> UUID:
        found = parse_uuid(value) if isinstance(value, str) else None
        if found is None:
            raise self.make_error("invalid_uuid")
        return found


class Text(fields.String):
    """Free text of at most `most` characters."""

    def __init__(self, most: int, least: int = 0, **options: Any) -> None:
        super().__init__(validate=validate.Length(least or None, most), **options)


class Name(fields.String):
    """A name for people: not blank."""

    def __init__(self, **options: Any) -> None:
        metadata = {"minLength": 1, "maxLength": NAME_CHARACTERS, "pattern": r"\S", **options.pop("metadata", {})}
        super().__init__(validate=_name, metadata=metadata, **options)


class Patterned(fields.String):
    """Text of one of the contract's patterns, shown in OpenAPI in the dialect that it wants."""

    def __init__(self, pattern: re.Pattern[str], problem: str, example: str, **options: Any) -> None:
        shown = "^" + pattern.pattern.removesuffix(r"\Z") + "$"
        metadata = {"pattern": shown, "example": example, **options.pop("metadata", {})}
        super().__init__(validate=_matching(pattern, problem), metadata=metadata, **options)


def device_id(**options: Any) -> Patterned:
    """The field for a device's id (contract section 1)."""
    problem = "Must be 3 to 64 letters, digits, '_' or '-', and begin with a letter or digit."
    return Patterned(DEVICE_ID, problem, "edge-router-01", **options)


def command_type(**options: Any) -> Patterned:
    """The field for a command's type (contract section 3)."""
    problem = "Must be a lower-case letter and up to 63 lower-case letters, digits, '_', '.' or '-'."
    return Patterned(COMMAND_TYPE, problem, "ping", **options)


def choice(words: type[StrEnum], **options: Any) -> fields.Enum[Any]:
    """A field for one of the words of an enumeration."""
    return fields.Enum(words, by_value=fields.String, **options)


def parameters(**options: Any) -> fields.Dict:
    """The field for a command's parameters: an object of at most 16 KiB as compact JSON."""
    return fields.Dict(keys=fields.String(), validate=_small_enough, load_default=dict, **options)


def json_object(**options: Any) -> fields.Dict:
    """A field for any JSON object."""
    return fields.Dict(keys=fields.String(), **options)


class QueryText(fields.String):
    """Free text from a query parameter; an empty one counts as absent."""

    def __init__(self, most: int, **options: Any) -> None:
        super().__init__(validate=validate.Length(max=most), load_default=None, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> Any:
        return storable(super()._deserialize(value, attr, data, **options)) or None

    def _validate(self, value: Any) -> None:
        if value is not None:
            super()._validate(value)


class QueryChoice(fields.String):
    """One of some words from a query parameter; an empty one counts as absent."""

    def __init__(self, words: tuple[str, ...], default: str | None = None, **options: Any) -> None:
        self._words = frozenset(words)
        self._default = default
        super().__init__(load_default=default, metadata={"enum": [*words, ""]}, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> Any:
        if value == "":
            return self._default
        if value not in self._words:
            raise ValidationError("Must be one of: " + ", ".join(sorted(self._words)) + ".")
        return value


def _name(value: str) -> None:
    if not value.strip():
        raise ValidationError("Must not be blank.")
    if len(value) > NAME_CHARACTERS:
        raise ValidationError(f"Longer than maximum length {NAME_CHARACTERS}.")


def _matching(pattern: re.Pattern[str], problem: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        if not pattern.match(value):
            raise ValidationError(problem)

    return check


def _small_enough(value: dict[str, Any]) -> None:
    if len(orjson.dumps(value)) > MAX_PARAMETERS_BYTES:
        raise ValidationError(f"Larger than {MAX_PARAMETERS_BYTES} bytes as JSON.")
