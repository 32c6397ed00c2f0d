"""nginx with the site of docs/nginx in front of instances: only addresses and paths are not those of the file."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, ClientTimeout
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aizen_gateway.dev.embedded_server import HOST, EmbeddedServer

from .programs import ROOT, program

SITE = ROOT / "docs" / "nginx" / "aizen-gateway.conf"
_UPSTREAMS = "upstreams"
_MAIN = """
daemon off;
{user}
worker_processes 2;
pid {directory}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/site.conf;
}}
"""


class Nginx(EmbeddedServer):
    """The site, with a certificate that it signed itself. The ports of the instances are in a file in `data_dir`."""

    title = "nginx"
    _stop_signals = (signal.SIGTERM,)

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    async def _prepare(self) -> None:
        self._nginx = program("nginx")
        self._upstreams = [int(port) for port in (self.data_dir / _UPSTREAMS).read_text().split()]
        self._store.mkdir(mode=0o711, exist_ok=True)
        _make_certificate(self._store)

    def _command(self) -> tuple[list[str], bytes]:
        # The account that nginx would choose does not exist everywhere.
        user = "user root;" if os.geteuid() == 0 else ""
        (self._store / "nginx.conf").write_text(_MAIN.format(user=user, directory=self._store))
        (self._store / "site.conf").write_text(site(self.port, self._upstreams, self._store))
        return [self._nginx, "-p", str(self._store), "-e", "stderr", "-c", str(self._store / "nginx.conf")], b""

    async def _answers(self) -> bool:
        try:
            async with ClientSession(timeout=ClientTimeout(total=1.0)) as http, http.get(self.url, ssl=False):
                return True
        except (ClientError, OSError, TimeoutError):
            return False


def site(port: int, upstreams: Sequence[int], directory: Path) -> str:
    """The site of the documentation at `port`, with `upstreams` instead of its two instances."""
    text = SITE.read_text("utf-8")
    shown = re.findall(r"server (127\.0\.0\.1:\d+)", text)
    assert len(shown) == len(upstreams)
    for address, upstream in zip(shown, upstreams, strict=True):
        text = text.replace(address, f"{HOST}:{upstream}")
    changes = {
        "listen 443": f"listen {HOST}:{port}",
        "/etc/ssl/certs/gateway.pem": f"{directory}/gateway.pem",
        "/etc/ssl/private/gateway.key": f"{directory}/gateway.key",
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def _make_certificate(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway.example.com")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (directory / "gateway.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (directory / "gateway.key").write_bytes(private)


StartNginx = Callable[[Sequence[int]], Awaitable[Nginx]]


@pytest.fixture
async def start_nginx(server_dir: Path) -> AsyncIterator[StartNginx]:
    """Call it with the ports of two instances for an nginx in front of them."""
    started: list[Nginx] = []

    async def start(upstreams: Sequence[int]) -> Nginx:
        directory = Path(tempfile.mkdtemp(prefix="nginx-", dir=server_dir))
        (directory / _UPSTREAMS).write_text(" ".join(map(str, upstreams)))
        started.append(await Nginx.start(directory))
        return started[-1]

    yield start
    for nginx in started:
        await nginx.stop()
