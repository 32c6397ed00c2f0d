"""What is settled before the upgrade: who calls, from which origin, with which subprotocol (contract section 6)."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import hdrs, web

from ...domain.errors import Forbidden, InvalidRequest
from ..credentials import bearer_token, device_token

SUBPROTOCOL = "aizen.v1"
_TOKEN_PREFIX = "auth-"  # noqa: S105 - the name of a subprotocol


def offered(request: web.Request) -> list[str]:
    """The subprotocols that the client offers, in its order."""
    headers = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    return [word.strip() for header in headers for word in header.split(",") if word.strip()]


def _protocol_token(request: web.Request) -> str | None:
    for word in offered(request):
        if word.startswith(_TOKEN_PREFIX) and len(word) > len(_TOKEN_PREFIX):
            return word.removeprefix(_TOKEN_PREFIX)
    return None


def selected(request: web.Request) -> tuple[str, ...]:
    """The subprotocol to select: `aizen.v1`, or `auth-<token>` where that alone was offered, else none.

    Handing over just what was offered keeps aiohttp from logging offers that it does not know, tokens among them.
    """
    words = offered(request)
    if SUBPROTOCOL in words:
        return (SUBPROTOCOL,)
    return tuple(word for word in words if word.startswith(_TOKEN_PREFIX))[:1]


def forget_unselected(request: web.Request, protocols: tuple[str, ...]) -> web.Request:
    """The request as aiohttp's handshake should see it: offering only what is going to be selected."""
    if request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, []) == list(protocols):
        # As with nearly all agents, which offer nothing: another request would be kept for as long as the socket.
        return request
    headers = request.headers.copy()
    headers.popall(hdrs.SEC_WEBSOCKET_PROTOCOL, None)
    if protocols:
        headers[hdrs.SEC_WEBSOCKET_PROTOCOL] = protocols[0]
    return request.clone(headers=headers)


def device_socket_token(request: web.Request) -> str | None:
    """A device's token: a header of REST, else the subprotocol, else `?token=`."""
    return device_token(request.headers) or _protocol_token(request) or request.query.get("token") or None


def customer_socket_token(request: web.Request) -> str | None:
    """A portal's token, None when it will come as the first message."""
    return bearer_token(request.headers) or _protocol_token(request) or request.query.get("token") or None


def require_origin(request: web.Request, allowed: Collection[str]) -> None:
    """Raise `Forbidden` for a page of an origin that is not allowed; other clients send no `Origin`."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and origin not in allowed:
        raise Forbidden("This origin is not allowed.")


def require_upgrade(request: web.Request) -> None:
    """Raise `InvalidRequest` for a request that is no WebSocket handshake."""
    if request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
        raise InvalidRequest.field("Upgrade", "This address speaks WebSocket only.")


def query_integer(request: web.Request, name: str, lowest: int, highest: int, default: int) -> int:
    """An integer of the query. Raises `InvalidRequest` that names it."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and lowest <= int(text) <= highest):
        raise InvalidRequest.field(name, f"Must be an integer from {lowest} to {highest}.")
    return int(text)
