"""The runner that the gateway serves with: what is no HTTP, and reaches no middleware, gets the contract's error too.

By itself the framework answers a malformed request line or header, and an `Expect` that it does not know, in plain
text and without a request id, and logs the client's bytes with a traceback; it lets a client take as long as it likes
over its headers and over the answer; and when it stops, it drops bodies that are still on their way.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .deadlines import Deadlines
from .errors import error_response, from_http_exception
from .keys import REQUEST_ID
from .middlewares import put_headers, request_id_of

# A stopping server closes a connection when nothing has come on it for this many seconds: a proxy that uses it all the
# time may be sending the next request just now, and must not repeat a POST by itself.
_QUIET_S = 1.0

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


class GatewayRunner(web.AppRunner):
    """An `AppRunner` for the gateway's application, with the server options that the HTTP layer relies on.

    Handlers go on when their client leaves (what they change must not stop halfway), bodies are not unpacked, and the
    access log is the middlewares' own. A client that is refused while it still sends has 2 s to take the answer.
    """

    def __init__(self, app: web.Application, *, limits: TimeLimits | None = None, **options: Any) -> None:
        limits = limits or TimeLimits()
        super().__init__(
            app,
            **{
                "handler_cancellation": False,
                "auto_decompress": False,
                "access_log": None,
                "lingering_time": 2.0,
                "keepalive_timeout": limits.idle,
                **options,
            },
        )
        self._limits = limits

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler,
            self._limits,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            **server._kwargs,
        )

    async def refuse(self) -> None:
        """Stop listening. Whom the kernel has connected by then is served.

        On a socket of the service manager clients go on to queue, for the next process. May be called again.
        """
        for site in self.sites:
            queues = [] if isinstance(site, web.SockSite) else _listeners(site)
            await site.stop()
            for listener in queues:
                with listener:
                    waiting = _accepted(listener)
                for connection in waiting:
                    with suppress(OSError):
                        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return cast("_Server", self.server)()

    async def drain(self) -> None:
        """Close quiet connections, and return when every request under way has been answered.

        A request whose headers have been read is under way; its body may still be coming. An answer ends its
        connection. Call it once nothing listens any more, and before `cleanup`. It may take as long as the slowest
        client.
        """
        await cast("_Server", self.server).drain()

    @property
    def under_way(self) -> int:
        """How many requests have been read and not yet answered, sockets aside."""
        if self.server is None:
            return 0
        return sum(cast("_Protocol", connection).is_answering for connection in self.server.connections)

    def abort(self) -> int:
        """Break off the connections that are left, and return how many there were."""
        left = cast("_Server", self.server).connections
        for connection in left:
            if connection.transport is not None:
                connection.transport.abort()
        return len(left)


def _listeners(site: web.BaseSite) -> list[socket.socket]:
    """What `site` listens on, to be read on when the site has stopped."""
    server = cast("asyncio.Server | None", site._server)
    return [socket.socket(fileno=os.dup(listener.fileno())) for listener in server.sockets] if server else []


def _accepted(listener: socket.socket) -> list[socket.socket]:
    """Take all that wait."""
    listener.setblocking(False)
    taken: list[socket.socket] = []
    with suppress(OSError):
        while True:
            taken.append(listener.accept()[0])
    for connection in taken:
        connection.setblocking(False)
    return taken


class _Server(web.Server):
    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], limits: TimeLimits, **options: Any
    ) -> None:
        super().__init__(handler, **options)
        self.limits = limits
        self.exchanges = Deadlines[_Protocol](limits.exchange, _Protocol.exchange_overdue)
        self.draining = False
        self._empty = asyncio.Event()

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        # The handler may have to finish what it does for a client that is gone.
        if handler._task_handler is not None:
            handler._task_handler.add_done_callback(lambda _: self._look())
        self._look()

    def _look(self) -> None:
        if not self._connections:
            self._empty.set()

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        # Accepted just before nothing listened any more: its request has probably been sent.
        if self.draining:
            cast("_Protocol", handler).close_when_quiet()

    async def drain(self) -> None:
        self.draining = True
        # What has reached this machine already is read first, and answered.
        await asyncio.sleep(0)
        for connection in self.connections:
            cast("_Protocol", connection).close_when_quiet()
        self._empty.clear()
        self._look()
        await self._empty.wait()


class _Protocol(RequestHandler):
    __slots__ = ("_active_at", "_exchanging", "_head_timer", "_server")

    def __init__(self, server: _Server, **options: Any) -> None:
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
            _log.info("slow_headers", seconds=self._server.limits.head)
            self.force_close()

    def exchange_overdue(self) -> None:
        """Break off a client that takes too long to send its request, or to take the answer."""
        # An open socket lives as long as it likes, and so does a connection on which no request is under way.
        if self.is_answering and self.transport is not None:
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
        request_id = request.get(REQUEST_ID) or str(uuid4())
        request[REQUEST_ID] = request_id
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
