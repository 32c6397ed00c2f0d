"""dns, port_check, http_check and bandwidth against real servers of this process."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import dns.message
import dns.rcode
import dns.rrset
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aizen_gateway.dev.diagnostics import CannotRun, Parameters, diagnostics_table


async def run(name: str, /, **parameters: Any) -> dict[str, Any]:
    outcome = await diagnostics_table()[name](Parameters(parameters))
    assert outcome.output
    return outcome.result


class NameServer(asyncio.DatagramProtocol):
    """Knows one name."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        reply = dns.message.make_response(query)
        question = query.question[0]
        records = {
            ("printer.test.", "A"): "192.0.2.7",
            ("printer.test.", "MX"): "10 mail.printer.test.",
            ("7.2.0.192.in-addr.arpa.", "PTR"): "printer.test.",
        }
        kind = dns.rdatatype.to_text(question.rdtype)
        found = records.get((question.name.to_text(), kind))
        if found is not None:
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, found))
        elif question.name.to_text() != "printer.test.":
            reply.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(reply.to_wire(), addr)


@pytest.fixture
async def name_server() -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    yield transport.get_extra_info("sockname")[1]
    transport.close()


async def test_localhost_resolves_by_the_systems_resolver() -> None:
    result = await run("dns", name="localhost")
    assert result["resolver"] == "system"
    assert result["answers"]
    assert all(ipaddress.ip_address(answer["value"]).is_loopback for answer in result["answers"])


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("printer.test", "A", "192.0.2.7"),
        ("printer.test", "MX", "10 mail.printer.test."),
        ("192.0.2.7", "PTR", "printer.test."),
        ("printer.test", "any", "192.0.2.7"),
    ],
)
async def test_a_given_name_server_is_asked_directly(name_server: int, name: str, kind: str, value: str) -> None:
    result = await run("dns", name=name, type=kind, server="127.0.0.1", port=name_server)
    assert [answer["value"] for answer in result["answers"]] == [value]
    assert result["answers"][0]["ttl"] == 60
    assert result["rcode"] == "NOERROR"


async def test_a_name_that_does_not_exist_is_a_finding(name_server: int) -> None:
    result = await run("dns", name="nobody.test", type="A", server="127.0.0.1", port=name_server)
    assert (result["found"], result["rcode"], result["answers"]) == (False, "NXDOMAIN", [])


async def test_a_name_server_that_is_silent_makes_the_lookup_fail() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(CannotRun, match="no answer in time"):
            await run("dns", name="a.test", server="127.0.0.1", port=silent.getsockname()[1], timeoutMs=200)


@pytest.fixture
async def listener() -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_port_check_tells_open_from_closed(listener: int, closed_port: int) -> None:
    result = await run("port_check", host="127.0.0.1", ports=[listener, closed_port])
    assert [(each["port"], each["state"]) for each in result["ports"]] == [(listener, "open"), (closed_port, "closed")]
    assert result["open"] == [listener]
    assert result["ports"][0]["connectMs"] > 0
    assert result["ports"][1]["error"] == "connection refused"


async def test_port_check_calls_a_silent_port_filtered() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):  # a full backlog: further connections get no answer at all
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            waiting.append(filler)
        result = await run("port_check", host="127.0.0.1", port=full.getsockname()[1], timeoutMs=200)
        for filler in waiting:
            filler.close()
    assert result["ports"][0]["state"] == "filtered"


async def page(_: web.Request) -> web.Response:
    return web.Response(text="hello", headers={"Server": "shop"})


async def moved(_: web.Request) -> web.Response:
    raise web.HTTPFound("/page")


async def circle(_: web.Request) -> web.Response:
    raise web.HTTPFound("/circle")


async def broken(_: web.Request) -> web.Response:
    return web.Response(status=503)


async def large(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(64):
        await response.write(bytes(64 * 1024))
    return response


async def stuck(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(bytes(2048))
    await asyncio.Event().wait()
    return response


def site() -> web.Application:
    app = web.Application()
    for handler in (page, moved, circle, broken, large, stuck):
        app.router.add_get(f"/{handler.__name__}", handler)
    return app


async def serve(secured: ssl.SSLContext | None = None) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(site(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=secured).start()
    return runner, runner.addresses[0][1]


@pytest.fixture
async def shop() -> AsyncIterator[str]:
    runner, port = await serve()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def test_http_check_reports_status_headers_and_timings(shop: str) -> None:
    result = await run("http_check", url=f"{shop}/page")
    assert (result["reachable"], result["healthy"], result["status"]) == (True, True, 200)
    assert (result["bodyBytes"], result["complete"]) == (5, True)
    assert result["headers"]["Server"] == "shop"
    assert 0 < result["timings"]["connectMs"] <= result["timings"]["firstByteMs"] <= result["timings"]["totalMs"]


async def test_http_check_follows_redirects_unless_told_not_to(shop: str) -> None:
    followed = await run("http_check", url=f"{shop}/moved")
    assert (followed["status"], followed["finalUrl"], followed["redirects"]) == (200, f"{shop}/page", [f"{shop}/moved"])
    alone = await run("http_check", url=f"{shop}/moved", followRedirects=False, expectStatus=302)
    assert (alone["status"], alone["healthy"], alone["headers"]["Location"]) == (302, True, "/page")


async def test_http_check_ends_a_circle_of_redirects(shop: str) -> None:
    result = await run("http_check", url=f"{shop}/circle")
    assert result["error"] == "more than 5 redirects"


async def test_a_failing_site_is_reachable_but_not_healthy(shop: str) -> None:
    result = await run("http_check", url=f"{shop}/broken")
    assert (result["reachable"], result["healthy"], result["status"]) == (True, False, 503)


async def test_http_check_reads_no_more_of_a_body_than_asked(shop: str) -> None:
    result = await run("http_check", url=f"{shop}/large", maxBytes=100_000)
    assert (result["bodyBytes"], result["complete"]) == (100_000, False)


async def test_http_check_of_a_closed_port_is_not_reachable(closed_port: int) -> None:
    result = await run("http_check", url=f"http://127.0.0.1:{closed_port}/")
    assert (result["reachable"], result["error"]) == (False, "connection refused")


async def test_http_check_says_that_a_certificate_is_not_trusted(tmp_path: Path) -> None:
    runner, port = await serve(self_signed(tmp_path))
    try:
        result = await run("http_check", url=f"https://127.0.0.1:{port}/page")
    finally:
        await runner.cleanup()
    assert result["reachable"] is False
    assert "the certificate is not trusted" in result["error"]
    assert "tls" not in result


async def test_http_check_shows_a_trusted_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    runner, port = await serve(context)
    try:
        result = await run("http_check", url=f"https://127.0.0.1:{port}/page")
    finally:
        await runner.cleanup()
    assert result["tls"]["subject"] == "shop.test"
    assert result["tls"]["daysLeft"] in (6, 7)


async def test_bandwidth_measures_a_download_up_to_its_bound(shop: str) -> None:
    result = await run("bandwidth", url=f"{shop}/large", maxBytes=1_000_000)
    assert 1_000_000 <= result["bytes"] < 1_200_000
    assert result["complete"] is False
    assert result["mbitPerS"] == pytest.approx(result["bytes"] * 8 / result["seconds"] / 1e6, rel=0.05)


async def test_bandwidth_reads_a_small_document_to_its_end(shop: str) -> None:
    result = await run("bandwidth", url=f"{shop}/large")
    assert (result["bytes"], result["complete"]) == (64 * 64 * 1024, True)


async def test_bandwidth_of_a_download_that_stops_counts_what_came(shop: str) -> None:
    result = await run("bandwidth", url=f"{shop}/stuck", timeoutMs=500)
    assert (result["bytes"], result["complete"]) == (2048, False)


async def test_bandwidth_has_nothing_to_measure_in_an_error(shop: str) -> None:
    with pytest.raises(CannotRun, match="answered 503"):
        await run("bandwidth", url=f"{shop}/broken")


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shop.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context
