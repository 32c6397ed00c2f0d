"""The Redis client and its scripts: one file an operation, and one way to say that Redis is not there."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from ..domain.errors import Unavailable
from .cluster import Address, ClusterClient
from .cluster_subscriber import ClusterSubscriber
from .link import Command, Link
from .subscriber import RedisSubscriber

LUA = Path(__file__).with_name("lua")
_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)
# A Redis that is there but cannot serve now: full, failing over, read-only, loading.
_NOT_NOW = (ClusterError, OutOfMemoryError, ReadOnlyError, TryAgainError)
# The same where the library has no class for it, and where a script failed by it: before 7.0 the code is in the middle.
_NOT_NOW_TEXT = re.compile(r"(?:^|-)(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN) ")

# Of a server: the one that is being replaced by a new one still counts.
_MOST_CONNECTIONS = 4
# Only Redis's own cloud sends these; a pool that expects them takes connections that the server has closed for good.
_NO_NOTICES = MaintNotificationsConfig(enabled=False)

Client = Link | ClusterClient
# Both have `subscribe`, `unsubscribe`, `messages`, `close` and `aclose`.
ChannelSubscriber = RedisSubscriber | ClusterSubscriber


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How to connect: `timeout` is seconds for a connection and for an answer."""

    url: str
    timeout: float = 2.0


def connect(options: RedisOptions, timed: Callable[[float], None] = lambda _seconds: None) -> Client:
    """Return a client for `redis://`, `rediss://`, `unix://`, `redis[s]+sentinel://` or `redis[s]+cluster://`.

    Nothing is connected yet. Commands are never repeated by the client: a claim whose answer was lost must not be
    made twice. A server has one connection for all calls, and one for a subscriber.
    """
    scheme, _, kind = urlsplit(options.url).scheme.partition("+")
    if not kind:
        return Link(_plain(options.url, options), options.timeout, timed)
    credentials, _, hosts = urlsplit(options.url).netloc.rpartition("@")

    def url_of(address: Address, path: str = "") -> str:
        host, port = address
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        query = urlsplit(options.url).query
        return f"{scheme}://{credentials and credentials + '@'}{where}/{path}{query and '?' + query}"

    addresses = [_address(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(",")]
    if kind == "cluster":
        return ClusterClient(addresses, lambda address: Link(_plain(url_of(address), options), options.timeout, timed))
    service, _, database = urlsplit(options.url).path.strip("/").partition("/")
    return Link(_sentinel(addresses, service, url_of(addresses[0], database), options), options.timeout, timed)


def _address(text: str, default_port: int) -> Address:
    split = urlsplit(f"//{text}")
    return split.hostname or "127.0.0.1", split.port or default_port


def _common(options: RedisOptions) -> dict[str, Any]:
    return {
        "socket_timeout": options.timeout,
        "socket_connect_timeout": options.timeout,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
    }


def _plain(url: str, options: RedisOptions) -> Redis:
    """The client of one server."""
    common = _common(options)
    if urlsplit(url).scheme == "unix":
        del common["socket_keepalive"]  # of TCP alone
    pool = ConnectionPool.from_url(
        url,
        max_connections=_MOST_CONNECTIONS,
        decode_responses=True,
        maint_notifications_config=_NO_NOTICES,
        **common,
    )
    return Redis.from_pool(pool)


class _SentinelPool(SentinelConnectionPool):
    async def aclose(self) -> None:
        """Close the connections to the sentinels too: nobody else knows of them."""
        await super().aclose()
        await self.sentinel_manager.aclose()


def _sentinel(sentinels: Sequence[Address], service: str, url: str, options: RedisOptions) -> Redis:
    """The client of the server that is now the master of `service`; `url` tells how to connect to it.

    Sentinels have the TLS of the servers they watch, but not their credentials: `sentinel_username` and
    `sentinel_password` in the query are theirs.
    """
    arguments: dict[str, Any] = dict(parse_url(url))
    for name in ("host", "port"):
        del arguments[name]
    tls = arguments.pop("connection_class", None) is SSLConnection
    theirs = {name: arguments.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    theirs |= {name: value for name, value in arguments.items() if name.startswith("ssl_")}
    # The library leaves this constructor without types.
    manager = Sentinel(  # type: ignore[no-untyped-call]
        sentinels, sentinel_kwargs={**_common(options), **theirs, "ssl": tls}
    )
    pool = _SentinelPool(  # type: ignore[no-untyped-call]
        service,
        manager,
        ssl=tls,
        max_connections=_MOST_CONNECTIONS,
        decode_responses=True,
        maint_notifications_config=_NO_NOTICES,
        **arguments,
        **_common(options),
    )
    return Redis.from_pool(pool)


def script_text(name: str) -> str:
    """The text of `lua/<name>.lua` with its includes put in."""
    text = (LUA / f"{name}.lua").read_text("utf-8")
    return _INCLUDE.sub(lambda found: (LUA / f"{found[1]}.lua").read_text("utf-8"), text)


class RedisStore:
    """Runs the scripts and the few plain commands, and turns "not there" into `Unavailable`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        names = sorted(path.stem for path in LUA.glob("*.lua") if not path.stem.startswith("_"))
        self._scripts = {name: script_text(name) for name in names}
        # What Redis calls a script by; it is no secret.
        self._hashes = {name: sha1(text.encode()).hexdigest() for name, text in self._scripts.items()}  # noqa: S324

    @classmethod
    def connect(cls, options: RedisOptions, *, timed: Callable[[float], None] = lambda _seconds: None) -> Self:
        """Nothing is connected before the first call. `timed` is told how many seconds answers take."""
        return cls(connect(options, timed))

    def run(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Coroutine[Any, Any, Any]:
        """Run `lua/<script>.lua` in one round trip. All keys are of one hash tag. Raises `Unavailable`."""
        return self._answer(None, script, keys, args)

    def begin(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Awaitable[Any]:
        """As `run`, but sent now, before whatever is begun after it; the answer is there to be awaited, and must be.

        In a cluster it is sent when it is awaited, since what goes to different nodes keeps no order.
        """
        try:
            sent: Awaitable[Any] | None = self._send(script, keys, args)
        except (RedisError, OSError):
            # Away just now: the answer tells.
            sent = None
        return self._answer(sent, script, keys, args)

    def begin_call(self, *command: str | int) -> Begun:
        """As `call`, but sent now as by `begin`; it need not be awaited. The answer is what the server says."""
        sent = None
        with suppress(RedisError, OSError):
            sent = self.client.open_call(command)
        return Begun(self.client, sent, command)

    def _send(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Awaitable[Any]:
        return self.client.run_script(("EVALSHA", self._hashes[script], len(keys), *keys, *args))

    async def _answer(
        self, sent: Awaitable[Any] | None, script: str, keys: Sequence[str], args: Sequence[str | int]
    ) -> Any:
        """The answer to what was sent, or is sent now."""
        try:
            try:
                return await (self._send(script, keys, args) if sent is None else sent)
            except NoScriptError:
                return await self.client.run_script(("EVAL", self._scripts[script], len(keys), *keys, *args))
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def call(self, *command: str | int) -> Any:
        """Run one plain command, whose keys are of one hash tag. Raises `Unavailable`."""
        try:
            return await self.client.execute_command(*command)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def entries(self, command: str, stream: str, first: str, last: str, count: int) -> list[Any]:
        """A page of a stream as (id, fields) pairs, by `XRANGE` or `XREVRANGE`. Raises `Unavailable`."""
        return list(await self.call(command, stream, first, last, "COUNT", count))

    async def time_ms(self) -> int:
        """Redis's clock, the one clock of all leases, in milliseconds since the epoch. Raises `Unavailable`.

        In a cluster it is that of one node, the same for every instance.
        """
        seconds, micros = await self.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def info(self) -> dict[str, Any]:
        """What the server says of itself, by the names of `INFO`; of a cluster, one node. Raises `Unavailable`."""
        return dict(await self.call("INFO"))

    def subscriber(self) -> ChannelSubscriber:
        """A new subscriber, not connected yet."""
        return ClusterSubscriber(self.client) if isinstance(self.client, ClusterClient) else self.client.subscriber()

    @property
    def servers(self) -> object:
        """What is another when keys are at other servers than before, by a failover or a move that was noticed."""
        if isinstance(self.client, ClusterClient):
            return self.client.generation
        return self.client.master_address

    async def tags(self, stem: str) -> Sequence[str]:
        """Hash tags such that each node which keeps keys has one: `stem` first, and others that begin with it.

        Raises `Unavailable`.
        """
        if not isinstance(self.client, ClusterClient):
            return [stem]
        try:
            return await self.client.tags(stem)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    @property
    def calls(self) -> int:
        """How many calls are under way."""
        return self.client.calls

    async def close(self) -> None:
        """Close all connections."""
        await self.client.aclose()


class Begun:
    """A command that may have been sent already; await it for its answer, which raises `Unavailable`."""

    __slots__ = ("_client", "_command", "_sent")

    def __init__(self, client: Client, sent: Awaitable[Any] | None, command: Command) -> None:
        self._client = client
        self._sent = sent
        self._command = command

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        try:
            return await (self._client.run_script(self._command) if self._sent is None else self._sent)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error


def unavailable(error: Exception) -> Exception:
    """`Unavailable` when Redis is away or cannot serve now; the error itself when it is a fault of ours."""
    if isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError, *_NOT_NOW)):
        return Unavailable("Redis is not reachable.")
    if isinstance(error, ResponseError) and _NOT_NOW_TEXT.search(str(error)):
        return Unavailable("Redis is not reachable.")
    return error
