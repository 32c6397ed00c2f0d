"""A server span around every request; installed only where traces are asked for."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..logs import bind_context
from ..tracing import ServerSpan, Tracing
from .keys import ERROR_CODE, ORIGIN, REQUEST_ID
from .middlewares import UNMATCHED, route_template

# Seconds to send what is left when the application ends.
_LAST_SPANS_S = 2.0

_SPAN = web.RequestKey("SPAN", ServerSpan)


def traced(app: web.Application, tracing: Tracing) -> Middleware:
    """The middleware that makes spans; its place is inside the one that knows the request's id.

    When `app` ends, the spans that are left are sent.
    """

    @web.middleware
    async def span(request: web.Request, handler: Handler) -> web.StreamResponse:
        template = route_template(request)
        begun = tracing.begin(
            request.method,
            None if template == UNMATCHED else template,
            request.headers,
            {"aizen.request_id": request[REQUEST_ID], "client.address": request[ORIGIN].ip or ""},
        )
        request[_SPAN] = begun
        bind_context(trace_id=begun.trace_id, span_id=begun.span_id)
        try:
            response = await handler(request)
        except BaseException:
            begun.end(None, "interrupted")
            raise
        begun.end(response.status, response.get(ERROR_CODE))
        return response

    async def close(_app: web.Application) -> None:
        await tracing.aclose(_LAST_SPANS_S)

    app.on_response_prepare.append(_upgraded)
    app.on_cleanup.append(close)
    return span


async def _upgraded(request: web.Request, response: web.StreamResponse) -> None:
    """A socket's request is its handshake; what follows may go on for days."""
    if isinstance(response, web.WebSocketResponse) and (begun := request.get(_SPAN)) is not None:
        begun.end(response.status)
