"""How secrets, tokens and codes are made, read and compared (contract sections 2 and 3)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aizen_gateway.domain import secrets

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,63}")

codes = st.text(ALPHABET, min_size=10, max_size=10)
device_ids = st.from_regex(DEVICE_ID, fullmatch=True)


def bits(text: str) -> int:
    """The bits in base64url without padding."""
    return len(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))) * 8


def test_a_code_has_ten_characters_of_crockfords_alphabet_in_two_halves() -> None:
    made = [secrets.new_activation_code() for _ in range(500)]
    assert all(re.fullmatch(f"[{ALPHABET}]{{5}}-[{ALPHABET}]{{5}}", code) for code in made)
    assert len(set(made)) == 500
    assert set("".join(made)) - {"-"} == set(ALPHABET)


@given(codes, st.lists(st.sampled_from([str.lower, str.upper]), min_size=10, max_size=10), st.integers(0, 10))
def test_a_code_is_read_in_any_case_with_a_hyphen_anywhere(
    code: str, cases: list[Callable[[str], str]], place: int
) -> None:
    typed = "".join(change(character) for change, character in zip(cases, code, strict=True))
    assert secrets.normal_activation_code(f"{typed[:place]}-{typed[place:]}") == code
    assert secrets.normal_activation_code(f" {typed[:place]} {typed[place:]} ") == code


@given(codes, st.sampled_from("OoIiLl"))
def test_a_look_alike_is_read_as_its_digit(code: str, typed: str) -> None:
    digit = "0" if typed in "Oo" else "1"
    assert secrets.normal_activation_code(code.replace(digit, typed)) == code


@given(codes, codes)
def test_two_codes_are_never_read_as_one(one: str, other: str) -> None:
    assert (secrets.normal_activation_code(one) == secrets.normal_activation_code(other)) == (one == other)


@given(st.text())
def test_whatever_is_typed_can_be_hashed(text: str) -> None:
    assert len(secrets.hash_text(secrets.normal_activation_code(text))) == 32
    assert secrets.device_of_token(text) is None or "." in text


@given(device_ids)
def test_a_token_names_its_device_and_carries_256_random_bits(device_id: str) -> None:
    token = secrets.new_session_token(device_id)
    assert secrets.device_of_token(token) == device_id
    assert bits(token.removeprefix(device_id + ".")) == 256
    assert token != secrets.new_session_token(device_id)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "router-1",
        "router-1.",
        "router-1.short",
        "." + "A" * 43,
        "no." + "A" * 43,
        "-router." + "A" * 43,
        "router 1." + "A" * 43,
        "router-1\n." + "A" * 43,
        "r" * 65 + "." + "A" * 43,
        "router-1." + "A" * 65,
        "röuter-1." + "A" * 43,
    ],
)
def test_what_cannot_be_a_token_names_no_device(token: str) -> None:
    assert secrets.device_of_token(token) is None


def test_secrets_and_claim_tokens_are_random() -> None:
    assert {bits(secrets.new_secret()) for _ in range(20)} == {256}
    assert len({secrets.new_secret() for _ in range(100)}) == 100
    assert {bits(secrets.new_claim_token()) >= 128 for _ in range(20)} == {True}
    assert len({secrets.new_claim_token() for _ in range(100)}) == 100


@given(st.text(), st.text())
def test_a_text_matches_its_own_hash_alone(text: str, other: str) -> None:
    digest = secrets.hash_text(text)
    assert secrets.matches(text, digest)
    assert secrets.matches(other, digest) == (other == text)
    assert not secrets.matches(text, None)


def test_a_hash_is_sha_256() -> None:
    assert secrets.hash_hex("abc") == hashlib.sha256(b"abc").hexdigest()
    assert secrets.hash_text("ü") == hashlib.sha256("ü".encode()).digest()


def test_nothing_matches_a_hash_that_is_not_there() -> None:
    """Not even what hashes to what stands in for it."""
    assert not secrets.matches("", None)
    assert not secrets.matches("", b"")
    assert not secrets.matches("", b"\0" * 32)
