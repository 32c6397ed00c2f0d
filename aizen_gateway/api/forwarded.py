"""Whose address a request came from, when proxies stand in between (contract section 7, `AIZEN_TRUSTED_PROXIES`).

Rate limits and the audit record lean on it, so it must not be what a stranger writes into a header: a hop is
believed only when the one that named it is trusted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

from multidict import MultiMapping

_Address: TypeAlias = IPv4Address | IPv6Address
_Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]

_LOCAL = IPv4Address("127.0.0.1")
_NOBODY = IPv4Address(0)

_IN_BRACKETS = re.compile(r"\[([^\[\]]+)\](?::[0-9]{1,5})?", re.ASCII)
_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}", re.ASCII)


def client_address(peername: object, headers: MultiMapping[str], trusted: _Networks) -> str:
    """The client's address, always an IP address as text; IPv4-mapped IPv6 is written as IPv4, zones are left out.

    `peername` is the transport's: `(host, port, ...)`, or an empty text on a unix socket. `X-Forwarded-For` is read
    from the right for as long as each hop is in `trusted`; the first that is not is the client. A hop that is not an
    address ends the walk: the trusted proxy that wrote it stands for the client, as nothing beyond can be believed.

    Whoever connects over a unix socket is a proxy on this machine: it is trusted as soon as any proxy is, and is
    `127.0.0.1` when it forwards nobody. A peer that was gone before its name could be read (`peername` is None) is
    `0.0.0.0`, and nothing it says is believed.
    """
    if isinstance(peername, tuple) and peername and not trusted:
        return _shown(str(peername[0]))
    peer, believed = _peer(peername, trusted)
    if not believed:
        return str(peer)
    for hop in reversed(",".join(headers.getall("X-Forwarded-For", [])).split(",")):
        address = _hop(hop.strip())
        if address is None:
            break
        peer = address
        if not _is_trusted(address, trusted):
            break
    return str(peer)


@lru_cache(maxsize=4096)
def _shown(host: str) -> str:
    """A peer whose headers nobody believes."""
    return str(_parsed(host.partition("%")[0]) or _NOBODY)


def _peer(peername: object, trusted: _Networks) -> tuple[_Address, bool]:
    """The peer's own address, and whether what it forwards is believed."""
    if isinstance(peername, tuple | list) and peername:
        address = _parsed(str(peername[0]).partition("%")[0])
        return (address, _is_trusted(address, trusted)) if address else (_NOBODY, False)
    if isinstance(peername, str | bytes):
        return _LOCAL, bool(trusted)
    return _NOBODY, False


def _hop(text: str) -> _Address | None:
    """One entry of the header: an address, bare or with a port, IPv6 in brackets or bare."""
    match = _IN_BRACKETS.fullmatch(text) or _WITH_PORT.fullmatch(text)
    return _parsed(match[1] if match else text)


def _parsed(text: str) -> _Address | None:
    if "%" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_trusted(address: _Address, trusted: _Networks) -> bool:
    return any(address in network for network in trusted)
