"""What happens around every handler: its request id, its time limit, its failures as answers, and one log line."""

from __future__ import annotations

import time
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from ..domain.errors import GatewayError, Unavailable
from ..domain.values import REQUEST_ID as REQUEST_ID_PATTERN
from ..domain.values import Origin
from ..logs import fresh_context
from .body import ClientGone
from .errors import ERROR_CODE, from_gateway_error, from_http_exception, from_unexpected
from .forwarded import client_address
from .keys import OPTIONS, ORIGIN, REQUEST_ID
from .metrics import METRICS
from .text import printable

UNMATCHED = "unmatched"
_USER_AGENT_CHARACTERS = 512
# What proxies log for a client that did not wait; nobody receives it.
_CLIENT_CLOSED = 499

_log = structlog.get_logger(__name__)


def request_id_of(request: web.BaseRequest) -> str:
    """The client's `X-Request-ID` when it has the contract's form, else a new UUID."""
    given = request.headers.get("X-Request-ID", "")
    return given if REQUEST_ID_PATTERN.match(given) else str(uuid4())


def route_template(request: web.Request) -> str:
    """The path of the matched route with its parameters unfilled; one word for everything that matches none."""
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical


@web.middleware
async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id and origin; count it and log it once when it has been answered."""
    started = time.perf_counter()
    request_id = request_id_of(request)
    headers = request.headers
    transport = request.transport
    peername = None if transport is None else transport.get_extra_info("peername")
    ip = client_address(peername, headers, request.app[OPTIONS].trusted_proxies)
    request[REQUEST_ID] = request_id
    agent = headers.get("User-Agent")
    request[ORIGIN] = Origin(request_id, ip, None if agent is None else printable(agent, _USER_AGENT_CHARACTERS))
    with fresh_context(request_id=request_id):
        response = await handler(request)
        seconds = time.perf_counter() - started
        template = route_template(request)
        _count(request, template, response, seconds)
        _log.info(
            "request",
            method=printable(request.method, 32),
            route=template,
            status=response.status,
            duration_ms=round(seconds * 1000, 3),
            bytes=_length(response),
            ip=ip,
            **({"error_code": code} if (code := response.get(ERROR_CODE)) else {}),
        )
    return response


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever the handler raises into the contract's error answer."""
    try:
        return await handler(request)
    except GatewayError as error:
        if isinstance(error, Unavailable):
            _log.warning("unavailable", reason=error.message, cause=type(error.__cause__).__name__)
        return from_gateway_error(request, error)
    except web.HTTPException as error:
        return from_http_exception(request, error)
    except ClientGone:
        return web.Response(status=_CLIENT_CLOSED)
    except Exception as error:
        return from_unexpected(request, error)


async def complete_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler for every answer, a 101 too."""
    put_headers(request, response)


def put_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put on `response` what every answer carries."""
    headers = response.headers
    headers["X-Request-ID"] = request.get(REQUEST_ID) or request_id_of(request)
    headers["X-Content-Type-Options"] = "nosniff"
    headers.setdefault("Cache-Control", "no-store")
    headers["Server"] = "aizen-gateway"


def _count(request: web.Request, template: str, response: web.StreamResponse, seconds: float) -> None:
    # A socket's life is no answer's time; sockets have numbers of their own.
    if not isinstance(response, web.WebSocketResponse):
        request.app[METRICS].observe_request(request.method, template, response.status, seconds)


def _length(response: web.StreamResponse) -> int:
    body = response.body if isinstance(response, web.Response) else None
    return len(body) if isinstance(body, bytes) else 0
