"""Turns a host into addresses with the system's resolver, once for all the diagnostics that send packets."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from aizen_gateway.dev.diagnostics.outcome import CannotRun
from aizen_gateway.dev.diagnostics.parameters import Parameters

_FAMILIES = {"any": socket.AF_UNSPEC, "4": socket.AF_INET, "6": socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a host, ready for a socket. `sockaddr` carries the port and, for IPv6, the scope."""

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]

    @property
    def text(self) -> str:
        return str(self.sockaddr[0])


def family_of(parameters: Parameters) -> int:
    """Read the parameter `family`: `any` (default), `4` or `6`."""
    return _FAMILIES[parameters.choice("family", "any", tuple(_FAMILIES))]


async def resolve(host: str, *, family: int = socket.AF_UNSPEC, port: int = 0) -> list[Address]:
    """Return the addresses of `host`, the preferred first, never none.

    Raises `CannotRun` with the resolver's reason.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise CannotRun(f"{host} does not resolve: {reason(error)}") from None
    addresses = [
        Address(socket.AddressFamily(each[0]), tuple(each[4]))
        for each in found
        if each[0] in (socket.AF_INET, socket.AF_INET6)
    ]
    if not addresses:
        raise CannotRun(f"{host} does not resolve to an IP address")
    return list(dict.fromkeys(addresses))


def reason(error: BaseException) -> str:
    """An operating system's error in its own words, without numbers or Python's names."""
    if isinstance(error, TimeoutError) and not error.args:
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "the TLS handshake failed").replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno).lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
