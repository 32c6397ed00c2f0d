"""One connection: its requests are served in one task, within their times, and its end is orderly.

By itself the framework answers a malformed request line or header, and an `Expect` that it does not know, in plain
text and without a request id, and logs the client's bytes with a traceback; and it lets a client take as long as it
likes over its headers and over the answer. It also serves each request in a task of its own, which costs a good part of
a short request, and an open socket two tasks and what hangs on them. What it knows of a connection is read and set here
as its own code does, so this module is bound to its minor version (`setup.cfg`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import ERROR, PayloadAccessError, RequestHandler, _ErrInfo

from ..logs import new_context
from .direct import Serve
from .errors import error_response, from_http_exception
from .keys import REQUEST_ID
from .middlewares import put_headers, request_id_of
from .responses import JsonResponse

if TYPE_CHECKING:
    from .server import Server

# A stopping server closes a connection when nothing has come on it for this many seconds: a proxy that uses it all the
# time may be sending the next request just now, and must not repeat a POST by itself.
_QUIET_S = 1.0
# What reading a body meets after its answer.
_TOO_LATE = PayloadAccessError()

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that clients may take (contract section 7).

    `head` is for the request line and headers, from their first byte on. `exchange` is from the headers to the last
    byte of the answer, sockets aside: a little more than handlers have, so that they can still say that it took too
    long. `idle` is without any request.
    """

    head: float = 10.0
    exchange: float = 52.0
    idle: float = 75.0


class HttpConnection(RequestHandler):
    """One client's connection, and the requests on it, one after the other."""

    __slots__ = ("_active_at", "_exchanging", "_head_timer", "_server")

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._head_timer: asyncio.TimerHandle | None = None
        self._exchanging = False
        # When something last came on it, or was answered.
        self._active_at = self._loop.time()

    @property
    def _waits(self) -> bool:
        """Whether no request is under way: none has come yet, or all that came have been answered."""
        return self._request_count == 0 or (self._waiter is not None and not self._waiter.done())

    @property
    def is_answering(self) -> bool:
        """Whether a request is under way that is no socket."""
        return not self._waits and self._payload_parser is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # As the framework's, but for the options of TCP, each by way of a socket object and a call of the system. That
        # nothing is held back the loop has set; and whoever is gone is found by the time limits and the pings.
        self.transport = cast("asyncio.Transport", transport)
        self._server.connection_made(self, self.transport)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        self._task_handler = self._loop.create_task(self.start())

    def data_received(self, data: bytes) -> None:
        if self._exchanging and self._waits:
            # What came since the last answer was the rest of a body that the answer did not wait for.
            self._server.exchanges.end(self)
            self._exchanging = False
        super().data_received(data)
        self._active_at = self._loop.time()
        if not self._waits:
            if self._head_timer is not None:
                self._stop_head_timer()
            if not self._exchanging:
                self._exchanging = True
                self._server.exchanges.begin(self)
        elif self._head_timer is None and data.strip():
            self._head_timer = self._loop.call_later(self._server.limits.head, self._head_overdue)

    async def start(self) -> None:
        """Serve requests for as long as the client, and the server, will have it."""
        while not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            if not await self._serve(*self._messages.popleft()):
                break
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
            if self._messages:
                # Answers that wait for nothing would go on for as long as somebody sends ahead.
                await asyncio.sleep(0)
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _serve(self, message: RawRequestMessage | _ErrInfo, payload: StreamReader) -> bool:
        """Answer one request; whether another may follow."""
        # What the last one has left on the task is no business of this one, nor of what reads on from here.
        new_context()
        self._make_room()
        self._server.requests_count += 1
        handle, make = self._request_handler, self._request_factory
        task = self._task_handler
        if handle is None or make is None or task is None:
            return False
        if isinstance(message, _ErrInfo):
            handle, message = self._make_error_handler(message), ERROR
        request = make(message, payload, self, StreamWriter(self, self._loop), task)
        try:
            response = await self._answer(request, handle)
            if response is None:
                return False
            self._keepalive = bool(response.keep_alive)
            if not payload.is_eof():
                await self._read_rest(payload)
            payload.set_exception(_TOO_LATE)
            while task.cancelling():
                # A handler has made something else of its cancellation.
                task.uncancel()
        except ConnectionError:
            return False
        except Exception:
            _log.exception("connection failed")
            self.force_close()
        except BaseException:
            self.force_close()
            raise
        finally:
            # It knows the request, by way of what it runs.
            request._task = None  # type: ignore[assignment]
        return self._keepalive and not self._close and not self._force_close

    async def _answer(self, request: web.BaseRequest, handle: Serve) -> web.StreamResponse | None:
        """Handle a request and write its answer; None when the client has gone."""
        # Whoever shuts down the server waits for this.
        self._request_in_progress = True
        self._current_request = request
        try:
            try:
                response = await handle(request)
            except web.HTTPException as refusal:
                response = refusal
            except Exception as error:
                response = self.handle_error(request, exc=error)
            finally:
                self._current_request = None
            if (
                type(response) is JsonResponse
                and not (self._upgraded or self._server.draining)
                and response.write_at_once(request)
                and not self._paused
            ):
                # For such an answer, as nearly all are, the framework's way of finishing has nothing to do.
                self._exchange_ended()
                return response
            response, gone = await self.finish_response(request, response, None)
            return None if gone else response
        finally:
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)

    def _make_room(self) -> None:
        """A message has been taken: more may be read."""
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    async def _read_rest(self, payload: StreamReader) -> None:
        """Let the client finish a body that was not read to its end, so that it reads the answer; then close."""
        if not self._force_close and self._lingering_time:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
        if not payload.is_eof() and not self._force_close:
            self.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        self._server.exchanges.end(self)
        super().connection_lost(exc)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self._waits:
            new_context()
            _log.info("slow_headers", seconds=self._server.limits.head)
            self.force_close()

    def exchange_overdue(self) -> None:
        """Break off a client that takes too long to send its request, or to take the answer."""
        # An open socket lives as long as it likes, and so does a connection on which no request is under way.
        if self.is_answering and self.transport is not None:
            new_context()
            _log.info("slow_client", seconds=self._server.limits.exchange)
            self.transport.abort()

    def close_when_quiet(self) -> None:
        """Close as soon as nothing has come for a while; an answer that is due ends the connection by itself."""
        left = self._active_at + _QUIET_S - self._loop.time()
        if not self._waits:
            return
        if left > 0:
            self._loop.call_later(left, self.close_when_quiet)
        else:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has been begun already")
        request_id = request.setdefault(REQUEST_ID, request_id_of(request))
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.info("malformed_request", request_id=request_id, problem=type(exc).__name__)
            answer = error_response(request, "INVALID_REQUEST", "This is not a request in HTTP/1.1.")
        else:
            _log.error("request_failed", exc_info=exc, request_id=request_id)
            answer = error_response(request, "INTERNAL_ERROR", "The gateway failed.")
        put_headers(request, answer)
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):
            request.setdefault(REQUEST_ID, request_id_of(request))
            resp = from_http_exception(request, resp)
        if self._server.draining:
            resp.force_close()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._exchange_ended()

    def _exchange_ended(self) -> None:
        exchanges = self._server.exchanges
        exchanges.end(self)
        self._exchanging = bool(self._messages)
        if self._exchanging:
            exchanges.begin(self)
        self._active_at = self._loop.time()
        if self._server.draining:
            self._close = True
