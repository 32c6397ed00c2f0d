"""Sockets that listen come to an end without resetting anybody whom the kernel has connected, or is about to."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from aiohttp import web

# A classic BPF program for what arrives, from the TCP header on: load the byte of the flags; with SYN set take nothing
# of the packet, else all of it.
_NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF_FFFF))
)
# Of Linux; Python has no name for it.
_SO_ATTACH_FILTER = 26


def listeners(site: web.BaseSite) -> Sequence[socket.socket]:
    """What `site` listens on, to be read on when the site has stopped."""
    server = cast("asyncio.Server | None", site._server)
    return [socket.socket(fileno=os.dup(listener.fileno())) for listener in server.sockets] if server else []


def pass_over(listener: socket.socket) -> None:
    """Have the kernel begin no connection any more, and end the handshakes that it has begun.

    Who begins one now is told nothing, and asks again a second later. A listener that is simply closed resets whoever
    is connected between the last `accept` and its end; their requests may have been sent by then.
    """
    if not sys.platform.startswith("linux") or listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    program = ctypes.create_string_buffer(_NO_SYN)
    # struct sock_fprog: how many instructions, and where.
    option = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(program))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def accepted(listener: socket.socket) -> list[socket.socket]:
    """Take all that wait."""
    listener.setblocking(False)
    taken: list[socket.socket] = []
    with suppress(OSError):
        while True:
            taken.append(listener.accept()[0])
    for connection in taken:
        connection.setblocking(False)
    return taken
