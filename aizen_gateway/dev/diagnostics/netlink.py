"""Asks Linux for its addresses and neighbours over rtnetlink, which needs no rights and knows IPv6 as well as IPv4."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from aizen_gateway.dev.diagnostics.outcome import CannotRun

_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR, _DONE = 2, 3
_REQUEST_DUMP = 0x301
_GET_ADDRESS, _GET_NEIGHBOUR = 22, 30
_ADDRESS_HEAD = struct.Struct("=BBBBI")
_NEIGHBOUR_HEAD = struct.Struct("=BxxxIHBB")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_TIMEOUT_S = 3
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host"}
_STATES = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "no-arp",
    0x80: "permanent",
}


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    index: int
    family: str
    address: str
    prefix: int
    scope: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    index: int
    family: str
    address: str
    mac: str | None
    state: str


def interface_addresses() -> list[InterfaceAddress]:
    """Every address of every interface. Blocks for a moment; raises `CannotRun` where there is no rtnetlink."""
    found = []
    for body in _dump(_GET_ADDRESS):
        family, prefix, _, scope, index = _ADDRESS_HEAD.unpack_from(body)
        attributes = _attributes(body[_ADDRESS_HEAD.size :])
        # On a point-to-point link the plain address is the peer's, and the local one is ours.
        address = _text(family, attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS))
        if address is not None:
            found.append(InterfaceAddress(index, _family(family), address, prefix, _SCOPES.get(scope, str(scope))))
    return found


def neighbours() -> list[Neighbour]:
    """The neighbour tables of IPv4 (ARP) and IPv6. Blocks for a moment; raises `CannotRun` as above."""
    found = []
    for body in _dump(_GET_NEIGHBOUR):
        family, index, state, _, _ = _NEIGHBOUR_HEAD.unpack_from(body)
        attributes = _attributes(body[12:])
        address = _text(family, attributes.get(_NDA_DST))
        if address is not None:
            mac = attributes.get(_NDA_LLADDR)
            words = _STATES.get(state, "none")
            found.append(Neighbour(index, _family(family), address, mac.hex(":") if mac else None, words))
    return found


def _dump(kind: int) -> Iterator[bytes]:
    if not hasattr(socket, "AF_NETLINK"):
        raise CannotRun("this needs Linux")
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
            channel.settimeout(_TIMEOUT_S)
            head = bytes(12)
            channel.send(_MESSAGE.pack(_MESSAGE.size + len(head), kind, _REQUEST_DUMP, 1, 0) + head)
            while True:
                data = channel.recv(256 * 1024)
                while len(data) >= _MESSAGE.size:
                    length, answer, _, _, _ = _MESSAGE.unpack_from(data)
                    if answer == _DONE:
                        return
                    if answer == _ERROR or length < _MESSAGE.size:
                        raise CannotRun("the kernel does not tell its network tables here")
                    yield data[_MESSAGE.size : length]
                    data = data[(length + 3) & ~3 :]
    except OSError as error:
        raise CannotRun(f"the kernel's network tables cannot be read: {error.strerror or error}") from None


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found


def _text(family: int, packed: bytes | None) -> str | None:
    if packed is None or (family, len(packed)) not in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        return None
    return socket.inet_ntop(family, packed)


def _family(family: int) -> str:
    return "ipv6" if family == socket.AF_INET6 else "ipv4"
