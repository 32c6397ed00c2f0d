"""`/ws/device`: the messages of devices, each a call of the service that REST calls (contract section 6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from aiohttp import web

from ...domain.clock import from_ms, rfc3339
from ...domain.errors import (
    ClaimExpired,
    CommandAlreadyCompleted,
    CommandCanceled,
    CommandNotFound,
    InvalidClaimToken,
    Unauthenticated,
)
from ...domain.values import DeviceCaller, Origin
from ...logs import bind_context
from ...realtime.close_codes import CloseCode
from ...realtime.connection import Connection
from ...realtime.frames import frame
from ...services.device_socket import DeviceSocket
from ...services.prefetch import SocketOptions
from ..keys import CLOSE_CODE, OPTIONS, ORIGIN, SERVICES, Services
from ..schemas import device as d
from ..schemas import device_views as dv
from ..schemas import socket_views as v
from ..schemas import sockets as s
from ..schemas.fields import parse_uuid
from .conversation import Closing, Conversation
from .handshake import device_socket_token, forget_unselected, query_integer, require_upgrade, selected
from .messages import Kind, Message, error_frame, understood
from .wire import SocketWire, WebSocket

Payload = dict[str, Any]

# What tells that a claim is over, whoever ended it.
_OVER = (ClaimExpired, CommandAlreadyCompleted, CommandCanceled, InvalidClaimToken)


class DeviceTalk:
    """What a device may say on its socket. `services` do the work, `socket` is where it is said."""

    __slots__ = ("_services", "_socket")

    def __init__(self, services: Services, socket: DeviceSocket) -> None:
        self._services = services
        self._socket = socket

    async def answer(self, message: Message) -> None:
        """Do what a message asks, and answer it. Raises the services' failures."""
        await self._socket.settled()
        kind, payload = understood(DEVICE_MESSAGES, message)
        _bind(self._socket.caller)
        try:
            answer = await kind.work(self, message, payload, message.origin(self._socket.origin))
        except Unauthenticated as error:
            self._socket.connection.send(error_frame(error, message.request_id))
            await self._socket.signed_out()
            return
        if answer is not None:
            self._socket.connection.send(frame(kind.answer, answer, message.request_id))

    async def _caller(self) -> DeviceCaller:
        return await self._services.device_access.enter(self._socket.token, counted=False)

    async def heartbeat(self, _message: Message, payload: Payload, origin: Origin) -> Payload:
        beat = await self._services.heartbeats.beat(self._socket.token, **payload, origin=origin, over_socket=True)
        return {name: beat[name] for name in ("timestamp", "nextHeartbeat", "pendingCommands")}

    async def status(self, message: Message, payload: Payload, origin: Origin) -> Payload:
        await self.heartbeat(message, payload, origin)
        return {"success": True}

    async def claim(self, _message: Message, payload: Payload, origin: Origin) -> Payload:
        connection = self._socket.connection
        return await self._services.delivery.claim(
            self._socket.token,
            **payload,
            wait_ms=0,
            connected=lambda: not connection.ending,
            origin=origin,
            counted=False,
        )

    async def extend(self, _message: Message, payload: Payload, origin: Origin) -> Payload:
        command_id = _command_id(payload)
        with self._claim_over(command_id, payload["claim_token"]):
            return await self._services.delivery.extend(await self._caller(), command_id, **payload, origin=origin)

    async def release(self, _message: Message, payload: Payload, origin: Origin) -> Payload:
        command_id = _command_id(payload)
        with self._claim_over(command_id, payload["claim_token"]):
            answer = await self._services.delivery.release(await self._caller(), command_id, **payload, origin=origin)
        self._socket.forget(command_id, payload["claim_token"])
        return answer

    async def command_result(self, _message: Message, payload: Payload, origin: Origin) -> Payload:
        command_id = _command_id(payload)
        with self._claim_over(command_id, payload["claim_token"]):
            answer = await self._services.delivery.report(await self._caller(), command_id, **payload, origin=origin)
        self._socket.forget(command_id, payload["claim_token"])
        return answer

    @contextmanager
    def _claim_over(self, command_id: UUID, claim_token: str) -> Iterator[None]:
        """Inside, what is refused because the claim is over takes no more room than what is done."""
        try:
            yield
        except _OVER:
            self._socket.forget(command_id, claim_token)
            raise

    async def connected(self, _message: Message, _payload: Payload, _origin: Origin) -> None:
        return None


def _command_id(payload: Payload) -> UUID:
    command_id = parse_uuid(payload.pop("command_id"))
    if command_id is None:
        raise CommandNotFound
    return command_id


DEVICE_MESSAGES: Mapping[str, Kind] = {
    "heartbeat": Kind(d.HeartbeatBody(), "heartbeat_ack", DeviceTalk.heartbeat, "How the device is", v.HeartbeatAck()),
    "status": Kind(s.StatusMessage(), "ack", DeviceTalk.status, "How the device is, without more", v.StatusAck()),
    "claim": Kind(s.ClaimMessage(), "commands", DeviceTalk.claim, "Lease commands", dv.ClaimedAnswer()),
    "extend": Kind(s.ExtendMessage(), "ack", DeviceTalk.extend, "Keep a command for longer", dv.ExtendedAnswer()),
    "release": Kind(
        s.ReleaseMessage(), "ack", DeviceTalk.release, "Hand a command back unexecuted", dv.ReleasedAnswer()
    ),
    "command_result": Kind(
        s.ResultMessage(), "ack", DeviceTalk.command_result, "What came of a command", dv.ReportedAnswer()
    ),
    "connected": Kind(s.Ignored(), "", DeviceTalk.connected, "Sent by agents in the field, and ignored"),
}


async def device_socket(request: web.Request) -> web.StreamResponse:
    """Upgrade, take the device over, push and answer until the end. What is wrong is told before the upgrade."""
    require_upgrade(request)
    services = request.app[SERVICES]
    token = device_socket_token(request)
    if token is None:
        raise Unauthenticated
    _bind(await services.device_access.enter(token))
    options = SocketOptions(
        query_integer(request, "prefetch", 0, 10, 1),
        query_integer(request, "visibilityTimeout", 1000, 3_600_000, 300_000),
    )
    services.live.require_room()
    protocols = selected(request)
    socket = WebSocket(protocols)
    writer = await socket.prepare(forget_unselected(request, protocols))
    live = services.live
    connection = Connection(SocketWire(request, socket, writer), live.limits, live.timers)
    conversation = Conversation(socket, connection, request.app[OPTIONS].socket_rate)
    with live.track(connection):
        async with Closing(connection):
            device = await services.device_sockets.open(connection, token, options, request[ORIGIN])
            try:
                conversation.on_text = device.heard_text
                connection.send(frame("connected", _hello(services, device, options)))
                device.begin()
                # Not before the greeting: it is the first frame of all.
                await conversation.hold(DeviceTalk(services, device).answer)
            finally:
                await services.device_sockets.leave(device)
    socket[CLOSE_CODE] = connection.close_code or CloseCode.NORMAL
    return socket


def _bind(caller: DeviceCaller) -> None:
    bind_context(device_id=caller.device_id, customer_id=caller.customer_id)


def _hello(services: Services, socket: DeviceSocket, options: SocketOptions) -> Payload:
    return {
        "deviceId": socket.caller.device_id,
        "connectionId": str(socket.connection.id),
        "serverTime": rfc3339(from_ms(socket.caller.now_ms)),
        "heartbeatIntervalMs": services.heartbeats.interval_ms,
        "prefetch": options.prefetch,
    }
