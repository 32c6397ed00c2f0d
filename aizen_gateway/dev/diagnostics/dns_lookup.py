"""`dns`: what a name resolves to, for the programs of this device or according to one name server."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from typing import Any

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.reversename

from aizen_gateway.dev.diagnostics.icmp import as_milliseconds
from aizen_gateway.dev.diagnostics.outcome import CannotRun, Outcome
from aizen_gateway.dev.diagnostics.parameters import Parameters, checked_host
from aizen_gateway.dev.diagnostics.resolve import reason

_TYPES = ("A", "AAAA", "CNAME", "MX", "NS", "TXT", "SRV", "PTR", "SOA", "CAA")
_BY_SYSTEM = {"any": socket.AF_UNSPEC, "A": socket.AF_INET, "AAAA": socket.AF_INET6}
_NAME = re.compile(r"[A-Za-z0-9_*][A-Za-z0-9_.*-]{0,252}\Z|\.\Z", re.ASCII)
_MAX_ANSWERS = 200


async def dns_lookup(parameters: Parameters) -> Outcome:
    """Look a name up.

    Parameters: `name` (or `host`); `type` any|A|AAAA|CNAME|MX|NS|TXT|SRV|PTR|SOA|CAA (any: the addresses); `server`
    an IP address, and `port` (53): asked directly instead of the system's resolver; `timeoutMs` 100-30000 (5000).
    Result: `{name, type, resolver, found, rcode?, answers: [{type, value, name?, ttl?}], elapsedMs, error?}`. A name
    that does not exist is a finding, not a failure. `PTR` takes an IP address as the name.
    Raises `CannotRun` when no server answers.
    """
    name = _name(parameters)
    kind = parameters.choice("type", "any", ("any", *_TYPES))
    server = parameters.address("server")
    port = parameters.integer("port", 53, 1, 65535)
    timeout_s = parameters.seconds("timeoutMs", 5000, 100, 30_000)
    if server is None and kind in _BY_SYSTEM:
        return await _by_system(name, kind, timeout_s)
    servers = [server] if server is not None else await asyncio.to_thread(configured_servers)
    if not servers:
        raise CannotRun("no name server is configured on this device")
    kinds = ["A", "AAAA"] if kind == "any" else [kind]
    return await _by_servers(name, kinds, servers, port, timeout_s)


def configured_servers() -> list[str]:
    """Addresses of the system's name servers, in its order; none when there is no configuration. Reads a file."""
    try:
        return [str(server) for server in dns.resolver.Resolver().nameservers]
    except (dns.exception.DNSException, OSError):
        return []


def _name(parameters: Parameters) -> str:
    value = parameters.raw("name") if parameters.given("name") else parameters.raw("host")
    if isinstance(value, str) and _NAME.match(value):
        return value
    return checked_host("name", value)


async def _by_system(name: str, kind: str, timeout_s: float) -> Outcome:
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    answers: list[dict[str, Any]] = []
    error = None
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(name, None, family=_BY_SYSTEM[kind], type=socket.SOCK_STREAM)
    except TimeoutError:
        raise CannotRun(f"the system's resolver gave no answer within {timeout_s:g} s") from None
    except socket.gaierror as refused:
        if refused.errno == socket.EAI_AGAIN:
            raise CannotRun(f"the system's resolver has no answer: {reason(refused)}") from None
        error = reason(refused)
    except (OSError, UnicodeError) as failed:
        raise CannotRun(f"the system's resolver failed: {reason(failed)}") from None
    else:
        for family, _, _, _, sockaddr in found:
            answer = {"type": "AAAA" if family == socket.AF_INET6 else "A", "value": str(sockaddr[0])}
            if answer not in answers:
                answers.append(answer)
    result = {"name": name, "type": kind, "resolver": "system", "found": bool(answers), "answers": answers}
    if error is not None:
        result["error"] = error
    return _report(result, (time.perf_counter() - began) * 1000)


async def _by_servers(name: str, kinds: list[str], servers: list[str], port: int, timeout_s: float) -> Outcome:
    began = time.perf_counter()
    failures: list[str] = []
    for server in servers[:3]:
        try:
            async with asyncio.timeout(timeout_s):
                replies = [await _ask(name, kind, server, port, timeout_s) for kind in kinds]
        except (dns.exception.DNSException, OSError, EOFError) as error:
            words = "no answer in time" if isinstance(error, (dns.exception.Timeout, TimeoutError)) else reason(error)
            failures.append(f"{server}: {words}")
            continue
        answers = [answer for reply in replies for answer in _answers(reply)][:_MAX_ANSWERS]
        result = {
            "name": name,
            "type": kinds[0] if len(kinds) == 1 else "any",
            "resolver": f"{server} port {port}",
            "found": bool(answers),
            "rcode": dns.rcode.to_text(replies[0].rcode()),
            "authoritative": bool(replies[0].flags & dns.flags.AA),
            "answers": answers,
        }
        return _report(result, (time.perf_counter() - began) * 1000)
    raise CannotRun(f"no name server answered ({'; '.join(failures)})")


async def _ask(name: str, kind: str, server: str, port: int, timeout_s: float) -> dns.message.Message:
    question: str | dns.name.Name = name
    if kind == "PTR":
        try:
            question = dns.reversename.from_address(str(ipaddress.ip_address(name)))
        except ValueError:
            question = name
    query = dns.message.make_query(question, dns.rdatatype.from_text(kind))
    reply, _ = await dns.asyncquery.udp_with_fallback(query, server, timeout=timeout_s, port=port)
    return reply


def _answers(reply: dns.message.Message) -> list[dict[str, Any]]:
    return [
        {
            "type": dns.rdatatype.to_text(group.rdtype),
            "value": record.to_text(),
            "name": group.name.to_text(omit_final_dot=True),
            "ttl": group.ttl,
        }
        for group in reply.answer
        for record in group
    ]


def _report(result: dict[str, Any], elapsed_ms: float) -> Outcome:
    lines = [f"{result['name']} ({result['type']}) by {result['resolver']}, {elapsed_ms:.1f} ms"]
    lines += [f"{answer['type']:<6}{answer['value']}" for answer in result["answers"]]
    if not result["found"]:
        lines.append(f"nothing found: {result.get('error') or result.get('rcode')}")
    return Outcome("\n".join(lines), {**result, "elapsedMs": as_milliseconds(elapsed_ms)})
