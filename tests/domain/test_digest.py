"""The digest that ties an approval to what runs: RFC 8785, then SHA-256 (contract section 4, Approval)."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aizen_gateway.domain.digest import command_digest

# RFC 8785, appendix B: the bits of a double, and how it is written.
NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts
documents = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
without_floats = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
parameters = st.dictionaries(texts, documents, max_size=5)


def digest_of(canonical: str) -> str:
    """The digest of a command of type `ping` whose parameters are `canonical`."""
    return "sha256:" + hashlib.sha256(f'{{"parameters":{canonical},"type":"ping"}}'.encode()).hexdigest()


def written(value: Any) -> str:
    """Canonical JSON of anything but floats, written down once more from the rules."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{written(name)}:{written(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize(("bits", "text"), NUMBERS)
def test_numbers_are_written_as_the_rfc_writes_them(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert command_digest("ping", {"n": number}) == digest_of(f'{{"n":{text}}}')


def test_names_are_sorted_by_their_utf_16_code_units() -> None:
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    order = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    canonical = "{" + ",".join(f"{json.dumps(name, ensure_ascii=False)}:0" for name in order) + "}"
    assert command_digest("ping", dict.fromkeys(names, 0)) == digest_of(canonical)


def test_strings_are_escaped_as_the_rfc_escapes_them() -> None:
    text = '\u20ac$\x0f\nA\'B"\\\\"/\x7f\u2028\b\t\f\r'
    canonical = '{"s":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f\u2028\\b\\t\\f\\r"}'
    assert command_digest("ping", {"s": text}) == digest_of(canonical)


def test_the_example_of_the_rfc() -> None:
    example = json.loads(
        r"""{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
             "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
             "literals": [null, true, false]}"""
    )
    canonical = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert command_digest("ping", example) == digest_of(canonical)


@given(st.dictionaries(texts, without_floats, max_size=5))
def test_everything_but_floats_is_written_by_the_rules(found: dict[str, Any]) -> None:
    assert command_digest("ping", found) == digest_of(written(found))


@given(parameters, st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(found: dict[str, Any], random: Any) -> None:
    names = list(found)
    random.shuffle(names)
    assert command_digest("ping", {name: found[name] for name in names}) == command_digest("ping", found)


@given(parameters)
def test_what_went_over_the_wire_has_the_same_digest(found: dict[str, Any]) -> None:
    assert command_digest("ping", json.loads(json.dumps(found))) == command_digest("ping", found)


@given(st.integers(-(2**53), 2**53))
def test_a_whole_number_is_the_same_however_it_was_written(number: int) -> None:
    assert command_digest("ping", {"n": number}) == command_digest("ping", {"n": float(number)})


def test_type_and_parameters_both_count() -> None:
    digests = {
        command_digest("ping", {}),
        command_digest("dns", {}),
        command_digest("ping", {"a": 1}),
        command_digest("ping", {"a": 2}),
        command_digest("ping", {"a": "1"}),
        command_digest("ping", {"a": None}),
        command_digest("ping", {"b": 1}),
    }
    assert len(digests) == 7


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 2**53 + 1, -(2**53) - 1])
def test_what_json_cannot_say_has_no_digest(number: float) -> None:
    with pytest.raises(ValueError, match=r"."):
        command_digest("ping", {"n": [number]})


def test_a_lone_surrogate_has_no_digest() -> None:
    for document in ({"s": "\ud800"}, {"\udfff": 1}):
        with pytest.raises(ValueError, match=r"."):
            command_digest("ping", document)
