"""ICMP echo by hand (RFC 792, RFC 4443), for `ping` and `traceroute`.

Linux lets everybody send echoes from a datagram socket when `net.ipv4.ping_group_range` allows it, and whoever holds
CAP_NET_RAW from a raw one. The first numbers its packets itself and hears echo replies only; the second hears every
ICMP packet of the host, routers' errors included, and has to find its own among them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from aizen_gateway.dev.diagnostics.resolve import Address

_HEADER = struct.Struct("!BBHHH")
_TOKEN_BYTES = 8
_BUFFER = 4096
# Linux's number for IP_RECVTTL, which the socket module does not name.
_IP_RECVTTL = 12


class Kind(StrEnum):
    ECHO = "echo"
    UNREACHABLE = "unreachable"
    TIME_EXCEEDED = "time_exceeded"


class Mode(StrEnum):
    DATAGRAM = "icmp-datagram"
    RAW = "icmp-raw"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back to one probe. `rtt_ms` is in milliseconds; `hop_limit` is what was left of the reply's own."""

    kind: Kind
    code: int
    source: str
    rtt_ms: float
    hop_limit: int | None = None


@dataclass(frozen=True, slots=True)
class _Types:
    request: int
    reply: int
    errors: dict[int, Kind]


_V4 = _Types(8, 0, {3: Kind.UNREACHABLE, 11: Kind.TIME_EXCEEDED})
_V6 = _Types(128, 129, {1: Kind.UNREACHABLE, 3: Kind.TIME_EXCEEDED})


class IcmpSocket:
    """Sends echoes and matches what comes back, many at a time. Use as a context manager."""

    def __init__(self, family: int, modes: tuple[Mode, ...] = (Mode.DATAGRAM, Mode.RAW)) -> None:
        """Open the first of `modes` that the system allows. Raises `OSError` (of the last one tried) when none is."""
        self._family = family
        self._types = _V4 if family == socket.AF_INET else _V6
        self._socket, self.mode = _open(family, modes)
        self._identifier = secrets.randbelow(0xFFFF) + 1
        self._token = os.urandom(_TOKEN_BYTES)
        self._waiting: dict[int, tuple[asyncio.Future[Reply], float]] = {}
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def limit_hops(self, hops: int) -> None:
        """Let the packets that follow live for `hops` routers."""
        if self._family == socket.AF_INET:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
        else:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)

    async def probe(self, address: Address, sequence: int, *, size: int, timeout_s: float) -> Reply | None:
        """Send one echo with `size` bytes of data (at least 8) and return the answer, None when the time is up.

        `sequence` must not be under way already. Raises `OSError` when it cannot even be sent.
        """
        answer: asyncio.Future[Reply] = self._loop.create_future()
        packet = self._packet(sequence, size)
        self._waiting[sequence] = (answer, time.perf_counter())
        try:
            # ICMP has no ports, and IPv6 refuses one.
            self._socket.sendto(packet, (address.sockaddr[0], 0, *address.sockaddr[2:]))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._waiting[sequence]

    def _packet(self, sequence: int, size: int) -> bytes:
        data = self._token + bytes(max(0, size - _TOKEN_BYTES))
        head = _HEADER.pack(self._types.request, 0, 0, self._identifier, sequence)
        # The kernel fills in the checksum of ICMPv6, which covers addresses that are not known here.
        checksum = _checksum(head + data) if self._family == socket.AF_INET else 0
        return _HEADER.pack(self._types.request, 0, checksum, self._identifier, sequence) + data

    def _on_readable(self) -> None:
        while True:
            try:
                data, ancillary, _, source = self._socket.recvmsg(_BUFFER, 256)
            except OSError:
                return
            now = time.perf_counter()
            hop_limit = _hop_limit(ancillary)
            if self._family == socket.AF_INET and data and data[0] >> 4 == 4 and len(data) >= 28:
                hop_limit, data = data[8], data[(data[0] & 15) * 4 :]
            found = self._match(data)
            if found is None:
                continue
            kind, code, sequence = found
            answer, sent_at = self._waiting.get(sequence, (None, 0.0))
            if answer is not None and not answer.done():
                answer.set_result(Reply(kind, code, str(source[0]), (now - sent_at) * 1000, hop_limit))

    def _match(self, data: bytes) -> tuple[Kind, int, int] | None:
        """Return kind, code and sequence of a packet that answers one of ours, else None."""
        if len(data) < _HEADER.size:
            return None
        kind, code, _, identifier, sequence = _HEADER.unpack_from(data)
        if kind == self._types.reply:
            ours = data[_HEADER.size :].startswith(self._token)
            return (Kind.ECHO, code, sequence) if ours else None
        if kind in self._types.errors:
            inner = _embedded(data[_HEADER.size :], self._family)
            if len(inner) >= _HEADER.size:
                inner_kind, _, _, identifier, sequence = _HEADER.unpack_from(inner)
                if inner_kind == self._types.request and identifier == self._identifier:
                    return self._types.errors[kind], code, sequence
        return None


def _open(family: int, modes: tuple[Mode, ...]) -> tuple[socket.socket, Mode]:
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    refused = OSError("no kind of ICMP socket was asked for")
    for mode in modes:
        try:
            opened = socket.socket(family, socket.SOCK_DGRAM if mode is Mode.DATAGRAM else socket.SOCK_RAW, protocol)
        except OSError as error:
            refused = error
            continue
        opened.setblocking(False)
        try:
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            elif mode is Mode.DATAGRAM:
                opened.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
        except OSError:
            # Without it a reply lacks its hop limit, and nothing else.
            pass
        return opened, mode
    raise refused


def _embedded(packet: bytes, family: int) -> bytes:
    """The ICMP part of the packet that a router sends back with its error, empty when it is not ICMP."""
    if family == socket.AF_INET6:
        return packet[40:] if len(packet) >= 40 and packet[6] == socket.IPPROTO_ICMPV6 else b""
    if len(packet) < 20 or packet[9] != socket.IPPROTO_ICMP:
        return b""
    return packet[(packet[0] & 15) * 4 :]


def _hop_limit(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, value in ancillary:
        v4 = level == socket.IPPROTO_IP and kind == socket.IP_TTL
        if (v4 or (level == socket.IPPROTO_IPV6 and kind == socket.IPV6_HOPLIMIT)) and len(value) >= 4:
            return int.from_bytes(value[:4], sys.byteorder)
    return None


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def permission_words(error: OSError) -> str:
    """Why ICMP is not to be had, for the reason of a failure."""
    return f"ICMP sockets are not allowed here ({(error.strerror or str(error)).lower()})"


def as_milliseconds(value: Any) -> float:
    """Round for people: microseconds are what these clocks can tell."""
    return round(float(value), 3)
