"""The runner that the gateway serves with: it makes the connections, and stops without dropping what is under way.

By itself the framework drops bodies that are still on their way when it stops.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import chain
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .deadlines import Deadlines
from .direct import Serve, direct
from .http_connection import HttpConnection, TimeLimits
from .listeners import accepted, listeners, pass_over

# Seconds that a handshake takes which has begun: a way there and back between a balancer and its instances. Who comes
# meanwhile has to ask a second time, so no longer.
_HANDSHAKE_S = 0.002


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
        return Server(
            direct(self.app, server.request_handler),
            self._limits,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            **server._kwargs,
        )

    async def refuse(self) -> None:
        """Stop listening. Whom the kernel has connected by then is served.

        On a socket of the service manager clients go on to queue, for the next process. May be called again.
        """
        queues = {site: [] if isinstance(site, web.SockSite) else listeners(site) for site in self.sites}
        for listener in chain.from_iterable(queues.values()):
            pass_over(listener)
        await asyncio.sleep(_HANDSHAKE_S)
        for site, own in queues.items():
            await site.stop()
            for listener in own:
                with listener:
                    waiting = accepted(listener)
                for connection in waiting:
                    with suppress(OSError):
                        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return cast("Server", self.server)()

    async def drain(self) -> None:
        """Close quiet connections, and return when every request under way has been answered.

        A request whose headers have been read is under way; its body may still be coming. An answer ends its
        connection. Call it once nothing listens any more, and before `cleanup`. It may take as long as the slowest
        client.
        """
        await cast("Server", self.server).drain()

    @property
    def under_way(self) -> int:
        """How many requests have been read and not yet answered, sockets aside."""
        if self.server is None:
            return 0
        return sum(cast("HttpConnection", connection).is_answering for connection in self.server.connections)

    def abort(self) -> int:
        """Break off the connections that are left, and return how many there were."""
        left = cast("Server", self.server).connections
        for connection in left:
            if connection.transport is not None:
                connection.transport.abort()
        return len(left)


class Server(web.Server):
    def __init__(self, handler: Serve, limits: TimeLimits, **options: Any) -> None:
        super().__init__(handler, **options)
        self.limits = limits
        self.exchanges = Deadlines[HttpConnection](limits.exchange, HttpConnection.exchange_overdue)
        self.draining = False
        self._empty = asyncio.Event()

    def __call__(self) -> RequestHandler:
        return HttpConnection(self, loop=self._loop, **self._kwargs)

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
            cast("HttpConnection", handler).close_when_quiet()

    async def drain(self) -> None:
        self.draining = True
        # What has reached this machine already is read first, and answered.
        await asyncio.sleep(0)
        for connection in self.connections:
            cast("HttpConnection", connection).close_when_quiet()
        self._empty.clear()
        self._look()
        await self._empty.wait()
