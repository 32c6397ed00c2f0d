"""`interfaces`, `routes` and `arp`: how this device is wired, read from Linux's own tables."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
from pathlib import Path
from typing import Any

from aizen_gateway.dev.diagnostics.netlink import InterfaceAddress, interface_addresses, neighbours
from aizen_gateway.dev.diagnostics.outcome import CannotRun, Outcome
from aizen_gateway.dev.diagnostics.parameters import Parameters

_SYS_NET = Path("/sys/class/net")
_ROUTES_V4 = Path("/proc/net/route")
_ROUTES_V6 = Path("/proc/net/ipv6_route")
_COUNTERS = {
    "rxBytes": "rx_bytes",
    "rxPackets": "rx_packets",
    "rxErrors": "rx_errors",
    "rxDropped": "rx_dropped",
    "txBytes": "tx_bytes",
    "txPackets": "tx_packets",
    "txErrors": "tx_errors",
    "txDropped": "tx_dropped",
}
_FLAG_UP, _ROUTE_UP, _ROUTE_REJECT = 0x1, 0x1, 0x200
_V6_LOCAL_OR_ANYCAST = 0x80000000 | 0x00100000
_MAX_ROWS = 1000


async def interfaces(_: Parameters) -> Outcome:
    """List the network interfaces. No parameters.

    Result: `{interfaces: [{name, index, up, state, mtu, mac, speedMbit, addresses: [{family, address, prefix,
    scope}], counters: {rxBytes, rxPackets, rxErrors, rxDropped, txBytes, txPackets, txErrors, txDropped}}]}`.
    Raises `CannotRun` outside Linux.
    """
    found = await asyncio.to_thread(_interfaces)
    lines = []
    for one in found:
        lines.append(f"{one['name']}: {one['state']}, mtu {one['mtu']}, mac {one['mac'] or '-'}")
        lines += [f"    {each['address']}/{each['prefix']} {each['scope']}" for each in one["addresses"]]
        counters = one["counters"]
        lines.append(f"    received {counters.get('rxBytes')} bytes, sent {counters.get('txBytes')} bytes")
    return Outcome("\n".join(lines), {"interfaces": found})


async def routes(_: Parameters) -> Outcome:
    """List the routes of the main table, IPv4 and IPv6. No parameters.

    Result: `{routes: [{family, destination, gateway, interface, metric}], total, default: {ipv4, ipv6}}`, where each
    default is the best such route or null.
    Raises `CannotRun` outside Linux.
    """
    found = await asyncio.to_thread(read_routes)
    lines = [
        f"{each['destination']:<32} via {each['gateway'] or 'the link'} dev {each['interface']} metric {each['metric']}"
        for each in found
    ]
    best = {family: default_route(found, family) for family in ("ipv4", "ipv6")}
    return Outcome("\n".join(lines) or "no routes", {"routes": found[:_MAX_ROWS], "total": len(found), "default": best})


async def arp(_: Parameters) -> Outcome:
    """List the neighbours whose hardware address is known or was asked for: ARP, and IPv6's neighbour table.

    No parameters. Result: `{entries: [{family, address, mac, interface, state}], total}`.
    Raises `CannotRun` outside Linux.
    """
    found = await asyncio.to_thread(_neighbours)
    lines = [f"{each['address']:<40} {each['mac'] or '-':<17} {each['interface']} {each['state']}" for each in found]
    return Outcome("\n".join(lines) or "no neighbours", {"entries": found[:_MAX_ROWS], "total": len(found)})


def read_routes() -> list[dict[str, Any]]:
    """The routes that are up, as `routes` reports them. Blocks for a moment; raises `CannotRun` outside Linux."""
    if not _ROUTES_V4.exists() and not _ROUTES_V6.exists():
        raise CannotRun("this device has no /proc/net with its routes")
    return _routes_v4() + _routes_v6()


def default_route(found: list[dict[str, Any]], family: str) -> dict[str, Any] | None:
    """The default route of a family (`ipv4` or `ipv6`) with the lowest metric, if there is one."""
    whole = {"ipv4": "0.0.0.0/0", "ipv6": "::/0"}[family]
    candidates = [each for each in found if each["destination"] == whole]
    return min(candidates, key=lambda each: int(each["metric"]), default=None)


def _interfaces() -> list[dict[str, Any]]:
    if not _SYS_NET.is_dir():
        raise CannotRun("this device has no /sys/class/net with its interfaces")
    addresses = interface_addresses()
    found = []
    for folder in sorted(_SYS_NET.iterdir()):
        index = _number(folder / "ifindex")
        if index is None:
            continue
        flags = int(_read(folder / "flags") or "0", 16)
        state = _read(folder / "operstate") or "unknown"
        mac = _read(folder / "address")
        found.append(
            {
                "name": folder.name,
                "index": index,
                "up": bool(flags & _FLAG_UP),
                "state": state if state != "unknown" else "up" if flags & _FLAG_UP else "down",
                "mtu": _number(folder / "mtu"),
                "mac": mac if mac and mac.strip("0:") else None,
                "speedMbit": _speed(folder),
                "addresses": [_shown(each) for each in addresses if each.index == index],
                "counters": {name: _number(folder / "statistics" / file) for name, file in _COUNTERS.items()},
            }
        )
    return found


def _shown(address: InterfaceAddress) -> dict[str, Any]:
    return {
        "family": address.family,
        "address": address.address,
        "prefix": address.prefix,
        "scope": address.scope,
    }


def _speed(folder: Path) -> int | None:
    speed = _number(folder / "speed")
    return speed if speed is not None and speed > 0 else None


def _routes_v4() -> list[dict[str, Any]]:
    found = []
    for line in (_read(_ROUTES_V4) or "").splitlines()[1:]:
        interface, destination, gateway, flags, _, _, metric, mask, *_ = line.split()
        if not int(flags, 16) & _ROUTE_UP or int(flags, 16) & _ROUTE_REJECT:
            continue
        prefix = int(mask, 16).bit_count()
        found.append(_route("ipv4", f"{_v4(destination)}/{prefix}", _v4(gateway), interface, int(metric)))
    return found


def _routes_v6() -> list[dict[str, Any]]:
    found = []
    for line in (_read(_ROUTES_V6) or "").splitlines():
        destination, prefix, _, _, gateway, metric, _, _, flags, interface = line.split()
        bits = int(flags, 16)
        # The table also holds the device's own addresses, anycast, multicast and reject entries: no roads anywhere.
        if not bits & _ROUTE_UP or bits & (_V6_LOCAL_OR_ANYCAST | _ROUTE_REJECT) or destination.startswith("ff"):
            continue
        found.append(
            _route("ipv6", f"{_v6(destination)}/{int(prefix, 16)}", _v6(gateway), interface, int(metric, 16)),
        )
    return found


def _route(family: str, destination: str, gateway: str, interface: str, metric: int) -> dict[str, Any]:
    return {
        "family": family,
        "destination": destination,
        "gateway": None if ipaddress.ip_address(gateway).is_unspecified else gateway,
        "interface": interface,
        "metric": metric,
    }


def _v4(text: str) -> str:
    # The kernel prints these words in the byte order of the machine.
    return socket.inet_ntop(socket.AF_INET, int(text, 16).to_bytes(4, sys.byteorder))


def _v6(text: str) -> str:
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(text))


def _neighbours() -> list[dict[str, Any]]:
    names = dict(socket.if_nameindex())
    return [
        {
            "family": each.family,
            "address": each.address,
            "mac": each.mac,
            "interface": names.get(each.index, str(each.index)),
            "state": each.state,
        }
        for each in neighbours()
        if each.state != "no-arp"
    ]


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return None


def _number(file: Path) -> int | None:
    text = _read(file)
    try:
        return int(text) if text else None
    except ValueError:
        return None
