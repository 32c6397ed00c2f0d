"""Loads bodies that are as they should be without the schema's machinery, from which it is made and to which it defers.

For a good body the result is that of the schema; whatever is not plainly good is left to the schema, which knows what
to say about it. A schema with a field of a kind that is not known here has no quick way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from marshmallow import EXCLUDE, Schema, ValidationError, fields, missing

from .fields import Integer, Moment, Number, Patterned, Text

# Returns the loaded value, or raises `ValidationError`.
Check = Callable[[Any], Any]


class _Field(NamedTuple):
    key: str
    attribute: str
    required: bool
    default: Any
    check: Check


class Quick:
    """The quick way of one schema. `fields` are all that it has; `strict` when an unknown one is an error."""

    def __init__(self, found: Sequence[_Field], *, strict: bool) -> None:
        self._fields = found
        self._strict = strict

    @classmethod
    def of(cls, schema: Schema) -> Quick | None:
        """The quick way of `schema`, None when it has none."""
        found = []
        for name, field in schema.load_fields.items():
            check = _check_of(field)
            if check is None or callable(field.required):
                return None
            found.append(
                _Field(field.data_key or name, field.attribute or name, field.required, field.load_default, check)
            )
        return cls(found, strict=schema.unknown != EXCLUDE)

    def load(self, data: Mapping[str, Any]) -> dict[str, Any] | None:
        """`data` as the schema would load it, None when the schema itself must see it."""
        loaded: dict[str, Any] = {}
        used, strict = 0, self._strict
        try:
            for key, attribute, required, default, check in self._fields:
                value = data.get(key, missing)
                if value is missing or (value is None and not strict):
                    if required:
                        return None
                    if default is not missing:
                        loaded[attribute] = default() if callable(default) else default
                else:
                    used += 1
                    loaded[attribute] = check(value)
        except ValidationError:
            return None
        return None if strict and used != len(data) else loaded


def _check_of(field: fields.Field[Any]) -> Check | None:
    """The check of one field; None for a kind that is not known."""
    convert = _convert_of(field)
    if convert is None or not field.validators:
        return convert
    validators = tuple(field.validators)

    def check(value: Any) -> Any:
        found = convert(value)
        for validate in validators:
            validate(found)
        return found

    return check


def _convert_of(field: fields.Field[Any]) -> Check | None:
    kind = type(field)
    if kind is Integer:
        return _exactly(int)
    if kind is Number:
        return _number
    if kind in (fields.String, Text, Patterned):
        return _exactly(str)
    if kind is Moment:
        return lambda value: field._deserialize(value, None, None)
    if kind is fields.Raw:
        return _not_none
    if isinstance(field, fields.Enum):
        return _word({word.value: word for word in field.enum})
    if isinstance(field, fields.Dict) and type(field.key_field) in (fields.String, type(None)):
        if field.value_field is None:
            return _object
        if type(field.value_field) is Number and not field.value_field.validators:
            return _numbers
    return None


def _refuse() -> ValidationError:
    return ValidationError("Not plainly good.")


def _exactly(kind: type) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise _refuse()
        return value

    return check


def _number(value: Any) -> Any:
    if type(value) is not int and type(value) is not float:
        raise _refuse()
    return value


def _not_none(value: Any) -> Any:
    if value is None:
        raise _refuse()
    return value


def _word(words: Mapping[Any, Any]) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not str or value not in words:
            raise _refuse()
        return words[value]

    return check


def _object(value: Any) -> Any:
    if type(value) is not dict:
        raise _refuse()
    return value


def _numbers(value: Any) -> Any:
    for number in _object(value).values():
        _number(number)
    return value
