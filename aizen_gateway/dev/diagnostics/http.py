"""`http_check` and `bandwidth`: what a web address answers, how long each step takes, and how fast it downloads."""

from __future__ import annotations

import asyncio
import ssl
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from aizen_gateway.dev.diagnostics.icmp import as_milliseconds
from aizen_gateway.dev.diagnostics.outcome import CannotRun, Outcome
from aizen_gateway.dev.diagnostics.parameters import Parameters
from aizen_gateway.dev.diagnostics.resolve import reason
from aizen_gateway.domain.clock import rfc3339

_MAX_REDIRECTS = 5
_CHUNK = 64 * 1024
_SHOWN_HEADERS = ("Content-Type", "Content-Length", "Server", "Date", "Location", "Cache-Control", "Via")
_MAX_HEADER = 300
_AGENT = "aizen-gateway-agent"


async def http_check(parameters: Parameters) -> Outcome:
    """Ask a web address and report what it answers.

    Parameters: `url` http or https, without user and password; `method` GET|HEAD (GET); `expectStatus` 100-599;
    `followRedirects` (true, at most 5); `timeoutMs` 100-60000 (10000), for the whole; `maxBytes` 0-10485760 (1048576)
    of the body to read.
    Result: `{url, method, reachable, healthy, status?, finalUrl?, redirects?, headers?, bodyBytes?, complete?,
    timings: {dnsMs?, connectMs?, firstByteMs?, totalMs}, tls?: {version, cipher, subject, issuer, notAfter,
    daysLeft}, error?}`. `healthy` means the expected status, or one below 400 when none is expected. `connectMs`
    includes the TLS handshake.
    """
    url = parameters.url()
    method = parameters.choice("method", "GET", ("GET", "HEAD"))
    expected = parameters.integer("expectStatus", 0, 100, 599)
    follow = parameters.flag("followRedirects", True)
    timeout_s = parameters.seconds("timeoutMs", 10_000, 100, 60_000)
    most = parameters.integer("maxBytes", 1024 * 1024, 0, 10 * 1024 * 1024)
    timings: dict[str, float] = {}
    result: dict[str, Any] = {"url": url, "method": method, "reachable": False, "healthy": False, "timings": timings}
    began = time.perf_counter()
    try:
        async with (
            _session(timeout_s, [_timer(timings)]) as session,
            session.request(method, url, allow_redirects=follow, max_redirects=_MAX_REDIRECTS) as response,
        ):
            timings["firstByteMs"] = as_milliseconds((time.perf_counter() - began) * 1000)
            result |= _facts(response)
            result["bodyBytes"], result["complete"] = await _drain(response, most)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        result["error"] = _words(error, timeout_s)
    timings["totalMs"] = as_milliseconds((time.perf_counter() - began) * 1000)
    if url.startswith("https"):
        result |= await _certificate(url, timeout_s)
    if "status" in result:
        result["healthy"] = result["status"] == expected if expected else result["status"] < 400
    return Outcome(_text(result), result)


async def bandwidth(parameters: Parameters) -> Outcome:
    """Measure how fast an address downloads. The data is thrown away.

    Parameters: `url` http or https; `maxBytes` 1024-104857600 (10485760) and `timeoutMs` 500-60000 (10000): it ends
    with whichever comes first.
    Result: `{url, bytes, seconds, mbitPerS, firstByteMs, complete}`; `seconds` runs from the first byte to the last,
    `complete` says that the whole document was read.
    Raises `CannotRun` when the address cannot be reached or does not answer 200.
    """
    url = parameters.url()
    most = parameters.integer("maxBytes", 10 * 1024 * 1024, 1024, 100 * 1024 * 1024)
    timeout_s = parameters.seconds("timeoutMs", 10_000, 500, 60_000)
    asked = time.perf_counter()
    read, complete = 0, False
    started = asked
    try:
        async with (
            _session(timeout_s, []) as session,
            session.get(url, max_redirects=_MAX_REDIRECTS, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.status != 200:
                raise CannotRun(f"{url} answered {response.status}, so there is nothing to measure")
            started = time.perf_counter()
            async for chunk in response.content.iter_chunked(_CHUNK):
                read += len(chunk)
                if read >= most:
                    break
            complete = response.content.at_eof()
    except TimeoutError:
        if not read:
            raise CannotRun(f"{url} sent nothing within {timeout_s:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise CannotRun(f"{url} cannot be downloaded: {_words(error, timeout_s)}") from None
    seconds = max(time.perf_counter() - started, 1e-6)
    rate = round(read * 8 / seconds / 1e6, 3)
    first_ms = as_milliseconds((started - asked) * 1000)
    return Outcome(
        f"{read} bytes in {seconds:.3f} s: {rate} Mbit/s (first byte after {first_ms} ms) from {url}",
        {
            "url": url,
            "bytes": read,
            "seconds": round(seconds, 6),
            "mbitPerS": rate,
            "firstByteMs": first_ms,
            "complete": complete,
        },
    )


def _session(timeout_s: float, traces: list[aiohttp.TraceConfig]) -> aiohttp.ClientSession:
    """A session for one check: nothing remembered from earlier ones, no cookies, no proxy, no decompression."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, use_dns_cache=False),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": _AGENT},
        auto_decompress=False,
        trace_configs=traces,
    )


def _timer(timings: dict[str, float]) -> aiohttp.TraceConfig:
    """Writes how long the name and the connection of the first request took."""
    trace = aiohttp.TraceConfig()

    async def begin(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
        context.began = time.perf_counter()

    def end(name: str) -> Any:
        async def note(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
            timings.setdefault(name, as_milliseconds((time.perf_counter() - context.began) * 1000))

        return note

    trace.on_dns_resolvehost_start.append(begin)
    trace.on_dns_resolvehost_end.append(end("dnsMs"))
    trace.on_connection_create_start.append(begin)
    trace.on_connection_create_end.append(end("connectMs"))
    return trace


def _facts(response: aiohttp.ClientResponse) -> dict[str, Any]:
    version = response.version
    return {
        "reachable": True,
        "status": response.status,
        "reason": (response.reason or "")[:_MAX_HEADER],
        "httpVersion": f"{version.major}.{version.minor}" if version else None,
        "finalUrl": str(response.url),
        "redirects": [str(each.url) for each in response.history],
        "headers": {name: response.headers[name][:_MAX_HEADER] for name in _SHOWN_HEADERS if name in response.headers},
    }


async def _drain(response: aiohttp.ClientResponse, most: int) -> tuple[int, bool]:
    read = 0
    while read < most:
        chunk = await response.content.read(min(_CHUNK, most - read))
        if not chunk:
            return read, True
        read += len(chunk)
    return read, response.content.at_eof()


async def _certificate(url: str, timeout_s: float) -> dict[str, Any]:
    """What the server shows in a TLS handshake of its own; nothing when there is none."""
    parts = urlsplit(url)
    host, context = parts.hostname or "", ssl.create_default_context()
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, parts.port or 443, ssl=context, server_hostname=host)
    except (TimeoutError, OSError, ValueError):
        return {}
    try:
        secured: ssl.SSLObject = writer.get_extra_info("ssl_object")
        shown: Any = secured.getpeercert() or {}
        cipher = secured.cipher()
        ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)
        tls = {
            "version": secured.version(),
            "cipher": cipher[0] if cipher else None,
            "subject": _common_name(shown.get("subject", ())),
            "issuer": _common_name(shown.get("issuer", ())),
            "notAfter": rfc3339(ends),
            "daysLeft": (ends - datetime.now(UTC)).days,
        }
    finally:
        writer.transport.abort()
    return {"tls": tls}


def _common_name(parts: Any) -> str:
    names = {key: value for group in parts for key, value in group}
    return str(names.get("commonName") or names.get("organizationName") or "")


def _words(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no complete answer within {timeout_s:g} s"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the certificate is not trusted: {error.certificate_error}"
    if isinstance(error, aiohttp.TooManyRedirects):
        return f"more than {_MAX_REDIRECTS} redirects"
    if isinstance(error, aiohttp.ClientConnectorError):
        return reason(error.os_error)
    return reason(error)


def _text(result: dict[str, Any]) -> str:
    lines = [f"{result['method']} {result['url']}"]
    if result["reachable"]:
        size = f", {result['bodyBytes']} bytes" if "bodyBytes" in result else ""
        lines.append(f"HTTP/{result['httpVersion']} {result['status']} {result['reason']}{size}")
        lines += [f"redirected by {url}" for url in result["redirects"]]
        lines += [f"{name}: {value}" for name, value in result["headers"].items()]
    if "error" in result:
        lines.append(f"failed: {result['error']}")
    if tls := result.get("tls"):
        lines.append(f"{tls['version']}, certificate of {tls['subject']} by {tls['issuer']} until {tls['notAfter']}")
    lines.append("  ".join(f"{name}={value}" for name, value in result["timings"].items()))
    return "\n".join(lines)
