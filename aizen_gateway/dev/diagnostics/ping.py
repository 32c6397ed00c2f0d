"""`ping`: does a host answer ICMP echo, and how fast. IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import re
import statistics
from dataclasses import dataclass
from typing import Any

from aizen_gateway.dev.diagnostics.icmp import IcmpSocket, Kind, as_milliseconds, permission_words
from aizen_gateway.dev.diagnostics.outcome import CannotRun, Outcome
from aizen_gateway.dev.diagnostics.parameters import Parameters
from aizen_gateway.dev.diagnostics.processes import run_tool
from aizen_gateway.dev.diagnostics.resolve import Address, family_of, reason, resolve

_TOOL_LINE = re.compile(r"(?:icmp_seq|seq)[= ](\d+)[^\n]*?(?:ttl|hlim)[= ](\d+)[^\n]*?time[=<]([\d.]+) ?ms")


@dataclass(frozen=True, slots=True)
class _Plan:
    count: int
    interval_s: float
    timeout_s: float
    size: int


async def ping(parameters: Parameters) -> Outcome:
    """Send echoes to a host and report each answer.

    Parameters: `host`; `count` 1-100 (4); `intervalMs` 200-10000 (1000), from one echo to the next; `timeoutMs`
    100-10000 (1000), for each answer; `size` 8-1400 bytes of data (56); `family` any|4|6 (any).
    Result: `{host, address, method, reachable, sent, received, lossPercent, rttMs: {min, avg, max, stddev} | null,
    replies: [{sequence, rttMs, ttl} | {sequence, error}]}`.
    Uses a datagram or raw ICMP socket, else the system's `ping`; raises `CannotRun` when there is neither.
    """
    host = parameters.host()
    plan = _Plan(
        parameters.integer("count", 4, 1, 100),
        parameters.seconds("intervalMs", 1000, 200, 10_000),
        parameters.seconds("timeoutMs", 1000, 100, 10_000),
        parameters.integer("size", 56, 8, 1400),
    )
    address = (await resolve(host, family=family_of(parameters)))[0]
    try:
        channel = IcmpSocket(address.family)
    except OSError as error:
        refusal = permission_words(error)
    else:
        with channel:
            return _report(host, address, str(channel.mode), await _echoes(channel, address, plan))
    try:
        return _report(host, address, "ping", await _with_tool(address, plan))
    except CannotRun as error:
        raise CannotRun(f"{refusal}, and {error}") from None


async def _echoes(channel: IcmpSocket, address: Address, plan: _Plan) -> list[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    replies: list[dict[str, Any]] = []
    for sequence in range(1, plan.count + 1):
        next_at = loop.time() + plan.interval_s
        replies.append(await _one_echo(channel, address, sequence, plan))
        if sequence < plan.count:
            await asyncio.sleep(next_at - loop.time())
    return replies


async def _one_echo(channel: IcmpSocket, address: Address, sequence: int, plan: _Plan) -> dict[str, Any]:
    try:
        reply = await channel.probe(address, sequence, size=plan.size, timeout_s=plan.timeout_s)
    except OSError as error:
        return {"sequence": sequence, "error": reason(error)}
    if reply is None:
        return {"sequence": sequence, "error": "no answer in time"}
    if reply.kind is not Kind.ECHO:
        words = "destination unreachable" if reply.kind is Kind.UNREACHABLE else "time to live exceeded"
        return {"sequence": sequence, "error": f"{words}, says {reply.source}"}
    return {"sequence": sequence, "rttMs": as_milliseconds(reply.rtt_ms), "ttl": reply.hop_limit}


async def _with_tool(address: Address, plan: _Plan) -> list[dict[str, Any]]:
    argv = [
        *("ping", "-n", "-6" if ":" in address.text else "-4"),
        *("-c", str(plan.count), "-i", f"{plan.interval_s:g}", "-W", f"{plan.timeout_s:g}", "-s", str(plan.size)),
        address.text,
    ]
    longest_s = plan.count * (plan.interval_s + plan.timeout_s) + 5
    said = await run_tool(argv, timeout_s=longest_s)
    answered = {int(found[1]): found for found in _TOOL_LINE.finditer(said.text)}
    # Exit code 1 is its word for "no answer"; with others it has not pinged at all, and says why.
    if not answered and said.exit_code != 1:
        last = said.text.strip().splitlines()[-1:] or ["no reason given"]
        raise CannotRun(f"ping failed: {last[0][:200]}")
    return [
        {"sequence": n, "rttMs": float(answered[n][3]), "ttl": int(answered[n][2])}
        if n in answered
        else {"sequence": n, "error": "no answer in time"}
        for n in range(1, plan.count + 1)
    ]


def _report(host: str, address: Address, method: str, replies: list[dict[str, Any]]) -> Outcome:
    times = [float(reply["rttMs"]) for reply in replies if "rttMs" in reply]
    rtt = None
    if times:
        rtt = {
            "min": min(times),
            "avg": as_milliseconds(statistics.fmean(times)),
            "max": max(times),
            "stddev": as_milliseconds(statistics.pstdev(times)),
        }
    loss = round(100 * (1 - len(times) / len(replies)), 1)
    lines = [f"PING {host} ({address.text}) by {method}"]
    for reply in replies:
        tail = f"time={reply['rttMs']} ms ttl={reply['ttl']}" if "rttMs" in reply else reply["error"]
        lines.append(f"seq={reply['sequence']} {tail}")
    lines.append(f"{len(replies)} sent, {len(times)} received, {loss:g}% lost")
    if rtt is not None:
        lines.append("rtt min/avg/max/stddev = {min}/{avg}/{max}/{stddev} ms".format_map(rtt))
    return Outcome(
        "\n".join(lines),
        {
            "host": host,
            "address": address.text,
            "method": method,
            "reachable": bool(times),
            "sent": len(replies),
            "received": len(times),
            "lossPercent": loss,
            "rttMs": rtt,
            "replies": replies,
        },
    )
