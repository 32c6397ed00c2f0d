"""A Valkey with a replica, and a Sentinel that watches both and makes the replica the master when it must."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aizen_gateway.dev.embedded import EmbeddedValkey
from aizen_gateway.dev.embedded_server import HOST, EmbeddedServer

from .cluster import client_of, replicated
from .waiting import eventually

_SERVICE = "aizen"
# What servers have to know before they start lies beside their directories.
_PASSWORD = "password"
_MASTER = "master"
_DOWN_AFTER_MS = 1_000


class WatchedValkey(EmbeddedValkey):
    """A server with the password that all have."""

    async def _prepare(self) -> None:
        await super()._prepare()
        self._password = self.data_dir.with_name(_PASSWORD).read_text()

    def _command(self) -> tuple[list[str], bytes]:
        command, settings = super()._command()
        return command, settings + f"\nmasterauth {self._password}\nrepl-diskless-sync-delay 0".encode()


class ValkeySentinel(WatchedValkey):
    """The Sentinel of the master whose port lies beside its directory."""

    title = "Valkey Sentinel"

    def _command(self) -> tuple[list[str], bytes]:
        # It keeps what it learns in its settings, so they are a file.
        settings = self._store / "sentinel.conf"
        lines = (
            f"bind {HOST}",
            f"port {self.port}",
            f"dir {self._store}",
            f"requirepass {self._password}",
            f"sentinel monitor {_SERVICE} {HOST} {self.data_dir.with_name(_MASTER).read_text()} 1",
            f"sentinel auth-pass {_SERVICE} {self._password}",
            f"sentinel down-after-milliseconds {_SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {_SERVICE} 5000",
        )
        settings.write_text("\n".join(lines) + "\n")
        return [str(self._valkey), str(settings), "--sentinel"], b""


@dataclass(frozen=True, slots=True)
class Watched:
    """The servers; `master` is the master at first."""

    master: WatchedValkey
    replica: WatchedValkey
    sentinel: ValkeySentinel

    @classmethod
    async def start(cls, directory: Path) -> Watched:
        """Start all three."""
        (directory / _PASSWORD).write_text(secrets.token_urlsafe(24))
        master = await WatchedValkey.start(directory / "first", durable=False)
        (directory / _MASTER).write_text(str(master.port))
        replica = await WatchedValkey.start(directory / "second", durable=False)
        async with client_of(replica) as client:
            await client.execute_command("REPLICAOF", HOST, master.port)
            await eventually(lambda: client.info("replication"), _is_linked)
        return cls(master, replica, await ValkeySentinel.start(directory / "sentinel", durable=False))

    async def replicated(self) -> None:
        """Wait until the Sentinel knows the replica, and the replica has all that the master has now."""
        async with client_of(self.sentinel) as client:
            await eventually(lambda: client.execute_command("SENTINEL", "REPLICAS", _SERVICE), bool, within=20.0)
        await replicated(self.master, self.replica)

    @property
    def url(self) -> str:
        """What a gateway connects to."""
        password = self.master.url.partition("//:")[2].partition("@")[0]
        address = f"{HOST}:{self.sentinel.port}"
        return f"redis+sentinel://:{password}@{address}/{_SERVICE}/0?sentinel_password={password}"

    @property
    def servers(self) -> tuple[EmbeddedServer, ...]:
        return self.sentinel, self.replica, self.master


def _is_linked(replication: dict[str, Any]) -> bool:
    return replication.get("master_link_status") == "up"


StartWatched = Callable[[], Awaitable[Watched]]


@pytest.fixture
def watched(session_loop: asyncio.AbstractEventLoop, server_dir: Path) -> Iterator[StartWatched]:
    """Call it for watched servers of the test's own."""
    started: list[Watched] = []

    async def start() -> Watched:
        started.append(await Watched.start(Path(own)))
        return started[-1]

    with tempfile.TemporaryDirectory(dir=server_dir) as own:
        yield start
        for servers in started:
            for server in servers.servers:
                session_loop.run_until_complete(server.stop())
