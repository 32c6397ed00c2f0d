"""Puts the HTTP layer onto an application: the one call that the composition root makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache

import orjson
from aiohttp import web

from ..metrics import Metrics
from ..tracing import Tracing
from .asyncapi import asyncapi_document
from .deadlines import Deadlines
from .docs import DOCUMENTS, Documents
from .docs_page import content_security_policy, render
from .keys import OPTIONS, OVERDUE, REQUESTS, SERVICES, ApiOptions, Services
from .metrics import METRICS
from .middlewares import answered, complete_headers, observed
from .openapi import openapi_document
from .routes import setup_routes
from .tracing import traced


def setup_api(
    app: web.Application, *, services: Services, options: ApiOptions, metrics: Metrics, tracing: Tracing | None = None
) -> None:
    """Add routes, middlewares, CORS, metrics and documents to `app`; call it once, before the application starts."""
    app[SERVICES] = services
    app[OPTIONS] = options
    app[METRICS] = metrics
    app[DOCUMENTS] = _documents(options.version)
    app.middlewares.append(observed(options, metrics))
    if tracing is not None:
        app.middlewares.extend((traced(app, tracing), answered))
    app.on_response_prepare.append(complete_headers)
    app.cleanup_ctx.append(_deadlines)
    setup_routes(app, options.cors_origins)


async def _deadlines(app: web.Application) -> AsyncIterator[None]:
    """Requests have their time from the start of the application on."""
    requests = Deadlines[asyncio.Task[None]](app[OPTIONS].request_timeout_s, lambda task: task.cancel(OVERDUE))
    app[REQUESTS] = requests
    yield
    requests.close()


@cache
def _documents(version: str) -> Documents:
    """The documents depend on nothing but the code, so they are made once however many applications there are."""
    document = openapi_document(version)
    sockets = orjson.dumps(asyncapi_document(version))
    return Documents(orjson.dumps(document), sockets, render(document), content_security_policy())
