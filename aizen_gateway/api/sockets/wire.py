"""An aiohttp WebSocket as the transport of a `Connection`."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import cast

from aiohttp import WSMsgType, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter

# What a peer may send in one message; one octet more closes the socket 1009.
FRAME_LIMIT = 256 * 1024
# Seconds that a closing socket waits for the peer's own close frame.
_CLOSE_WAIT = 2.0


class WebSocket(web.WebSocketResponse):
    """A socket whose frames come as bytes, uncompressed, and which leaves pings, pongs and closing to its owner.

    The answer to its handshake waits for its `SocketWire`.
    """

    _send_headers_immediately = False

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


_NO_LINGER = struct.pack("ii", 1, 0)
# A frame's first octet: it is whole, and what it is.
_WHOLE_TEXT, _WHOLE_PING, _WHOLE_PONG = (0x80 | kind for kind in (WSMsgType.TEXT, WSMsgType.PING, WSMsgType.PONG))


class SocketWire:
    """Writes to a prepared WebSocket, for its connection alone. The answer to the handshake goes out with the first
    frame: the gateway has nearly always something to say, and a write is a good part of what opening a socket costs.

    A server's frames bear no mask, and without compression nothing comes between two of them, so they are made here:
    the framework's own way to send is a coroutine a frame.
    """

    __slots__ = ("_drain", "_head", "_protocol", "_transport", "_websocket")

    def __init__(self, request: web.BaseRequest, websocket: WebSocket, writer: AbstractStreamWriter) -> None:
        self._transport = request.transport
        self._protocol = request.protocol
        self._websocket = websocket
        self._drain = writer.drain
        self._head = _take_head(writer)

    @property
    def full(self) -> bool:
        """Whether the transport has enough to send for now."""
        return self._protocol.writing_paused

    def upgrade(self) -> None:
        """Send the answer to the handshake now, if it has not gone out yet: for a client that is to speak first."""
        if self._head and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""

    def write(self, frame: bytes) -> None:
        """Send one text frame."""
        self._write(_WHOLE_TEXT, frame)

    def ping(self) -> None:
        self._write(_WHOLE_PING, b"")

    def pong(self, data: bytes) -> None:
        self._write(_WHOLE_PONG, data)

    def _write(self, first: int, payload: bytes) -> None:
        transport = self._transport
        # The framework closes by itself after what it does not understand: nothing may follow its close frame.
        if transport is None or transport.is_closing() or self._websocket.closed:
            raise ConnectionResetError
        length = len(payload)
        if length < 126:
            head = bytes((first, length))
        elif length < 65536:
            head = bytes((first, 126)) + length.to_bytes(2, "big")
        else:
            head = bytes((first, 127)) + length.to_bytes(8, "big")
        if self._head:
            head, self._head = self._head + head, b""
        transport.write(head + payload)

    async def drained(self) -> None:
        """Wait until the transport takes more."""
        await self._drain()
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError

    async def close(self, code: int, reason: str) -> None:
        self.upgrade()
        await self._websocket.close(code=code, message=reason.encode())

    def abort(self) -> None:
        failure = self._websocket.exception()
        if failure is not None:
            # Where it came from leads back to the socket, which would wait for the garbage collector.
            failure.__traceback__ = failure.__context__ = None
        transport = self._transport
        if transport is None:
            return
        with contextlib.suppress(OSError, RuntimeError):
            if self.full and not transport.is_closing():
                # What the kernel holds for a peer that is stuck goes as well: it is told by a reset.
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()


def _take_head(writer: AbstractStreamWriter) -> bytes:
    """The head of the answer, which the framework has made and not sent: to send it is the caller's."""
    writer = cast("StreamWriter", writer)
    head, writer._headers_buf, writer._headers_written = writer._headers_buf or b"", None, True
    return head
