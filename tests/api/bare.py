"""The HTTP layer on an application of its own, for what happens before any service is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Handler

from aizen_gateway.api.keys import ApiOptions, Services
from aizen_gateway.api.server import GatewayRunner
from aizen_gateway.api.setup import setup_api
from aizen_gateway.metrics import Metrics

PORTAL = "https://portal.example"
Client = TestClient[web.Request, web.Application]


def bare_app(*, request_timeout_s: float = 50.0, **handlers: Handler) -> web.Application:
    """The application without any service. `handlers` are added as POST routes, each under its name."""
    app = web.Application()
    nothing: Any = None
    services = Services(**{field.name: nothing for field in fields(Services)})
    options = ApiOptions("1.2.3", (PORTAL,), request_timeout_s=request_timeout_s)
    setup_api(app, services=services, options=options, metrics=Metrics("1.2.3", "test"))
    for name, handler in handlers.items():
        app.router.add_post(f"/{name}", handler)
    return app


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[Client]:
    """A client of `app` on the framework's own test server."""
    async with TestClient(TestServer(app)) as client:
        yield client


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[int]:
    """`app` served as the gateway serves it; the port on 127.0.0.1."""
    runner = GatewayRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()


async def exchange(port: int, sent: bytes) -> bytes:
    """Send `sent` as it is and return everything that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
