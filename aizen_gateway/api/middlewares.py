"""What happens around every handler: its request id, its failures as answers, and one log line."""

from __future__ import annotations

import random
import time
from logging import DEBUG, INFO

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..domain.errors import GatewayError, Unavailable
from ..domain.values import REQUEST_ID as REQUEST_ID_PATTERN
from ..domain.values import Origin
from ..logs import log_request, new_context, tells_requests
from ..metrics import METHODS, Metrics
from ..redaction import redact_text
from .body import ClientGone
from .errors import from_gateway_error, from_http_exception, from_unexpected
from .forwarded import client_address
from .keys import CLOSE_CODE, ERROR_CODE, ORIGIN, REQUEST_ID, ApiOptions
from .responses import FIXED_HEADERS, JsonResponse
from .text import printable

UNMATCHED = "unmatched"
# Asked all the time, by whoever watches and by every device: a good answer is no news, unless it hands out commands.
QUIET = frozenset({"/healthz", "/readyz", "/api/v1/device/heartbeat", "/api/v1/device/commands/claim"})
_SMALL = 256
_USER_AGENT_CHARACTERS = 512
# What proxies log for a client that did not wait; nobody receives it.
_CLIENT_CLOSED = 499

_log = structlog.get_logger(__name__)


def request_id_of(request: web.BaseRequest) -> str:
    """The client's `X-Request-ID` when it has the contract's form, else a new UUID."""
    return _given_id(request) or _new_id()


def _given_id(request: web.BaseRequest) -> str | None:
    given = request.headers.get("X-Request-ID")
    return given if given is not None and REQUEST_ID_PATTERN.match(given) else None


def _new_id() -> str:
    """A UUID v4, from numbers that need not be secret: the system's own cost far more."""
    text = random.randbytes(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def route_template(request: web.Request) -> str:
    """The path of the matched route with its parameters unfilled; one word for everything that matches none."""
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical


def observed(options: ApiOptions, metrics: Metrics) -> Middleware:
    """The outermost middleware: gives a request its id and origin, answers its failures, counts it, and logs it once.

    The log context begins anew with each request of a connection.
    """
    trusted = options.trusted_proxies

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        headers = request.headers
        given = _given_id(request)
        request_id = given or _new_id()
        transport = request.transport
        peername = None if transport is None else transport.get_extra_info("peername")
        ip = client_address(peername, headers, trusted)
        agent = headers.get("User-Agent")
        request[REQUEST_ID] = request_id
        request[ORIGIN] = Origin(request_id, ip, None if agent is None else printable(agent, _USER_AGENT_CHARACTERS))
        new_context(request_id=request_id if given is None else redact_text(given))
        try:
            response = await handler(request)
        except Exception as error:
            response = _failure(request, error)
        seconds = time.perf_counter() - started
        template, status = route_template(request), response.status
        # A socket's life is no answer's time; sockets have numbers of their own.
        quick = response if type(response) is JsonResponse else None
        if quick is not None or not isinstance(response, web.WebSocketResponse):
            metrics.requests.count(request.method, template, status, seconds)
        length = quick.length if quick is not None else _length(response)
        # A client that names its request wants to find it again.
        level = DEBUG if given is None and status == 200 and template in QUIET and length <= _SMALL else INFO
        if tells_requests(level):
            said = {
                "method": request.method if request.method in METHODS else redact_text(printable(request.method, 32)),
                "route": template,
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
                "bytes": length,
                "ip": ip,
            }
            if quick is None:
                said |= _more(response)
            log_request(said, level)
        return response

    return observe


def _more(response: web.StreamResponse) -> dict[str, object]:
    """What a request's line says of failures and sockets beside."""
    more = {"error_code": response.get(ERROR_CODE), "close_code": response.get(CLOSE_CODE)}
    return {name: code for name, code in more.items() if code is not None}


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """For what must see answers rather than failures: as the outermost middleware answers them."""
    try:
        return await handler(request)
    except Exception as error:
        return _failure(request, error)


def _failure(request: web.Request, error: Exception) -> web.Response:
    """The contract's error answer to whatever a handler raised."""
    if isinstance(error, GatewayError):
        if isinstance(error, Unavailable):
            _log.warning("unavailable", reason=error.message, cause=type(error.__cause__).__name__)
        return from_gateway_error(request, error)
    if isinstance(error, web.HTTPException):
        return from_http_exception(request, error)
    if isinstance(error, ClientGone):
        return web.Response(status=_CLIENT_CLOSED)
    return from_unexpected(request, error)


async def complete_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler for every answer, a 101 too."""
    put_headers(request, response)


def put_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put on `response` what every answer carries."""
    headers = response.headers
    headers["X-Request-ID"] = request.get(REQUEST_ID) or request_id_of(request)
    for name, text in FIXED_HEADERS.items():
        headers.setdefault(name, text)
    # The framework has put its own name and version there.
    headers["Server"] = FIXED_HEADERS["Server"]


def _length(response: web.StreamResponse) -> int:
    body = response.body if isinstance(response, web.Response) else None
    return len(body) if isinstance(body, bytes) else 0
