"""The one subscriber connection of an instance: channels are joined with the first local interest.

Messages are hints. After any loss of the connection every listener is told that it may have missed some.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import structlog
from redis.exceptions import RedisError

from ..domain.errors import Unavailable
from ..storage.redis_store import RedisStore
from .tasks import end

# Seconds. A channel without listeners is left only after a while: a long-polling device is back within it.
_LINGER = 60.0
_PING_EVERY = 2.0
_SILENCE = 6.0
_CONFIRM = 2.0
_RETRY_FIRST, _RETRY_MOST = 0.1, 2.0
# After a gap all listeners look again; spread over this many seconds so that they do not do it at once.
_SPREAD = 1.0

_log = structlog.get_logger(__name__)


class Handler(Protocol):
    """One party's interest in a channel. Neither method may block or raise."""

    def message(self, data: str) -> None:
        """A message of the channel."""

    def gap(self) -> None:
        """The connection was lost and is back: messages may have been missed."""


class Listener:
    """Wakes whoever waits; what counts is read from the store, so a gap is as good as a message."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    def message(self, data: str) -> None:
        self._woken.set()

    def gap(self) -> None:
        self._woken.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a message for at most `seconds`; return whether one came."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True


class Bus:
    """Owns the subscriber. `start` and `stop` belong to the application; `listen` to whoever waits."""

    def __init__(
        self, store: RedisStore, instance_id: str, *, timed: Callable[[float], None] = lambda _seconds: None
    ) -> None:
        """`timed` is told the seconds that each message of this instance to itself took."""
        self._store = store
        self._timed = timed
        self._pinged_at = 0.0
        self._control = f"aizen:instance:{instance_id}"
        self._handlers: dict[str, set[Handler]] = {}
        self._idle: dict[str, float] = {}
        self._joined: set[str] = set()
        self._confirmed: dict[str, asyncio.Event] = {}
        self._lost: set[str] = set()
        self._changed = asyncio.Event()
        self._heard = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="bus")

    async def stop(self) -> None:
        if self._task is not None:
            await end(self._task)
            self._task = None

    @property
    def channels(self) -> int:
        """How many channels are joined."""
        return len(self._joined)

    @property
    def connected(self) -> bool:
        """Whether the subscriber has heard itself lately."""
        return time.monotonic() - self._heard < _SILENCE

    def attach(self, channel: str, handler: Handler) -> None:
        """Join `channel` on behalf of `handler`; it may miss messages until `confirmed` returns."""
        self._handlers.setdefault(channel, set()).add(handler)
        self._idle.pop(channel, None)
        if not self._confirmed.setdefault(channel, asyncio.Event()).is_set():
            self._changed.set()

    async def confirmed(self, channel: str) -> None:
        """Wait until the server has confirmed `channel`: nothing later is missed. Raises `Unavailable`."""
        try:
            async with asyncio.timeout(_CONFIRM):
                await self._confirmed[channel].wait()
        except TimeoutError as error:
            raise Unavailable("Redis is not reachable.") from error

    def detach(self, channel: str, handler: Handler) -> None:
        """Take back what `attach` did."""
        handlers = self._handlers[channel]
        handlers.discard(handler)
        if not handlers:
            del self._handlers[channel]
            self._idle[channel] = time.monotonic()

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[Listener]:
        """Wait for messages of `channel` inside the block. Raises `Unavailable` when it cannot be joined in time."""
        listener = Listener()
        self.attach(channel, listener)
        try:
            await self.confirmed(channel)
            yield listener
        finally:
            self.detach(channel, listener)

    def wake_all(self) -> None:
        """Have every handler look at the store now."""
        for handlers in list(self._handlers.values()):
            self._tell_gap(handlers, 0.0)

    @staticmethod
    def _tell_gap(handlers: Iterable[Handler], spread: float) -> None:
        loop = asyncio.get_running_loop()
        for handler in tuple(handlers):
            loop.call_later(random.uniform(0, spread), handler.gap)

    async def _run(self) -> None:
        pause = _RETRY_FIRST
        while True:
            started = time.monotonic()
            try:
                await self._serve()
            except Exception as error:
                if time.monotonic() - started > _RETRY_MOST:
                    pause = _RETRY_FIRST
                # A connection that ends at a bad moment makes the client library raise errors of every kind.
                foreseen = isinstance(error, RedisError | OSError | RuntimeError | Unavailable)
                _log.warning(
                    "subscriber lost",
                    error=type(error).__name__,
                    retry_in=round(pause, 2),
                    exc_info=None if foreseen else error,
                )
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _RETRY_MOST)

    async def _serve(self) -> None:
        """One life of the subscriber connection; ends by an error."""
        pubsub = self._store.subscriber()
        tasks: list[asyncio.Task[None]] = []
        try:
            self._joined = set()
            await pubsub.subscribe(self._control)
            self._heard = time.monotonic()
            self._changed.set()
            tasks = [
                asyncio.create_task(self._read(pubsub), name="bus-read"),
                asyncio.create_task(self._join_and_leave(pubsub), name="bus-join"),
                asyncio.create_task(self._ping(), name="bus-ping"),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end(*tasks)
            for channel, event in self._confirmed.items():
                if event.is_set():
                    self._lost.add(channel)
                    event.clear()
            with suppress(RedisError, OSError):
                await asyncio.wait_for(pubsub.aclose(), 1.0)

    async def _read(self, pubsub: Any) -> None:
        while True:
            message = await pubsub.get_message(timeout=1.0)
            if message is None:
                continue
            self._heard = time.monotonic()
            kind, channel = message["type"], message["channel"]
            if kind == "subscribe" and channel in self._confirmed:
                self._confirm(channel)
            elif kind == "message":
                if channel == self._control:
                    self._timed(self._heard - self._pinged_at)
                for handler in tuple(self._handlers.get(channel, ())):
                    _deliver(handler, message["data"])

    def _confirm(self, channel: str) -> None:
        """The server has joined `channel`. One that was joined before had a gap: the client may reconnect silently."""
        confirmed = self._confirmed[channel]
        if confirmed.is_set() or channel in self._lost:
            self._lost.discard(channel)
            self._tell_gap(self._handlers.get(channel, ()), _SPREAD)
        confirmed.set()

    async def _join_and_leave(self, pubsub: Any) -> None:
        """The only writer of the subscriber connection: joins and leaves are one after the other."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if join := self._wanted() - self._joined:
                await pubsub.subscribe(*join)
                self._joined |= join
            # Asked again, for somebody may have come meanwhile who takes an old channel for joined.
            if leave := self._joined - self._wanted():
                # Forgotten before the server is told, so that whoever comes back meanwhile joins anew, after it.
                self._joined -= leave
                for channel in leave:
                    self._confirmed.pop(channel, None)
                    self._lost.discard(channel)
                await pubsub.unsubscribe(*leave)

    def _wanted(self) -> set[str]:
        return set(self._handlers) | set(self._idle)

    async def _ping(self) -> None:
        """Hear oneself: a server that hangs without closing is noticed by nothing else. Leaves idle channels too."""
        while True:
            # Only silence counts: a ping that cannot be sent says nothing of the subscriber's own connection.
            self._pinged_at = time.monotonic()
            with suppress(Unavailable, TimeoutError):
                await asyncio.wait_for(self._store.call("PUBLISH", self._control, "ping"), _PING_EVERY)
            await asyncio.sleep(_PING_EVERY)
            now = time.monotonic()
            if now - self._heard > _SILENCE:
                raise Unavailable("The subscriber hears nothing.")
            for channel in [name for name, since in self._idle.items() if now - since > _LINGER]:
                del self._idle[channel]
                self._changed.set()


def _deliver(handler: Handler, data: str) -> None:
    """One that fails must not deafen the others."""
    try:
        handler.message(data)
    except Exception:
        _log.exception("message not understood", handler=type(handler).__name__)
