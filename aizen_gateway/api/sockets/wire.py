"""An aiohttp WebSocket as the transport of a `Connection`."""

from __future__ import annotations

import contextlib

from aiohttp import WSMsgType, web

# What a peer may send in one message; one octet more closes the socket 1009.
FRAME_LIMIT = 256 * 1024
# Seconds that a closing socket waits for the peer's own close frame.
_CLOSE_WAIT = 2.0


class WebSocket(web.WebSocketResponse):
    """A socket whose frames come as bytes, uncompressed, and which leaves pings, pongs and closing to its owner."""

    def __init__(self, protocols: tuple[str, ...]) -> None:
        super().__init__(
            timeout=_CLOSE_WAIT,
            autoclose=False,
            autoping=False,
            heartbeat=None,
            protocols=protocols,
            compress=False,
            max_msg_size=FRAME_LIMIT + 1,
            decode_text=False,
        )


class SocketWire:
    """Sends on a prepared WebSocket. Only the connection's writer may call `send`, `ping`, `pong` and `close`."""

    def __init__(self, request: web.Request, socket: WebSocket) -> None:
        self._transport = request.transport
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        await self._socket.send_frame(frame, WSMsgType.TEXT)

    async def ping(self) -> None:
        await self._socket.ping()

    async def pong(self, data: bytes) -> None:
        await self._socket.pong(data)

    async def close(self, code: int, reason: str) -> None:
        await self._socket.close(code=code, message=reason.encode())

    def abort(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._transport.abort()
