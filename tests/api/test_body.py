"""JSON bodies are read strictly and within their limit (contract section 1)."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aizen_gateway.api.body import BODY_LIMIT, MAX_DEPTH, ClientGone, parse_object, read_object
from aizen_gateway.domain.errors import InvalidRequest

from .bare import Client, bare_app, exchange, served, serving

_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
_scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | _text
)
_values = st.recursive(_scalars, lambda inner: st.lists(inner) | st.dictionaries(_text, inner), max_leaves=20)
_objects = st.dictionaries(_text, _values)


def problems(raw: bytes) -> dict[str, Any]:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(raw)
    fields: dict[str, Any] = caught.value.details["fields"]
    return fields


@given(_objects, st.booleans())
def test_every_object_that_json_can_say_arrives_as_it_was_sent(value: dict[str, Any], escaped: bool) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(st.binary())
@example(b"\xff")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@settings(max_examples=100)
def test_bytes_of_any_kind_are_an_object_or_an_expected_failure(raw: bytes) -> None:
    try:
        found = parse_object(raw)
    except InvalidRequest:
        return
    assert isinstance(found, dict)


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b'{"a":}',
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":1} x',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\x01"}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":9007199254740993}',
        b'{"a":-9007199254740993}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":0.' + b"9" * 5000 + b"}",
        b'{"a":01}',
        b"[]",
        b"5",
        b"null",
        b'"text"',
        b"   ",
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(raw: bytes) -> None:
    assert set(problems(raw)) == {"_body"}


def test_integers_up_to_two_to_the_53_are_taken() -> None:
    assert parse_object(b'{"a":9007199254740992,"b":-9007199254740992}') == {"a": 2**53, "b": -(2**53)}


def test_a_doubled_name_is_refused_and_named_at_any_depth() -> None:
    assert problems(b'{"a":1,"a":1}') == {"a": ["Doubled name."]}
    assert problems(b'{"x":[{"deep":1,"\\u0064eep":2}]}') == {"deep": ["Doubled name."]}


@pytest.mark.parametrize("bracket", [(b'{"a":', b"}"), (b"[", b"]")])
def test_nesting_is_taken_to_its_limit_and_not_further(bracket: tuple[bytes, bytes]) -> None:
    opening, closing = bracket

    def nested(levels: int) -> bytes:
        return b'{"value":' + opening * (levels - 1) + b"1" + closing * (levels - 1) + b"}"

    parse_object(nested(MAX_DEPTH))
    assert "64 levels" in problems(nested(MAX_DEPTH + 1))["_body"][0]


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert len(parse_object(b'{"a":[' + b",".join([b"[]"] * 500) + b"]}")["a"]) == 500


def test_nul_and_lone_surrogates_become_replacement_characters_in_names_too() -> None:
    read = parse_object(rb'{"a\u0000":["x\ud800y","\ud83d\ude00",{"\udfff":1}]}')
    assert read == {"a\ufffd": ["x\ufffdy", "\U0001f600", {"\ufffd": 1}]}


def test_names_that_become_equal_by_it_are_doubled() -> None:
    assert problems(rb'{"\u0000":1,"\ud800":2}') == {"\ufffd": ["Doubled name."]}


async def echo(request: web.Request) -> web.StreamResponse:
    return web.json_response(await read_object(request))


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving(bare_app(echo=echo)) as client:
        yield client


async def answer(client: Client, data: Any, **headers: str) -> tuple[int, Any]:
    response = await client.post("/echo", data=data, headers={"Content-Type": "application/json", **headers})
    body = await response.json()
    return response.status, body.get("error", {}).get("code", body)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON;charset="UTF-8"',
    ],
)
async def test_json_in_utf8_is_read(client: Client, kind: str) -> None:
    assert await answer(client, b'{"a":1}', **{"Content-Type": kind}) == (200, {"a": 1})


async def test_a_missing_body_counts_as_an_empty_object(client: Client) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    assert (await (await client.post("/echo")).json()) == {}
    assert await answer(client, nothing(), **{"Content-Type": "text/plain"}) == (200, {})


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "nonsense",
        "a/b/c;;=",
    ],
)
async def test_a_body_of_another_kind_is_415(client: Client, kind: str) -> None:
    assert await answer(client, b'{"a":1}', **{"Content-Type": kind}) == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_a_body_at_the_limit_is_read_and_one_byte_more_is_413(client: Client) -> None:
    def sized(size: int) -> bytes:
        return b'{"a":"' + b"x" * (size - 8) + b'"}'

    status, _ = await answer(client, sized(BODY_LIMIT))
    assert status == 200
    assert await answer(client, sized(BODY_LIMIT + 1)) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_body_of_unknown_length_is_413_as_soon_as_it_passes_the_limit() -> None:
    endless = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    async with served(bare_app(echo=echo)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(endless + chunk * 5)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"0\r\n\r\n")
        await reader.read()
        writer.close()
    assert head.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_packed_body_is_415_however_much_it_would_unpack_into(encoding: str) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < BODY_LIMIT
    head = (
        f"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Encoding: {encoding}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(bomb)}\r\n\r\n"
    )
    async with served(bare_app(echo=echo)) as port:
        got = await exchange(port, head.encode() + bomb)
    assert got.startswith(b"HTTP/1.1 415 ")
    assert b"UNSUPPORTED_MEDIA_TYPE" in got


async def test_a_chunk_that_is_no_chunk_is_400() -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    async with served(bare_app(echo=echo)) as port:
        got = await exchange(port, head + b"zz\r\n{}\r\n")
    assert got.partition(b" ")[2].startswith(b"400 ")
    assert b"INVALID_REQUEST" in got


async def test_a_client_that_leaves_within_its_body_is_told_from_a_bad_body() -> None:
    seen: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    reading = asyncio.Event()

    async def note(request: web.Request) -> web.StreamResponse:
        reading.set()
        try:
            return web.json_response(await read_object(request))
        except BaseException as error:
            seen.set_result(error)
            raise

    async with served(bare_app(note=note)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /note HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        await reading.wait()
        writer.close()
        assert isinstance(await seen, ClientGone)
