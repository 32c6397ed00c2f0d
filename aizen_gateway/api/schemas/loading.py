"""Schemas as they are used: the strictness of each audience, and their failures as the contract's 400."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any, ClassVar

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, pre_load
from multidict import MultiMapping

from ...domain.errors import InvalidRequest
from ..text import printable
from .quick import Quick

_MOST_FIELDS_NAMED = 50


class Body(Schema):
    """A body. `rules` are the JSON Schema keywords for what concerns several fields, for the OpenAPI document."""

    rules: ClassVar[Mapping[str, Any]] = {}


class DeviceBody(Body):
    """A body on the device API: unknown fields are ignored, null counts as absent (agents are not updated with us)."""

    class Meta:
        unknown = EXCLUDE

    @pre_load
    def _without_nulls(self, data: Any, **_options: Any) -> Any:
        if None in data.values():
            return {name: value for name, value in data.items() if value is not None}
        return data


class CustomerBody(Body):
    """A body on the customer API: an unknown field is an error, null is taken only where it can mean "none"."""

    class Meta:
        unknown = RAISE


class Query(Schema):
    """The query parameters of a customer route: an unknown one is an error."""

    class Meta:
        unknown = RAISE


class View(Schema):
    """A shape that the gateway sends, for the OpenAPI document only; clients must bear further fields."""

    class Meta:
        unknown = EXCLUDE


@cache
def _quick_way(schema: Schema) -> Quick | None:
    """Schemas are made once, with the routes."""
    # Rules between fields are the schema's own.
    return None if isinstance(schema, Body) and schema.rules else Quick.of(schema)


def load(schema: Schema, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return `data` checked, under the services' names. Raises `InvalidRequest` naming every wrong field."""
    if (quick := _quick_way(schema)) is not None and (found := quick.load(data)) is not None:
        return found
    try:
        loaded: dict[str, Any] = schema.load(data)
    except ValidationError as error:
        raise InvalidRequest.of(_named(error.messages_dict)) from None
    return loaded


def load_query(schema: Schema, query: MultiMapping[str]) -> dict[str, Any]:
    """As `load`, from query parameters; a repeated one is an error."""
    found: dict[str, str] = {}
    for name, value in query.items():
        if name in found:
            raise InvalidRequest.field(printable(name, 64), "Given more than once.")
        found[name] = value
    return load(schema, found)


def _named(messages: Mapping[Any, Any]) -> dict[str, list[str]]:
    """Field name -> what is wrong with it, in one list whatever is inside the field."""
    named = islice(messages.items(), _MOST_FIELDS_NAMED)
    return {printable(str(name), 64): [*islice(_problems(found), _MOST_FIELDS_NAMED)] for name, found in named}


def _problems(found: Any, *inside: Any) -> Iterator[str]:
    if isinstance(found, Mapping):
        for name, problem in found.items():
            # Of an entry of an object, the validator tells whether its name or its value is wrong.
            yield from _problems(problem, *inside, *(() if name in ("key", "value") and inside else (name,)))
    elif isinstance(found, list):
        for problem in found:
            yield from _problems(problem, *inside)
    else:
        yield f"{printable('.'.join(map(str, inside)), 64)}: {found}" if inside else str(found)
