"""The table of all routes: the router and the OpenAPI document are both made from it, so neither can lack one.

Failures that follow from how a route is called (no token, no customer, a bad body, a limit) are added by `errors_of`;
a row names those of its own. The rows of each audience are in the module of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from ..domain import errors as e
from . import docs, health
from .cors import setup_cors
from .customer_routes import CUSTOMER_ROUTES
from .device_routes import DEVICE_ROUTES
from .endpoint import Auth, Route, endpoint
from .schemas import shared_views as sv
from .sockets.customer import customer_socket
from .sockets.device import device_socket

_public = partial(Route, auth=Auth.NONE, tag="public")

PUBLIC_ROUTES: Sequence[Route] = (
    _public(
        "GET", "/healthz", health.alive, summary="Whether the process runs", success=sv.AliveAnswer(), instant=True
    ),
    _public(
        "GET",
        "/readyz",
        health.ready,
        summary="Whether the gateway can serve",
        success=sv.ReadyAnswer(),
        others={HTTPStatus.SERVICE_UNAVAILABLE: sv.NotReadyAnswer()},
    ),
    _public("GET", "/version", health.version, summary="What is running", success=sv.VersionAnswer()),
    _public("GET", "/openapi.json", docs.document, summary="This API as OpenAPI"),
    _public("GET", "/asyncapi.json", docs.socket_document, summary="The sockets as AsyncAPI"),
    _public("GET", "/docs", docs.page, summary="This API to read", media_type="text/html"),
)

ROUTES: Sequence[Route] = (*DEVICE_ROUTES, *CUSTOMER_ROUTES, *PUBLIC_ROUTES)


def errors_of(route: Route) -> tuple[type[e.GatewayError], ...]:
    """Every expected failure of a route: its own, and those that follow from how it is called."""
    found: list[type[e.GatewayError]] = []
    if route.body is not None:
        found += [e.InvalidRequest, e.PayloadTooLarge, e.UnsupportedMediaType]
    if route.query is not None or route.headers:
        found.append(e.InvalidRequest)
    if route.auth is not Auth.NONE:
        found += [e.Unauthenticated, e.RateLimited]
    if route.auth is Auth.CUSTOMER:
        found += [e.InvalidRequest, e.Forbidden, e.NoCustomer]
    if route.tag != "public":
        found.append(e.Unavailable)
    return tuple(dict.fromkeys((*found, *route.errors)))


# Sockets are described by `/asyncapi.json`; OpenAPI has no words for them.
SOCKETS: Mapping[str, Handler] = {
    "/ws/device": device_socket,
    "/api/v1/device/ws": device_socket,
    "/ws/customer": customer_socket,
    "/api/v1/customer/ws": customer_socket,
}


def setup_routes(app: web.Application, origins: Sequence[str]) -> None:
    """Add every row of the table to the router, health routes with HEAD as well, and CORS for `origins`."""
    resources: dict[str, web.Resource] = {}
    for route in ROUTES:
        if route.path not in resources:
            resources[route.path] = app.router.add_resource(route.path)
        handle = endpoint(route)
        resources[route.path].add_route(route.method, handle)
        if route.tag == "public":
            resources[route.path].add_route(hdrs.METH_HEAD, handle)
    for path, open_socket in SOCKETS.items():
        app.router.add_get(path, open_socket, allow_head=False)
    public = {route.path for route in PUBLIC_ROUTES}
    setup_cors(
        app,
        origins,
        private=[resource for path, resource in resources.items() if path not in public],
        public=[resource for path, resource in resources.items() if path in public],
    )
