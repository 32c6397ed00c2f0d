"""`connectivity`: is this device on the network at all, and if not, at which step does it stop."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Sequence
from typing import Any

from aizen_gateway.dev.diagnostics.dns_lookup import configured_servers
from aizen_gateway.dev.diagnostics.icmp import as_milliseconds
from aizen_gateway.dev.diagnostics.network import default_route, read_routes
from aizen_gateway.dev.diagnostics.outcome import CannotRun, Outcome
from aizen_gateway.dev.diagnostics.parameters import BadParameter, Parameters, checked_host, split_target
from aizen_gateway.dev.diagnostics.ports import connect
from aizen_gateway.dev.diagnostics.resolve import reason, resolve

_MAX_TARGETS = 10


async def connectivity(parameters: Parameters, default_targets: Sequence[str]) -> Outcome:
    """Check default route, name resolution and TCP connections, in that order.

    Parameters: `targets`, at most 10 texts `host:port` (`default_targets`: the agent's own gateway unless it is set
    up with others); `dnsName`, a name to resolve (the first target that is a name); `timeoutMs` 100-30000 (3000), for
    each step.
    Result: `{verdict, defaultRoute: {ipv4, ipv6, known}, dns: {checked, resolves, name?, addresses?, nameservers,
    elapsedMs?, error?}, targets: [{target, open, state, connectMs, error?}]}`. `verdict` is `online` (every step
    passed), `degraded` (some targets answer), `no_dns`, `no_route` or `offline` (no target answers).
    """
    targets = _targets(parameters, default_targets)
    timeout_s = parameters.seconds("timeoutMs", 3000, 100, 30_000)
    name = next((host for host, _ in targets if not _is_address(host)), None)
    if parameters.given("dnsName"):
        name = checked_host("dnsName", parameters.raw("dnsName"))
    route = await _default_routes()
    looked_up, reached = await asyncio.gather(
        _look_up(name, timeout_s),
        asyncio.gather(*(_reach(host, port, timeout_s) for host, port in targets)),
    )
    verdict = _verdict(route, looked_up, reached)
    result = {"verdict": verdict, "defaultRoute": route, "dns": looked_up, "targets": reached}
    return Outcome(_text(result), result)


def _targets(parameters: Parameters, default_targets: Sequence[str]) -> list[tuple[str, int]]:
    given = parameters.raw("targets")
    if given is None:
        return [split_target(target) for target in default_targets]
    if not isinstance(given, list) or not 1 <= len(given) <= _MAX_TARGETS:
        raise BadParameter(f"targets must be a list of 1 to {_MAX_TARGETS} texts host:port")
    if not all(isinstance(target, str) for target in given):
        raise BadParameter("targets must hold texts host:port")
    return [split_target(target) for target in dict.fromkeys(given)]


async def _default_routes() -> dict[str, Any]:
    try:
        found = await asyncio.to_thread(read_routes)
    except CannotRun:
        return {"ipv4": None, "ipv6": None, "known": False}
    return {"ipv4": default_route(found, "ipv4"), "ipv6": default_route(found, "ipv6"), "known": True}


async def _look_up(name: str | None, timeout_s: float) -> dict[str, Any]:
    found: dict[str, Any] = {"checked": name is not None, "nameservers": await asyncio.to_thread(configured_servers)}
    if name is None:
        return found
    began = time.perf_counter()
    found |= {"name": name, "resolves": False}
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await resolve(name)
    except (CannotRun, TimeoutError) as error:
        return {**found, "error": reason(error)}
    elapsed = as_milliseconds((time.perf_counter() - began) * 1000)
    return {**found, "resolves": True, "addresses": [each.text for each in addresses], "elapsedMs": elapsed}


async def _reach(host: str, port: int, timeout_s: float) -> dict[str, Any]:
    report: dict[str, Any] = {"target": f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "open": False}
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await resolve(host)
    except (CannotRun, TimeoutError) as error:
        return {**report, "state": "unresolved", "error": reason(error)}
    tried = await connect(addresses, port, timeout_s)
    report |= {"open": tried.state == "open", "state": tried.state, "connectMs": tried.connect_ms}
    return report if tried.error is None else {**report, "error": tried.error}


def _verdict(route: dict[str, Any], looked_up: dict[str, Any], reached: list[dict[str, Any]]) -> str:
    answering = sum(target["open"] for target in reached)
    dns_fails = looked_up["checked"] and not looked_up["resolves"]
    routed = not route["known"] or route["ipv4"] is not None or route["ipv6"] is not None
    if not routed:
        return "no_route"
    if dns_fails:
        return "no_dns"
    if answering == len(reached):
        return "online"
    return "degraded" if answering else "offline"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _text(result: dict[str, Any]) -> str:
    lines = [f"verdict: {result['verdict']}"]
    for family in ("ipv4", "ipv6"):
        best = result["defaultRoute"][family]
        words = f"{best['gateway'] or 'the link'} by {best['interface']}" if best else "none"
        lines.append(f"default route {family}: {words}")
    looked_up = result["dns"]
    if looked_up["checked"]:
        lines.append(f"{looked_up['name']}: {', '.join(looked_up.get('addresses', [])) or looked_up.get('error')}")
    for target in result["targets"]:
        tail = f"{target['connectMs']} ms" if target["open"] else target["error"]
        lines.append(f"{target['target']}: {target['state']}, {tail}")
    return "\n".join(lines)
