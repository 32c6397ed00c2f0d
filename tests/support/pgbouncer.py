"""pgbouncer in transaction mode in front of the worker's PostgreSQL: every transaction may meet another connection."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from aizen_gateway.dev import unprivileged
from aizen_gateway.dev.embedded import EmbeddedPostgres
from aizen_gateway.dev.embedded_server import HOST, EmbeddedServer

from .programs import program

_SERVER = "server-url"
# Fewer than an instance's own pool has, so that connections do change hands.
_POOL = 3
_SETTINGS = """
[databases]
* = host={host} port={server_port}

[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 500
"""


class Pgbouncer(EmbeddedServer):
    """The pooler. The server's URL is in a file in `data_dir`; a URL of the pooler differs in its port alone."""

    title = "pgbouncer"
    _stop_signals = (signal.SIGTERM,)

    @property
    def url(self) -> str:
        return self.at(self._server)

    def at(self, server_url: str) -> str:
        """The way through the pooler to a database of the server."""
        parts = urlsplit(server_url)
        return server_url.replace(f"{parts.hostname}:{parts.port}", f"{HOST}:{self.port}")

    async def _prepare(self) -> None:
        self._pgbouncer = program("pgbouncer")
        self._server = (self.data_dir / _SERVER).read_text()
        self._store.mkdir(mode=0o700, exist_ok=True)

    def _command(self) -> tuple[list[str], bytes]:
        server = urlsplit(self._server)
        settings = self._store / "pgbouncer.ini"
        settings.write_text(
            _SETTINGS.format(host=HOST, server_port=server.port, port=self.port, directory=self._store, pool=_POOL)
        )
        (self._store / "users").write_text(f'"{server.username}" "{server.password}"\n')
        # Like PostgreSQL it does not run as root.
        self._account = unprivileged.account_for(self._store)
        if self._account is not None:
            unprivileged.hand_over(self._store, self._account)
        return [self._pgbouncer, str(settings)], b""

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url, timeout=1.0, statement_cache_size=0)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close(timeout=1.0)
        return True


@pytest.fixture
async def pgbouncer(pooler_dir: Path) -> AsyncIterator[Pgbouncer]:
    """A pooler of the test's own."""
    async with await Pgbouncer.start(pooler_dir) as pooler:
        yield pooler


@pytest.fixture
def pooler_dir(server_dir: Path, postgres_server: EmbeddedPostgres) -> Path:
    """A directory that names the server to the pooler, and that the pooler's account can pass through."""
    directory = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=server_dir))
    directory.chmod(0o711)
    (directory / _SERVER).touch(mode=0o600)
    (directory / _SERVER).write_text(postgres_server.url)
    return directory
