"""`port_check`: does something accept TCP connections on a host's ports."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass
from typing import Any

from aizen_gateway.dev.diagnostics.icmp import as_milliseconds
from aizen_gateway.dev.diagnostics.outcome import Outcome
from aizen_gateway.dev.diagnostics.parameters import BadParameter, Parameters
from aizen_gateway.dev.diagnostics.resolve import Address, family_of, reason, resolve

_MAX_PORTS = 100
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Connect:
    """One try to connect. `state` is open, closed (refused), filtered (no answer) or unreachable."""

    state: str
    address: str
    connect_ms: float | None
    error: str | None


async def port_check(parameters: Parameters) -> Outcome:
    """Connect to TCP ports and hang up at once.

    Parameters: `host`; `port` 1-65535, or `ports`, a list of at most 100; `timeoutMs` 100-30000 (2000), for each
    port; `family` any|4|6 (any).
    Result: `{host, ports: [{port, open, state, address, connectMs, error?}], open: [port]}`.
    """
    host = parameters.host()
    wanted = _ports(parameters)
    timeout_s = parameters.seconds("timeoutMs", 2000, 100, 30_000)
    addresses = await resolve(host, family=family_of(parameters))
    slots = asyncio.Semaphore(_AT_ONCE)

    async def check(port: int) -> dict[str, Any]:
        async with slots:
            found = await connect(addresses, port, timeout_s)
        report = {
            "port": port,
            "open": found.state == "open",
            "state": found.state,
            "address": found.address,
            "connectMs": found.connect_ms,
        }
        return report if found.error is None else {**report, "error": found.error}

    reports = await asyncio.gather(*(check(port) for port in wanted))
    lines = [f"TCP ports of {host}"]
    for report in reports:
        tail = f"{report['connectMs']} ms" if report["open"] else report["error"]
        lines.append(f"{report['port']:>5}  {report['state']:<11} {report['address']}  {tail}")
    still_open = [report["port"] for report in reports if report["open"]]
    return Outcome("\n".join(lines), {"host": host, "ports": reports, "open": still_open})


async def connect(addresses: list[Address], port: int, timeout_s: float) -> Connect:
    """Try the addresses in turn until one accepts, within `timeout_s` seconds in all, and hang up.

    Never raises for what the network does; without a connection the first address's failure is what is told.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + timeout_s
    first: Connect | None = None
    for place, address in enumerate(addresses):
        share = (give_up_at - loop.time()) / (len(addresses) - place)
        tried = await _connect_one(address, port, share)
        if tried.state == "open":
            return tried
        first = first or tried
    assert first is not None
    return first


async def _connect_one(address: Address, port: int, timeout_s: float) -> Connect:
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    with socket.socket(address.family, socket.SOCK_STREAM) as stream:
        stream.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_connect(stream, (address.sockaddr[0], port, *address.sockaddr[2:]))
        except TimeoutError:
            return Connect("filtered", address.text, None, "no answer in time")
        except ConnectionRefusedError as error:
            return Connect("closed", address.text, None, reason(error))
        except OSError as error:
            return Connect("unreachable", address.text, None, reason(error))
        return Connect("open", address.text, as_milliseconds((time.perf_counter() - began) * 1000), None)


def _ports(parameters: Parameters) -> list[int]:
    if parameters.given("port") == parameters.given("ports"):
        raise BadParameter("give either port or ports")
    if parameters.given("port"):
        return [parameters.integer("port", None, 1, 65535)]
    ports = parameters.raw("ports")
    if not isinstance(ports, list) or not 1 <= len(ports) <= _MAX_PORTS:
        raise BadParameter(f"ports must be a list of 1 to {_MAX_PORTS} port numbers")
    for port in ports:
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
            raise BadParameter("ports must hold whole numbers from 1 to 65535")
    return list(dict.fromkeys(ports))
