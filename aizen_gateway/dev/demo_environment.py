"""What the demonstration finds on this machine: its data folder, the environment's settings, and a free port.

The environment wins wherever it says something; only what it leaves open is made up here and kept in the folder, so
that a second run finds the same world.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import psutil

import aizen_gateway
from aizen_gateway.dev.agent_disk import write_atomically
from aizen_gateway.services.supabase import issuer_of
from aizen_gateway.settings import SETTINGS, Settings, SettingsError

# What a wrong environment is checked with where it says nothing itself.
_STAND_INS = {
    "DATABASE_URL": "postgresql://127.0.0.1/unknown",
    "REDIS_URL": "redis://127.0.0.1/0",
    "SUPABASE_JWT_SECRET": "to be made once the folder is there",
}
# Addresses to listen on at which nobody can be called, and what reaches them from this machine.
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to be avoided, not to be bound


class DemoFailed(Exception):
    """The demonstration cannot go on. The text is for a person: a line that says why, more lines for details."""


class DataFolder:
    """The folder of one demonstration, held for this process until `close`."""

    def __init__(self, path: Path) -> None:
        """Make it where it is missing. Raises `DemoFailed`, when another process has it too."""
        self.path = path.absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DemoFailed(f"{self.path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._lock, 20).decode(errors="replace") or "unknown"
            os.close(self._lock)
            raise DemoFailed(f"process {holder} runs on {self.path} already: end it, or choose --data-dir") from None
        os.truncate(self._lock, 0)
        os.write(self._lock, str(os.getpid()).encode())

    def close(self) -> None:
        """Let the next process have it."""
        os.close(self._lock)

    def forget(self) -> None:
        """Remove what earlier runs left, but for the servers' data, which are the servers' own to remove."""
        for path in (self.identities, self._jwt_secret, self.environment):
            path.unlink(missing_ok=True)
        if self.agent.exists():
            shutil.rmtree(self.agent)

    @property
    def agent(self) -> Path:
        """The state folder of the device agent."""
        return self.path / "agent"

    @property
    def identities(self) -> Path:
        return self.path / "identities.json"

    @property
    def environment(self) -> Path:
        """What a shell reads to work with the running demonstration."""
        return self.path / "environment"

    @property
    def _jwt_secret(self) -> Path:
        return self.path / "jwt-secret"

    def jwt_secret(self) -> str:
        """The secret that tokens are signed with, made at the first call. Raises `OSError`."""
        with contextlib.suppress(FileNotFoundError):
            if kept := self._jwt_secret.read_text():
                return kept
        made = secrets.token_urlsafe(48)
        write_atomically(self._jwt_secret, made.encode())
        return made


@dataclass(frozen=True, slots=True)
class DemoEnvironment:
    """What the environment says. `database_url` and `redis_url` are None where embedded servers are to be started."""

    given: Mapping[str, str]
    host: str
    port: int
    database_url: str | None
    redis_url: str | None
    jwt_secret: str | None
    issuer: str | None

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Check everything before anything is started. Raises `DemoFailed` with a line for every wrong variable."""
        given = {name: value for name, value in environ.items() if value.strip()}
        try:
            settings = Settings.from_env(_STAND_INS | given)
        except SettingsError as error:
            raise DemoFailed(str(error)) from None
        if settings.unix_socket is not None:
            raise DemoFailed("AIZEN_UNIX_SOCKET: the story is told over host and port; unset it")
        if "SUPABASE_URL" in given and "SUPABASE_JWT_SECRET" not in given:
            raise DemoFailed(
                "SUPABASE_URL: tokens for the story's users can only be signed with the project's secret; "
                "set SUPABASE_JWT_SECRET as well, or unset SUPABASE_URL"
            )
        return cls(
            given=given,
            host=settings.host,
            port=free_port(settings.host, settings.port),
            database_url=settings.database_url if "DATABASE_URL" in given else None,
            redis_url=settings.redis_url if "REDIS_URL" in given else None,
            jwt_secret=given.get("SUPABASE_JWT_SECRET"),
            issuer=issuer_of(settings.supabase_url) if settings.supabase_url else None,
        )

    def completed(self, folder: DataFolder) -> Self:
        """With the folder's own secret where the environment has none. Raises `OSError`."""
        return self if self.jwt_secret else replace(self, jwt_secret=folder.jwt_secret())

    @property
    def base_url(self) -> str:
        """Where the gateway is reached from this machine."""
        host = _ANY_ADDRESS.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def of_operator(self, database_url: str, redis_url: str) -> dict[str, str]:
        """The variables that the gateway and the operator's commands need here."""
        assert self.jwt_secret is not None
        needed = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SUPABASE_JWT_SECRET": self.jwt_secret}
        return needed | ({"SUPABASE_URL": self.given["SUPABASE_URL"]} if self.issuer else {})

    def of_gateway(self, database_url: str, redis_url: str) -> dict[str, str]:
        """The whole environment of the gateway."""
        # The service manager, if there is one, waits for our word and not for the gateway's.
        kept = {name: value for name, value in self.given.items() if name != "NOTIFY_SOCKET"}
        return kept | _same_code() | self.of_operator(database_url, redis_url) | {"AIZEN_PORT": str(self.port)}

    def of_agent(self) -> dict[str, str]:
        """The whole environment of the agent: a device knows nothing of the gateway's settings and secrets."""
        foreign = {doc.variable for doc in SETTINGS} | {"NOTIFY_SOCKET"}
        return {name: value for name, value in self.given.items() if name not in foreign} | _same_code()


def free_port(host: str, port: int) -> int:
    """Return `port`, or any free one for 0. Raises `DemoFailed`, which names the variable, when it cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise DemoFailed(f"AIZEN_HOST: {host} is no address of this machine: {error.strerror}") from None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address[0], port, *address[2:]))
            except OSError as error:
                raise DemoFailed(_why_not(host, port, error)) from None
            port = port or int(probe.getsockname()[1])
    return port


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        name = "AIZEN_PORT" if error.errno == errno.EACCES else "AIZEN_HOST"
        return f"{name}: cannot listen on {host} port {port}: {error.strerror}"
    other = port + 1 if port < 65535 else 3001
    return (
        f"AIZEN_PORT: port {port} on {host} is taken{_by_whom(port)}; "
        f"end that program, or choose another port: AIZEN_PORT={other}"
    )


def _by_whom(port: int) -> str:
    """Who listens there, where the system tells us."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def _same_code() -> dict[str, str]:
    """What makes a child run the code that runs here, from whatever directory and however it was found."""
    place = str(Path(aizen_gateway.__file__).parents[1])
    if place == sysconfig.get_path("purelib"):
        # Found anyway; named here it would come before the standard library.
        return {}
    further = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{place}{os.pathsep}{further}" if further else place}
