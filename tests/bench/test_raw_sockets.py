"""The bench's own client of sockets reads what a server may send, however it is cut."""

from __future__ import annotations

import asyncio

import pytest

from .raw_sockets import RawSocket, masked_text

_UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
_LONG = b"x" * 300
_FRAMES = b"\x81\x05hello" + b"\x89\x02hi" + b"\x81\x7e\x01\x2c" + _LONG + b"\x81\x00" + b"\x88\x02\x03\xf5"


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_frames_are_read_however_they_are_cut(size: int) -> None:
    heard: list[bytes] = []
    transport = _Transport()
    socket = RawSocket(b"opening", heard.append)
    socket.connection_made(transport)
    data = _UPGRADED + _FRAMES
    for start in range(0, len(data), size):
        socket.data_received(data[start : start + size])
    assert socket.greeted.done()
    assert heard == [_LONG, b""]
    assert transport.written == [b"opening", b"\x8a\x82\x00\x00\x00\x00hi"]
    socket.connection_lost(None)
    assert (socket.lost, socket.close_code) == (True, 1013)


async def test_a_refused_handshake_fails() -> None:
    socket = RawSocket(b"", lambda _payload: None)
    socket.connection_made(_Transport())
    socket.data_received(b"HTTP/1.1 401 Unauthorized\r\n\r\n")
    with pytest.raises(ConnectionError, match="401"):
        await socket.greeted


def test_a_text_is_masked_as_a_clients_must_be() -> None:
    assert masked_text(b"hi") == b"\x81\x82\x00\x00\x00\x00hi"
