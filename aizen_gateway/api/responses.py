"""JSON answers as they go over the wire: made in one piece and written once, since nearly every answer is one.

The framework's own response costs a good part of a request: a header table, signals, a formatter, two writes put into
one. What needs any of that (a page of another origin, HEAD, HTTP/1.0, an answer that ends its connection, a large body)
goes its way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

import orjson
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11

from ..domain.values import Answer
from .keys import REQUEST_ID

# What every answer carries, whichever way it goes.
FIXED_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Server": "aizen-gateway",
}
_VARY = "Origin"
# Octets; a larger answer may have to wait for its client.
_MOST_AT_ONCE = 32 * 1024


class JsonResponse(web.Response):
    """A JSON answer. `body` is the encoded JSON."""

    # Not initialized as its base is: of all that, only what is set here is ever looked at.
    def __init__(self, body: bytes, status: int = HTTPStatus.OK) -> None:
        self._status = int(status)
        self._reason = ""
        self._body = body
        self._keep_alive: bool | None = None
        self._eof_sent = False
        self._payload_writer = None
        self._state: dict[Any, Any] = {}

    @property
    def length(self) -> int:
        """Octets of the body."""
        return len(cast("bytes", self._body))

    @property
    def keep_alive(self) -> bool | None:
        return self._keep_alive

    def write_at_once(self, request: web.BaseRequest) -> bool:
        """Write the whole answer if it can go the short way; whether it did."""
        transport, body = request.transport, cast("bytes", self._body)
        if (
            self._keep_alive is not None
            or transport is None
            or not request.keep_alive
            or request.version != HttpVersion11
            or request.method == hdrs.METH_HEAD
            or hdrs.ORIGIN in request.headers
            or len(body) > _MOST_AT_ONCE
        ):
            return False
        self._keep_alive = self._eof_sent = True
        head = _heads.head(self._status)
        transport.write(b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (head, request[REQUEST_ID].encode(), len(body), body))
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write the whole answer, unless that has been done."""
        if self._eof_sent or self.write_at_once(request):
            if request.protocol.writing_paused:
                # Whoever asks on without reading is not answered on.
                await request.writer.drain()
            return None
        plain = web.Response(status=self._status, body=self._body, content_type="application/json")
        if self._keep_alive is False:
            plain.force_close()
        await plain.prepare(request)
        await plain.write_eof()
        self._keep_alive, self._eof_sent = plain.keep_alive, True
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Everything has been written already."""


class _Heads:
    """Everything of an answer's head that does not change within a second, by status."""

    def __init__(self) -> None:
        self._second = 0
        self._made: dict[int, bytes] = {}

    def head(self, status: int) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._made.clear()
        made = self._made.get(status)
        if made is None:
            headers = {
                "Content-Type": "application/json",
                **FIXED_HEADERS,
                "Vary": _VARY,
                "Date": rfc822_formatted_time(),
            }
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            made = self._made[status] = "\r\n".join([*lines, "X-Request-ID: "]).encode()
        return made


_heads = _Heads()


def json_response(body: Mapping[str, Any], status: int = HTTPStatus.OK) -> web.Response:
    """A JSON answer."""
    return JsonResponse(orjson.dumps(body), status)


def answer_response(answer: Answer) -> web.Response:
    """The JSON of an `Answer`, telling when an Idempotency-Key brought it back."""
    if not answer.replayed:
        return json_response(answer.body, answer.status)
    response = web.Response(status=answer.status, body=orjson.dumps(answer.body), content_type="application/json")
    response.headers["Idempotent-Replay"] = "true"
    return response


def no_content() -> web.Response:
    """204."""
    return web.Response(status=HTTPStatus.NO_CONTENT)
