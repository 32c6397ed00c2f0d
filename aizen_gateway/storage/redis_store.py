"""The Redis client and its scripts: one file an operation, and one way to say that Redis is not there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..domain.errors import Unavailable

LUA = Path(__file__).with_name("lua")
_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)
# Answers of a Redis that is there but cannot serve now: full, failing over, read-only, loading.
_NOT_NOW = ("LOADING", "MISCONF", "OOM", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "BUSY")

Client = Any  # Redis | RedisCluster: the library's two clients share no type that names what we call


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How to connect: `timeout` is seconds for a connection, for an answer, and for a place in the pool."""

    url: str
    max_connections: int = 8
    timeout: float = 2.0


def connect(options: RedisOptions) -> Client:
    """Return a client for `redis://`, `rediss://`, `unix://`, `redis[s]+sentinel://` or `redis[s]+cluster://`.

    Nothing is connected yet. Commands are never repeated by the client: a claim whose answer was lost must not be
    made twice, and pooled connections that the server closed are found before they are used.
    """
    parts = urlsplit(options.url)
    common: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": options.timeout,
        "socket_connect_timeout": options.timeout,
        "socket_keepalive": True,
    }
    if parts.scheme.endswith("+sentinel"):
        return _sentinel(options, common)
    if parts.scheme.endswith("+cluster"):
        return _cluster(options, common)
    pool = BlockingConnectionPool.from_url(
        options.url,
        max_connections=options.max_connections,
        timeout=options.timeout,
        retry=Retry(NoBackoff(), 0),
        **common,
    )
    return Redis.from_pool(pool)


def _addresses(netloc: str, default_port: int) -> tuple[list[tuple[str, int]], str | None, str | None]:
    """Split `user:password@host:port,host:port` into addresses, user and password."""
    credentials, _, hosts = netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    addresses = []
    for host in hosts.split(","):
        address = urlsplit(f"//{host}")
        addresses.append((address.hostname or "127.0.0.1", address.port or default_port))
    return addresses, unquote(user) or None, unquote(password) or None


def _sentinel(options: RedisOptions, common: dict[str, Any]) -> Client:
    parts = urlsplit(options.url)
    addresses, user, password = _addresses(parts.netloc, 26379)
    service, _, database = parts.path.strip("/").partition("/")
    # The library leaves this constructor without types.
    sentinel = Sentinel(addresses, sentinel_kwargs={"socket_timeout": options.timeout})  # type: ignore[no-untyped-call]
    return sentinel.master_for(
        service,
        db=int(database or 0),
        username=user,
        password=password,
        ssl=parts.scheme.startswith("rediss"),
        max_connections=options.max_connections,
        retry=Retry(NoBackoff(), 0),
        **common,
    )


def _cluster(options: RedisOptions, common: dict[str, Any]) -> Client:
    parts = urlsplit(options.url)
    addresses, user, password = _addresses(parts.netloc, 6379)
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in addresses],
        username=user,
        password=password,
        ssl=parts.scheme.startswith("rediss"),
        max_connections=options.max_connections,
        **common,
    )


def script_text(name: str) -> str:
    """The text of `lua/<name>.lua` with its includes put in."""
    text = (LUA / f"{name}.lua").read_text("utf-8")
    return _INCLUDE.sub(lambda found: (LUA / f"{found[1]}.lua").read_text("utf-8"), text)


class RedisStore:
    """Runs the scripts and the few plain commands, and turns "not there" into `Unavailable`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        names = sorted(path.stem for path in LUA.glob("*.lua") if not path.stem.startswith("_"))
        self._scripts = {name: client.register_script(script_text(name)) for name in names}

    @classmethod
    def connect(cls, options: RedisOptions) -> Self:
        return cls(connect(options))

    async def run(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Run `lua/<script>.lua` in one round trip. Raises `Unavailable`."""
        try:
            return await self._scripts[script](keys=keys, args=args)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def call(self, *command: str | int) -> Any:
        """Run one plain command. Raises `Unavailable`."""
        try:
            return await self.client.execute_command(*command)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def entries(self, command: str, stream: str, first: str, last: str, count: int) -> list[Any]:
        """A page of a stream as (id, fields) pairs, by `XRANGE` or `XREVRANGE`. Raises `Unavailable`."""
        read = self.client.xrange if command == "XRANGE" else self.client.xrevrange
        try:
            return list(await read(stream, first, last, count=count))
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def time_ms(self) -> int:
        """Redis's clock, the one clock of all leases, in milliseconds since the epoch. Raises `Unavailable`."""
        try:
            seconds, micros = await self.client.time()
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return int(seconds) * 1000 + int(micros) // 1000

    async def close(self) -> None:
        """Close all connections."""
        await self.client.aclose()


def unavailable(error: Exception) -> Exception:
    """`Unavailable` when Redis is away or cannot serve now; the error itself when it is a fault of ours."""
    gone = (RedisConnectionError, RedisTimeoutError, RedisClusterException, OSError)
    if isinstance(error, gone) or (isinstance(error, ResponseError) and str(error).startswith(_NOT_NOW)):
        return Unavailable("Redis is not reachable.")
    return error
