"""JSON bodies read strictly: what two parsers could understand differently is refused, and memory is bounded.

The parsing half knows nothing of HTTP, so that frames of a socket are held to the same rules (contract section 1).
Compressed bodies are refused (415): no agent or portal sends them, and a small one could unpack into a huge one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import orjson
from aiohttp import hdrs, web
from aiohttp.web_protocol import PayloadAccessError, RequestPayloadError

from ..domain.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from .text import printable, storable

BODY_LIMIT = 64 * 1024
RESULT_BODY_LIMIT = 256 * 1024
MAX_DEPTH = 64

_LARGEST_INTEGER = 2**53
_MAX_INTEGER_DIGITS = 20
_MAX_FLOAT_CHARACTERS = 400
# The name under which `details.fields` tells what is wrong with a body as a whole.
WHOLE_BODY = "_body"


# Octets: beyond them a body takes its time anyway.
_QUICK_OCTETS = 4096
# Escapes, that may stand for what no text may hold, and numbers that may be too long.
_NOT_QUICK = re.compile(rb"\\u|[0-9]{19}")


class ClientGone(Exception):
    """The client went away while its body was being read: nobody is left to answer."""


def parse_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`, its free text made storable.

    Raises `InvalidRequest` for anything but one object: invalid UTF-8, malformed JSON, NaN and infinities, numbers
    that no double or integer within ±2**53 can hold, doubled names, and nesting deeper than `MAX_DEPTH`.
    """
    found = _parsed_quickly(raw)
    return _parsed_strictly(raw) if found is None else found


def _parsed_quickly(raw: bytes) -> dict[str, Any] | None:
    """What nearly all bodies are, read by a parser that is quick and less strict; None for what it may not judge.

    It takes doubled names without a word. But each name and each text brings its own colons: as many in the object as
    in the bytes, and no name was doubled.
    """
    if len(raw) > _QUICK_OCTETS or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH or _NOT_QUICK.search(raw):
        return None
    try:
        value = orjson.loads(raw)
        return value if type(value) is dict and _colons(value) == raw.count(b":") else None
    except ValueError:
        return None


def _colons(value: dict[str, Any] | list[Any]) -> int:
    """How many colons `value` has as JSON; raises `ValueError` for an integer beyond ±2**53."""
    found = 0
    items: Iterable[Any] = value
    if isinstance(value, dict):
        found, items = len(value), value.values()
        for name in value:
            if ":" in name:
                found += name.count(":")
    for item in items:
        kind = type(item)
        if kind is str:
            found += item.count(":")
        elif kind is dict or kind is list:
            found += _colons(item)
        elif kind is int and not -_LARGEST_INTEGER <= item <= _LARGEST_INTEGER:
            raise ValueError
    return found


def _parsed_strictly(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        _refuse("Not valid UTF-8.")
    except RecursionError:
        _refuse(f"Nested deeper than {MAX_DEPTH} levels.")
    except json.JSONDecodeError as error:
        _refuse(f"Malformed JSON: {error.msg} at line {error.lineno}, column {error.colno}.")
    # No value nests deeper than it has opening brackets, so most bodies need no walk.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    if b"\\u" in raw:
        value = _storable(value)
    if not isinstance(value, dict):
        _refuse("Must be a JSON object.")
    return value


async def read_object(request: web.Request, limit: int = BODY_LIMIT) -> dict[str, Any]:
    """Return the JSON object in the request's body; `{}` when there is none. Raises as `read_json`, `parse_object`."""
    raw = await read_json(request, limit)
    return parse_object(raw) if raw else {}


async def read_json(request: web.Request, limit: int = BODY_LIMIT) -> bytes:
    """Return the request's body, which is said to be JSON; nothing when there is none.

    Never holds more than `limit` bytes. Raises `PayloadTooLarge`, `UnsupportedMediaType`, `InvalidRequest`, and
    `ClientGone` when the connection ends first.
    """
    headers, content = request.headers, request.content
    if content.is_eof() and content.exception() is None:
        # All of it has come already, as nearly always.
        raw = content.read_nowait()
        if len(raw) > limit:
            raise PayloadTooLarge(details={"limitBytes": limit})
        if not raw:
            return raw
        if headers.get(hdrs.CONTENT_TYPE) == "application/json" and hdrs.CONTENT_ENCODING not in headers:
            return raw
        _require_plain(request)
    else:
        declared = request.content_length
        if declared is not None and declared > limit:
            raise PayloadTooLarge(details={"limitBytes": limit})
        _require_plain(request)
        raw = await _read(request, limit)
    if raw and not _is_json(request):
        raise UnsupportedMediaType
    return raw


def _require_plain(request: web.Request) -> None:
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("The body must not be compressed.")


async def _read(request: web.Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    total = 0
    try:
        while chunk := await request.content.readany():
            total += len(chunk)
            if total > limit:
                raise PayloadTooLarge(details={"limitBytes": limit})
            chunks.append(chunk)
    except (ConnectionError, RequestPayloadError, PayloadAccessError) as error:
        if request.transport is None or request.transport.is_closing():
            raise ClientGone from error
        raise InvalidRequest.field(WHOLE_BODY, "The body is not framed as its headers say.") from error
    return b"".join(chunks)


def _is_json(request: web.Request) -> bool:
    if request.content_type != "application/json":
        return False
    return (request.charset or "utf-8").strip('"').lower() in ("utf-8", "utf8")


def _refuse(problem: str, name: str = WHOLE_BODY) -> NoReturn:
    raise InvalidRequest.field(name, problem)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                _refuse("Doubled name.", printable(name, 64))
            seen.add(name)
    return found


def _integer(text: str) -> int:
    if len(text) <= _MAX_INTEGER_DIGITS and -_LARGEST_INTEGER <= (value := int(text)) <= _LARGEST_INTEGER:
        return value
    _refuse("Integers must be within ±2^53.")


def _float(text: str) -> float:
    if len(text) <= _MAX_FLOAT_CHARACTERS and math.isfinite(value := float(text)):
        return value
    _refuse("A number is too large or has too many digits.")


def _constant(text: str) -> NoReturn:
    _refuse(f"{text} is not JSON.")


def _check_depth(value: Any) -> None:
    depth = 0
    containers = [value] if isinstance(value, (dict, list)) else []
    while containers:
        depth += 1
        if depth > MAX_DEPTH:
            _refuse(f"Nested deeper than {MAX_DEPTH} levels.")
        containers = [
            child
            for container in containers
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]


def _storable(value: Any) -> Any:
    """`value` with every string made storable. Names that become equal by it count as doubled."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return _object([(storable(name), _storable(item)) for name, item in value.items()])
    return value
