"""One route's way from request to service: who calls, then what was asked, then the handler.

Authentication comes before the body is even read, so that a caller without a token learns nothing and costs little.
A claim and a heartbeat check their token in the same Redis round trip that does the work: there an absent token is
refused first, and a bad body is told before a bad token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Generic, TypeVar, cast
from uuid import UUID

from aiohttp import web
from aiohttp.typedefs import Handler
from marshmallow import Schema

from ..domain.errors import DeviceNotFound, GatewayError, NotFound, Unauthenticated, Unavailable
from ..domain.policy import require_write
from ..domain.values import DEVICE_ID, IdempotencyKey, Origin
from ..logs import bind_context
from .body import BODY_LIMIT, parse_object, read_json, read_object
from .credentials import bearer_token, customer_header, device_token, idempotency_key
from .keys import ORIGIN, OVERDUE, REQUESTS, SERVICES, Services
from .schemas.fields import parse_uuid
from .schemas.loading import load, load_query

Who = TypeVar("Who")
# Bodies of a route that repeats itself, and the octets of one.
_MOST_KNOWN = 256
_MOST_KNOWN_OCTETS = 128


class Auth(Enum):
    """What a route asks of its caller, and so what `Call.who` is."""

    NONE = auto()
    """Nobody: `who` is None."""
    DEVICE = auto()
    """A device with a valid session token: `who` is its `DeviceCaller`."""
    DEVICE_TOKEN = auto()
    """A device whose token the service will check: `who` is the token."""
    CUSTOMER = auto()
    """A customer user or a service: `who` is its `Principal`."""


@dataclass(slots=True)
class Call(Generic[Who]):
    """A request that has been understood. `body` and `query` are what the route's schemas loaded."""

    request: web.Request
    services: Services
    origin: Origin
    who: Who
    body: dict[str, Any]
    query: dict[str, Any]
    raw_body: dict[str, Any]

    def device_id(self) -> str:
        """The device id in the path. Raises `DeviceNotFound` for what cannot be one."""
        text = self.request.match_info["deviceId"]
        if not DEVICE_ID.match(text):
            raise DeviceNotFound
        return text

    def uuid(self, name: str, missing: type[NotFound]) -> UUID:
        """The UUID in the path under `name`. Raises `missing` for what is none."""
        found = parse_uuid(self.request.match_info[name])
        if found is None:
            raise missing
        return found

    def idempotency(self) -> IdempotencyKey | None:
        """The client's Idempotency-Key with what it stands for. Raises `InvalidRequest` for a malformed one."""
        key = idempotency_key(self.request.headers)
        if key is None:
            return None
        return IdempotencyKey(key, f"{self.request.method} {self._path()}", self.raw_body)

    def _path(self) -> str:
        """The path with its UUIDs in their one spelling, so that another spelling is no other endpoint."""
        info = self.request.match_info
        names = {name: str(parse_uuid(text) or text) for name, text in info.items()}
        resource = info.route.resource
        return self.request.path if resource is None else resource.canonical.format_map(names)

    def connected(self) -> bool:
        """Whether the client is still there to hear the answer."""
        transport = self.request.transport
        return transport is not None and not transport.is_closing()


CallHandler = Callable[[Call[Any]], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Header:
    """A header as OpenAPI shows it."""

    name: str
    description: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the table from which both the router and the OpenAPI document are made.

    `query` None means that query parameters are ignored, `body` None that a body is. `success` is None for 204.
    `instant` routes wait for nothing, and need no bound on their time.
    With `repeats` most bodies are the same few, hold nothing secret, and are loaded once; `raw_body` is empty then.
    `errors` are the classes of the expected failures besides those that follow from `auth` and `body`.
    `examples` are successful answers by name.
    """

    method: str
    path: str
    handler: CallHandler
    auth: Auth
    summary: str
    tag: str
    success: Schema | None = None
    status: HTTPStatus = HTTPStatus.OK
    body: Schema | None = None
    body_limit: int = BODY_LIMIT
    repeats: bool = False
    instant: bool = False
    query: Schema | None = None
    errors: tuple[type[GatewayError], ...] = ()
    headers: tuple[Header, ...] = ()
    description: str = ""
    media_type: str = "application/json"
    others: Mapping[HTTPStatus, Schema] = field(default_factory=dict)


def endpoint(route: Route) -> Handler:
    """The aiohttp handler that does what `route` says, within the time that a whole request may take (section 7).

    Past it the service is cancelled: what it changes is one transaction, so all of it is done or nothing.
    """

    read = _body_reader(route)

    async def understood(request: web.Request, services: Services) -> web.StreamResponse:
        who: Any = None if route.auth is Auth.NONE else await _enter(route.auth, request, services)
        if route.auth is Auth.CUSTOMER and route.method != "GET":
            # Told before what is wrong with the body: a viewer's write is 403 whatever is in it.
            require_write(who)
        query = load_query(route.query, request.query) if route.query is not None else {}
        body, raw_body = ({}, {}) if read is None else await read(request)
        return await route.handler(Call(request, services, request[ORIGIN], who, body, query, raw_body))

    async def handle(request: web.Request) -> web.StreamResponse:
        app = request.app
        if route.instant:
            return await understood(request, app[SERVICES])
        deadlines = app[REQUESTS]
        task = cast("asyncio.Task[None]", asyncio.current_task())
        deadlines.begin(task)
        try:
            return await understood(request, app[SERVICES])
        except asyncio.CancelledError as error:
            if error.args != (OVERDUE,):
                raise
            task.uncancel()
            raise Unavailable("The request took too long.") from None
        finally:
            deadlines.end(task)

    return handle


_Read = Callable[[web.Request], Awaitable[tuple[dict[str, Any], dict[str, Any]]]]


def _body_reader(route: Route) -> _Read | None:
    """What reads a request's body: as it was loaded, and as it came; None for a route that ignores it."""
    schema = route.body
    if schema is None:
        return None
    # What loads of this route say over and over, by their bytes.
    known: dict[bytes, dict[str, Any]] = {}

    async def read(request: web.Request) -> tuple[dict[str, Any], dict[str, Any]]:
        raw = await read_object(request, route.body_limit)
        return load(schema, raw), raw

    async def read_known(request: web.Request) -> tuple[dict[str, Any], dict[str, Any]]:
        raw = await read_json(request, route.body_limit)
        body = known.get(raw)
        if body is None:
            body = load(schema, parse_object(raw) if raw else {})
            if len(raw) <= _MOST_KNOWN_OCTETS:
                if len(known) >= _MOST_KNOWN:
                    # The oldest; when it was one of the usual ones it is soon back.
                    del known[next(iter(known))]
                known[raw] = body
        return body, {}

    return read_known if route.repeats else read


async def _enter(auth: Auth, request: web.Request, services: Services) -> Any:
    match auth:
        case Auth.NONE:
            return None
        case Auth.CUSTOMER:
            headers = request.headers
            access = services.customer_access
            principal = await access.enter(bearer_token(headers), customer_header(headers))
            bind_context(customer_id=principal.customer_id)
            return principal
        case Auth.DEVICE:
            caller = await services.device_access.enter(device_token(request.headers))
            bind_context(device_id=caller.device_id, customer_id=caller.customer_id)
            return caller
        case Auth.DEVICE_TOKEN:
            token = device_token(request.headers)
            if token is None:
                raise Unauthenticated
            return token
