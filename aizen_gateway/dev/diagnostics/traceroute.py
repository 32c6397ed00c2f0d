"""`traceroute`: which routers lie on the way to a host. IPv4 and IPv6.

With a raw socket the probes are ICMP echoes, which most firewalls let through. Without the right to one they are UDP
packets to ports that nobody uses, and the routers' answers are read from the socket's error queue, which Linux gives
to everybody.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aizen_gateway.dev.diagnostics.icmp import IcmpSocket, Kind, Mode, Reply, as_milliseconds, permission_words
from aizen_gateway.dev.diagnostics.outcome import CannotRun, Outcome
from aizen_gateway.dev.diagnostics.parameters import Parameters
from aizen_gateway.dev.diagnostics.resolve import Address, family_of, reason, resolve

_FIRST_PORT = 33434
_ICMP_SIZE = 32
# Linux's numbers, which the socket module does not name.
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_ORIGINS = (2, 3)
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_KINDS = {(2, 11): Kind.TIME_EXCEEDED, (2, 3): Kind.UNREACHABLE, (3, 3): Kind.TIME_EXCEEDED, (3, 1): Kind.UNREACHABLE}
_PORT_UNREACHABLE = {socket.AF_INET: 3, socket.AF_INET6: 4}

Probe = Callable[[int], Awaitable[Reply | None]]


async def traceroute(parameters: Parameters) -> Outcome:
    """Find the routers towards a host.

    Parameters: `host`; `maxHops` 1-64 (20); `probes` 1-5 a hop (2); `timeoutMs` 100-10000 (1000), for each hop;
    `family` any|4|6 (any).
    Result: `{host, address, method, reached, hops: [{hop, addresses, rttMs: [number|null], unreachable?}]}`.
    Raises `CannotRun` where the system offers neither raw sockets nor an error queue.
    """
    host = parameters.host()
    max_hops = parameters.integer("maxHops", 20, 1, 64)
    probes = parameters.integer("probes", 2, 1, 5)
    timeout_s = parameters.seconds("timeoutMs", 1000, 100, 10_000)
    address = (await resolve(host, family=family_of(parameters), port=_FIRST_PORT))[0]
    try:
        channel = IcmpSocket(address.family, (Mode.RAW,))
    except OSError as error:
        if not sys.platform.startswith("linux"):
            raise CannotRun(permission_words(error)) from None
        numbers = itertools.count()

        async def by_udp(hop: int) -> Reply | None:
            port = _FIRST_PORT + next(numbers) % 512
            return await _udp_probe(address, hop, port, timeout_s)

        return await _walk(host, address, "udp", max_hops, probes, by_udp)
    with channel:
        sequences = itertools.count(1)

        async def by_icmp(hop: int) -> Reply | None:
            channel.limit_hops(hop)
            return await channel.probe(address, next(sequences), size=_ICMP_SIZE, timeout_s=timeout_s)

        return await _walk(host, address, "icmp", max_hops, probes, by_icmp)


async def _walk(host: str, address: Address, method: str, max_hops: int, probes: int, probe: Probe) -> Outcome:
    hops: list[dict[str, Any]] = []
    reached = False
    for hop in range(1, max_hops + 1):
        # Started together and never with another hop: the hop limit belongs to the socket.
        told = await asyncio.gather(*(_told(probe, hop, address) for _ in range(probes)), return_exceptions=True)
        replies: list[Reply | None] = []
        for each in told:
            if isinstance(each, BaseException):
                raise each
            replies.append(each)
        answers = [reply for reply in replies if reply is not None]
        reached = any(_is_end(reply, address) for reply in answers)
        blocked = not reached and any(reply.kind is Kind.UNREACHABLE for reply in answers)
        hops.append(
            {
                "hop": hop,
                "addresses": sorted({reply.source for reply in answers}),
                "rttMs": [None if reply is None else as_milliseconds(reply.rtt_ms) for reply in replies],
            }
        )
        if blocked:
            hops[-1]["unreachable"] = True
        if reached or blocked:
            break
    return Outcome(
        _text(host, address, method, hops, reached),
        {"host": host, "address": address.text, "method": method, "reached": reached, "hops": hops},
    )


async def _told(probe: Probe, hop: int, address: Address) -> Reply | None:
    try:
        return await probe(hop)
    except OSError as error:
        raise CannotRun(f"cannot send towards {address.text}: {reason(error)}") from None


def _is_end(reply: Reply, address: Address) -> bool:
    if reply.kind is Kind.ECHO:
        return True
    return reply.kind is Kind.UNREACHABLE and reply.code == _PORT_UNREACHABLE[address.family]


def _text(host: str, address: Address, method: str, hops: list[dict[str, Any]], reached: bool) -> str:
    lines = [f"traceroute to {host} ({address.text}) by {method}"]
    for hop in hops:
        times = "  ".join("*" if ms is None else f"{ms} ms" for ms in hop["rttMs"])
        mark = "  unreachable" if "unreachable" in hop else ""
        lines.append(f"{hop['hop']:>2}  {', '.join(hop['addresses']) or '*'}  {times}{mark}")
    lines.append("reached" if reached else "not reached")
    return "\n".join(lines)


async def _udp_probe(address: Address, hop: int, port: int, timeout_s: float) -> Reply | None:
    """One UDP packet and the ICMP error that it provokes. Raises `OSError` when it cannot be sent."""
    loop = asyncio.get_running_loop()
    with socket.socket(address.family, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        if address.family == socket.AF_INET:
            udp.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            udp.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hop)
        else:
            udp.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hop)
        arrived = asyncio.Event()
        sent_at = time.perf_counter()
        udp.sendto(b"aizen", (address.sockaddr[0], port, *address.sockaddr[2:]))
        loop.add_reader(udp.fileno(), arrived.set)
        try:
            async with asyncio.timeout(timeout_s):
                await arrived.wait()
        except TimeoutError:
            return None
        finally:
            loop.remove_reader(udp.fileno())
        return _read_answer(udp, (time.perf_counter() - sent_at) * 1000)


def _read_answer(udp: socket.socket, rtt_ms: float) -> Reply | None:
    try:
        _, ancillary, _, _ = udp.recvmsg(512, 512, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        # Somebody listens on that port after all, and answers.
        try:
            source = udp.recvfrom(512)[1]
        except OSError:
            return None
        return Reply(Kind.ECHO, 0, str(source[0]), rtt_ms)
    for _, kind, value in ancillary:
        if kind not in (_IP_RECVERR, _IPV6_RECVERR) or len(value) < _EXTENDED_ERROR.size:
            continue
        number, origin, icmp_type, code, *_ = _EXTENDED_ERROR.unpack_from(value)
        if origin not in _ORIGINS:
            raise OSError(number, os.strerror(number))
        told = _KINDS.get((origin, icmp_type))
        if told is not None:
            return Reply(told, code, _offender(value[_EXTENDED_ERROR.size :]), rtt_ms)
    return None


def _offender(sockaddr: bytes) -> str:
    """The address in a C `sockaddr`, which follows the extended error and names who sent it."""
    family = struct.unpack_from("=H", sockaddr)[0] if len(sockaddr) >= 2 else 0
    if family == socket.AF_INET and len(sockaddr) >= 8:
        return socket.inet_ntop(socket.AF_INET, sockaddr[4:8])
    if family == socket.AF_INET6 and len(sockaddr) >= 24:
        return socket.inet_ntop(socket.AF_INET6, sockaddr[8:24])
    return "?"
