"""`/ws/customer`: the messages of portals (contract section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from aiohttp import web

from ...domain.errors import GatewayError, NoCustomer, Unauthenticated
from ...domain.values import IdempotencyKey, Origin, Principal
from ...logs import bind_context
from ...realtime.close_codes import CloseCode
from ...realtime.connection import Connection
from ...realtime.frames import frame
from ...services.portal_sockets import Credentials, PortalSocket, auth_success
from ..credentials import customer_header
from ..keys import CLOSE_CODE, OPTIONS, ORIGIN, SERVICES, Services
from ..schemas import customer_views as cv
from ..schemas import socket_views as v
from ..schemas import sockets as s
from .conversation import Closing, Conversation
from .handshake import customer_socket_token, forget_unselected, require_origin, require_upgrade, selected
from .messages import Kind, Message, error_frame, understood
from .wire import SocketWire, WebSocket

Payload = dict[str, Any]


class PortalTalk:
    """What a portal may say on its socket."""

    __slots__ = ("_origin", "_socket")

    def __init__(self, socket: PortalSocket, origin: Origin) -> None:
        self._socket = socket
        self._origin = origin

    async def answer(self, message: Message) -> None:
        """Do what a message asks, and answer it. Raises the services' failures."""
        kind, payload = understood(CUSTOMER_MESSAGES, message)
        bind_context(customer_id=str(self._socket.principal.customer_id))
        try:
            answer = await kind.work(self, message, payload, message.origin(self._origin))
        except NoCustomer as error:
            self._socket.connection.send(error_frame(error, message.request_id))
            self._socket.connection.end(CloseCode.FORBIDDEN, "no access")
            return
        if answer is not None:
            self._socket.connection.send(frame(kind.answer, answer, message.request_id))

    async def auth(self, message: Message, payload: Payload, _origin: Origin) -> Payload | None:
        try:
            return await self._socket.renew(payload["token"])
        except Unauthenticated as error:
            # A token that is not good renews nothing; the one the socket has still holds.
            self._socket.connection.send(error_frame(error, message.request_id))
            return None

    async def subscribe(self, message: Message, payload: Payload, _origin: Origin) -> None:
        await self._socket.subscribe(**payload, request_id=message.request_id)

    async def unsubscribe(self, _message: Message, payload: Payload, _origin: Origin) -> Payload:
        # Of no use here.
        payload.pop("last_event_id")
        return await self._socket.unsubscribe(**payload)

    async def join_rooms(self, _message: Message, _payload: Payload, _origin: Origin) -> Payload:
        return await self._socket.join_rooms()

    async def send_command(self, message: Message, payload: Payload, origin: Origin) -> Payload:
        session_id: UUID = payload.pop("session_id")
        key: str | None = payload.pop("idempotency_key")
        idempotency = None
        if key is not None:
            # The same key over REST is the same wish: its endpoint and its body are those of REST.
            body = {name: value for name, value in message.payload.items() if name not in _NOT_IN_BODY}
            endpoint = f"POST /api/v1/customer/sessions/{session_id}/commands"
            idempotency = IdempotencyKey(key, endpoint, body)
        return await self._socket.send_command(session_id, payload, idempotency, origin)

    async def approve(self, _message: Message, payload: Payload, origin: Origin) -> Payload:
        session_id: UUID = payload.pop("session_id")
        return await self._socket.approve(session_id, payload, origin)


_NOT_IN_BODY = frozenset({"sessionId", "idempotencyKey"})

CUSTOMER_MESSAGES: Mapping[str, Kind] = {
    "auth": Kind(s.AuthMessage(), "auth_success", PortalTalk.auth, "Show a token, or renew it", v.AuthSuccess()),
    "subscribe": Kind(
        s.SubscribeMessage(), "subscribed", PortalTalk.subscribe, "Join a room, and resume", v.Subscribed()
    ),
    "unsubscribe": Kind(
        s.UnsubscribeMessage(), "unsubscribed", PortalTalk.unsubscribe, "Leave a room", v.Unsubscribed()
    ),
    "join_rooms": Kind(
        s.JoinRoomsMessage(), "rooms_joined", PortalTalk.join_rooms, "Join the room `customer`", v.RoomsJoined()
    ),
    "send_command": Kind(
        s.SendCommandMessage(), "command_queued", PortalTalk.send_command, "Submit a command", cv.CommandAnswer()
    ),
    "approve": Kind(
        s.ApproveMessage(),
        "approval_recorded",
        PortalTalk.approve,
        "Decide a command or a session",
        cv.DecisionAnswer(),
    ),
}


async def customer_socket(request: web.Request) -> web.StreamResponse:
    """Upgrade, authenticate by handshake or first message, and converse until the end."""
    require_upgrade(request)
    require_origin(request, request.app[OPTIONS].cors_origins)
    services = request.app[SERVICES]
    token = customer_socket_token(request)
    header = customer_header(request.headers)
    entered: tuple[Credentials, Principal] | None = None
    if token is not None:
        credentials = Credentials(token, header)
        entered = credentials, await services.portal_sockets.enter(credentials)
    services.live.require_room()
    protocols = selected(request)
    socket = WebSocket(protocols)
    writer = await socket.prepare(forget_unselected(request, protocols))
    live = services.live
    wire = SocketWire(request, socket, writer)
    if entered is None:
        wire.upgrade()
    connection = Connection(wire, live.limits, live.timers)
    conversation = Conversation(socket, connection, request.app[OPTIONS].socket_rate)
    with live.track(connection):
        async with Closing(connection):
            await _talk(services, conversation, header, entered, request[ORIGIN])
    socket[CLOSE_CODE] = connection.close_code or CloseCode.NORMAL
    return socket


async def _talk(
    services: Services,
    conversation: Conversation,
    header: str | None,
    entered: tuple[Credentials, Principal] | None,
    origin: Origin,
) -> None:
    if entered is None:
        entered = await _first_message(services, conversation, header)
        if entered is None:
            return
    portals = services.portal_sockets
    socket = await portals.open(conversation.connection, *entered)
    try:
        await conversation.hold(PortalTalk(socket, origin).answer)
    finally:
        await portals.leave(socket)


async def _first_message(
    services: Services, conversation: Conversation, header: str | None
) -> tuple[Credentials, Principal] | None:
    """The token as the first message, within its time; its failure is told before the socket is closed.

    None when the socket ended meanwhile.
    """
    connection = conversation.connection
    try:
        async with asyncio.timeout(services.portal_sockets.times.first_message):
            message = await conversation.first()
    except TimeoutError as error:
        raise Unauthenticated from error
    if message is None:
        return None
    try:
        if message.type != "auth":
            raise Unauthenticated("The first message must be auth.")
        _, payload = understood(CUSTOMER_MESSAGES, message)
        credentials = Credentials(payload["token"], header)
    except GatewayError as error:
        # Whatever is wrong with it: it brought no token.
        connection.send(error_frame(error, message.request_id))
        raise Unauthenticated from error
    try:
        principal = await services.portal_sockets.enter(credentials)
    except GatewayError as error:
        connection.send(error_frame(error, message.request_id))
        raise
    connection.send(frame("auth_success", auth_success(principal), message.request_id))
    return credentials, principal
