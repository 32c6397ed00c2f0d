"""What is done quickly is done as it is done thoroughly: bodies are parsed and loaded alike on both ways."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import Schema, ValidationError

from aizen_gateway.api import body as bodies
from aizen_gateway.api.schemas import customer, device
from aizen_gateway.api.schemas.loading import Body
from aizen_gateway.api.schemas.quick import Quick
from aizen_gateway.domain.errors import InvalidRequest

_TEXT = st.text(st.sampled_from('ab:"\\{}[],\u00e9\u2028\x00 '), max_size=6)
_NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**53, 2**53 + 1, -(2**53), -(2**53) - 1, 10**18, 10**19]),
    st.floats(allow_nan=False, allow_infinity=False),
)


def _json(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.one_of(st.none(), st.booleans(), numbers, _TEXT),
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXT, inner, max_size=4)),
        max_leaves=12,
    )


_JSON = _json(_NUMBERS)
# What either parser lets through.
_PARSED = _json(st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)))


def outcome(parse: Any, raw: bytes) -> str:
    try:
        return repr(parse(raw))
    except InvalidRequest:
        return "refused"


@given(st.dictionaries(_TEXT, _JSON, max_size=5), st.booleans(), st.sampled_from([(",", ":"), (", ", " : ")]))
def test_a_body_is_parsed_alike_on_both_ways(value: Any, ascii_only: bool, separators: tuple[str, str]) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode("utf-8", "surrogatepass")
    assert outcome(bodies.parse_object, raw) == outcome(bodies._parsed_strictly, raw)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c:", ":"]), _JSON), max_size=5))
def test_doubled_names_are_found_wherever_colons_are(pairs: list[tuple[str, Any]]) -> None:
    inner = "{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs) + "}"
    for text in (inner, f'{{"x":{inner}}}', f'{{"x":[1,{inner}]}}'):
        assert outcome(bodies.parse_object, text.encode()) == outcome(bodies._parsed_strictly, text.encode())


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"1", b'{"a":NaN}', b'{"a":1e400}', b'{"a":-0}', b'{"a":"\xff"}', b'{"a":1,}', b'{"a":01}',
     b'{"a":"\\ud800"}', b'{"a":"\\u003a","a":1}', b'{"a":' + b"9" * 19 + b"}", b'{"a":' + b"1" * 500 + b".5}",
     b'{"a":-9223372036854775809}', b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", b'\xef\xbb\xbf{"a":1}', b'{"a":1} {'],
)  # fmt: skip
def test_odd_bodies_are_judged_alike(raw: bytes) -> None:
    assert outcome(bodies.parse_object, raw) == outcome(bodies._parsed_strictly, raw)


def test_the_quick_way_is_taken() -> None:
    assert bodies._parsed_quickly(b'{"executedAt": "2026-01-02T03:04:05.678Z", "x": {"y": [1, 2.5, null, true]}}')


def schemas() -> list[Body]:
    found = [*vars(customer).values(), *vars(device).values()]
    return [
        one() for one in found if inspect.isclass(one) and issubclass(one, Body) and one.__module__ != Body.__module__
    ]


def of_schema(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies that use the schema's own names, with values of which many fit."""
    names = [field.data_key or name for name, field in schema.load_fields.items()]
    fitting: st.SearchStrategy[Any] = st.sampled_from(
        ["success", "online", "diagnostic", "t", "ping", "router-1", "2026-01-31T12:00:00.5Z", 1, 5, 1000, 2.5, True,
         None, {}, {"cpu": 1.5}, {"a": "b"}, [], -1, "", "x" * 300]
    )  # fmt: skip
    return st.dictionaries(
        st.sampled_from([*names, "unknown"]), st.one_of(fitting, fitting, _PARSED), max_size=len(names) + 1
    )


@pytest.mark.parametrize("schema", schemas(), ids=lambda schema: type(schema).__name__)
@given(data=st.data())
@settings(max_examples=60)
def test_what_is_loaded_quickly_is_what_the_schema_loads(schema: Body, data: st.DataObject) -> None:
    quick = Quick.of(schema)
    body = data.draw(of_schema(schema))
    found = None if quick is None else quick.load(body)
    if found is not None and not schema.rules:
        assert repr(dict(sorted(found.items()))) == repr(dict(sorted(schema.load(body).items())))


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (device.ClaimBody(), {"limit": 10, "waitMs": None}),
        (device.HeartbeatBody(), {"status": "online", "metrics": {"cpu": 1.5}, "firmware": "9"}),
        (
            device.ResultBody(),
            {"claimToken": "t", "status": "success", "executedAt": "2026-01-31T12:00:00Z", "duration": 5},
        ),
        (device.AuthBody(), {"deviceId": "router-1", "deviceSecret": "s"}),
    ],
)
def test_what_devices_send_all_day_is_loaded_quickly(schema: Schema, body: dict[str, Any]) -> None:
    quick = Quick.of(schema)
    assert quick is not None
    assert quick.load(body) == schema.load(body)
    for name in [name for name in body if name not in ("waitMs", "metrics", "firmware", "limit")]:
        assert quick.load({key: value for key, value in body.items() if key != name}) is None
        with pytest.raises(ValidationError):
            schema.load({key: value for key, value in body.items() if key != name})
