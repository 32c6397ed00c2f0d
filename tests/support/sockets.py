"""WebSocket clients for tests: plain JSON frames over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from .clients import CustomerClient, DeviceClient

# Seconds after which a frame that was waited for is not going to come; wide, for busy machines.
PATIENCE = 10.0


class Closed(Exception):
    """The gateway closed the socket; `code` is the close code, None when there was no close frame."""

    def __init__(self, code: int | None) -> None:
        self.code = code
        super().__init__(f"closed {code}")


@dataclass(slots=True)
class SocketClient:
    """One open socket. Frames that were not waited for stay in `earlier`."""

    ws: ClientWebSocketResponse
    earlier: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, type: str, payload: Mapping[str, Any] | None = None, request_id: str | None = None) -> None:
        message: dict[str, Any] = {"type": type, "payload": dict(payload or {})}
        if request_id is not None:
            message["requestId"] = request_id
        await self.ws.send_str(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        """The next frame. Raises `Closed` at the end, `TimeoutError` when none comes."""
        incoming = await self.ws.receive(timeout=PATIENCE)
        if incoming.type is WSMsgType.TEXT:
            return dict(json.loads(incoming.data))
        raise Closed(self.ws.close_code)

    async def expect(self, type: str) -> dict[str, Any]:
        """The next frame of `type`; frames of other types are kept in `earlier`."""
        for frame in self.earlier:
            if frame["type"] == type:
                self.earlier.remove(frame)
                return frame
        while True:
            frame = await self.receive()
            if frame["type"] == type:
                return frame
            self.earlier.append(frame)

    async def ask(self, type: str, payload: Mapping[str, Any] | None = None, *, answer: str) -> dict[str, Any]:
        """Send a message and return the payload of its answer, which must be of type `answer`."""
        frame = await self.ask_or_fail(type, payload, answer=answer)
        assert frame["type"] == answer, frame
        return dict(frame["payload"])

    async def ask_or_fail(self, type: str, payload: Mapping[str, Any] | None = None, *, answer: str) -> dict[str, Any]:
        """Send a message and return its answer, which is of type `answer` or an error."""
        request_id = f"ask-{id(payload)}-{type}"
        await self.send(type, payload, request_id)
        while True:
            frame = await self.receive()
            if frame.get("requestId") == request_id and frame["type"] in (answer, "error"):
                return frame
            self.earlier.append(frame)

    async def closed(self) -> int | None:
        """Wait for the end and return the close code."""
        while True:
            try:
                self.earlier.append(await self.receive())
            except Closed as closed:
                return closed.code

    async def silent(self, seconds: float) -> bool:
        """Whether nothing comes for `seconds`: only for what must not happen."""
        try:
            incoming = await self.ws.receive(timeout=seconds)
        except TimeoutError:
            return True
        if incoming.type is WSMsgType.TEXT:
            self.earlier.append(json.loads(incoming.data))
        return False


@asynccontextmanager
async def open_socket(http: ClientSession, url: str, **options: Any) -> AsyncIterator[SocketClient]:
    """Open a socket at `url`; raises `aiohttp.WSServerHandshakeError` when it is refused before the upgrade."""
    ws = await http.ws_connect(url, autoping=True, **options)
    try:
        yield SocketClient(ws)
    finally:
        await asyncio.wait_for(ws.close(), 5.0)


@asynccontextmanager
async def device_socket(
    device: DeviceClient, query: str = "", *, url: str | None = None
) -> AsyncIterator[SocketClient]:
    """A device's socket that has been greeted."""
    headers = {"X-Device-Token": device.token}
    async with open_socket(device.http, f"{url or device.url}/ws/device{query}", headers=headers) as socket:
        await socket.expect("connected")
        yield socket


@asynccontextmanager
async def portal_socket(customer: CustomerClient, *, url: str | None = None) -> AsyncIterator[SocketClient]:
    """A portal's socket that has been greeted."""
    async with open_socket(customer.http, f"{url or customer.url}/ws/customer", headers=customer.headers) as socket:
        await socket.expect("connected")
        yield socket
