"""Puts the HTTP layer onto an application: the one call that the composition root makes."""

from __future__ import annotations

from functools import cache

import orjson
from aiohttp import web

from ..metrics import Metrics
from .asyncapi import asyncapi_document
from .docs import DOCUMENTS, Documents
from .docs_page import content_security_policy, render
from .keys import OPTIONS, SERVICES, ApiOptions, Services
from .metrics import METRICS
from .middlewares import answered, complete_headers, observed
from .openapi import openapi_document
from .routes import setup_routes


def setup_api(app: web.Application, *, services: Services, options: ApiOptions, metrics: Metrics) -> None:
    """Add routes, middlewares, CORS, metrics and documents to `app`; call it once, before the application starts."""
    app[SERVICES] = services
    app[OPTIONS] = options
    app[METRICS] = metrics
    app[DOCUMENTS] = _documents(options.version)
    app.middlewares.extend((observed, answered))
    app.on_response_prepare.append(complete_headers)
    setup_routes(app, options.cors_origins)


@cache
def _documents(version: str) -> Documents:
    """The documents depend on nothing but the code, so they are made once however many applications there are."""
    document = openapi_document(version)
    sockets = orjson.dumps(asyncapi_document(version))
    return Documents(orjson.dumps(document), sockets, render(document), content_security_policy())
