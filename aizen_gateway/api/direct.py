"""Finds the handler of a path without parameters by one look, since nearly all requests of devices are for such a path.

The router walks over the path's parts and makes a match for each request; here each route has one for good. Whatever
else there is to decide (parameters, `Expect`, a method that is not allowed, preflights) is the router's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

# Serves a request that nobody has routed yet.
Serve = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def direct(app: web.Application, routed: Serve) -> Serve:
    """What serves a request to `app`, which must not change any more; `routed` serves those that need the router."""
    known: dict[tuple[str, str], tuple[web.UrlMappingMatchInfo, Handler]] = {}
    for resource in app.router.resources():
        if isinstance(resource, web.PlainResource):
            for route in resource:
                if route.method not in (hdrs.METH_ANY, hdrs.METH_OPTIONS):
                    known.setdefault((route.method, resource.canonical), (_match(app, route), _within(app, route)))

    def serve(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        message = request._message
        found = known.get((message.method, message.path.partition("?")[0]))
        if found is None or hdrs.EXPECT in message.headers:
            return routed(request)
        matched = cast("web.Request", request)
        matched._match_info, handler = found
        return handler(matched)

    return serve


def _match(app: web.Application, route: web.AbstractRoute) -> web.UrlMappingMatchInfo:
    match = web.UrlMappingMatchInfo({}, route)
    match.add_app(app)
    match.freeze()
    return match


def _within(app: web.Application, route: web.AbstractRoute) -> Handler:
    """The route's handler within all middlewares."""
    handler = route.handler
    for middleware in reversed(app.middlewares):
        handler = partial(cast("Callable[..., Awaitable[web.StreamResponse]]", middleware), handler=handler)
    return handler
