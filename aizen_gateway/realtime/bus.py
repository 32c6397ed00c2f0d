"""The one subscriber connection of an instance: channels are joined with the first local interest.

Messages are hints. After any loss of the connection every listener is told that it may have missed some.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import structlog
from redis.exceptions import RedisError

from ..domain.errors import Unavailable
from ..storage.redis_store import ChannelSubscriber, RedisStore
from .later import Later
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

    __slots__ = ("_waiter", "_woken")

    def __init__(self) -> None:
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None

    def message(self, data: str) -> None:
        self.gap()

    def gap(self) -> None:
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float) -> bool:
        """Wait for a message for at most `seconds`; return whether one came. One at a time."""
        if not self._woken:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._waiter
            except TimeoutError:
                return False
            finally:
                self._waiter = None
        self._woken = False
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
        # Most channels have one: a tuple is small, and may be walked while somebody comes or goes.
        self._handlers: dict[str, tuple[Handler, ...]] = {}
        self._idle: dict[str, float] = {}
        self._joined: set[str] = set()
        # Channels to be joined or left: no walk over all of them when one comes or goes.
        self._joining: set[str] = set()
        self._leaving: set[str] = set()
        self._confirmed: set[str] = set()
        self._awaited: dict[str, list[asyncio.Future[None]]] = {}
        self._timers = Later()
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
        self._handlers[channel] = (*self._handlers.get(channel, ()), handler)
        self._idle.pop(channel, None)
        self._leaving.discard(channel)
        if channel not in self._joined:
            self._joining.add(channel)
            self._changed.set()

    async def confirmed(self, channel: str) -> None:
        """Wait until the server has confirmed `channel`: nothing later is missed. Raises `Unavailable`."""
        if channel in self._confirmed:
            return
        # One for each that waits: whoever is cancelled takes none of the others along.
        awaited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(channel, []).append(awaited)
        timer = self._timers.call_later(_CONFIRM, _give_up, awaited)
        try:
            await awaited
        finally:
            timer.cancel()

    def detach(self, channel: str, handler: Handler) -> None:
        """Take back what `attach` did."""
        handlers = tuple(other for other in self._handlers[channel] if other is not handler)
        if handlers:
            self._handlers[channel] = handlers
        else:
            del self._handlers[channel]
            self._awaited.pop(channel, None)
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
        for handler in handlers:
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
                # A connection that ends at a bad moment makes the library and the loop raise errors of every kind.
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
        subscriber = self._store.subscriber()
        tasks: list[asyncio.Task[None]] = []
        try:
            self._joined = set()
            self._joining = {*self._handlers, *self._idle}
            # Those that were about to be left are not joined again.
            self._lost &= self._joining
            self._leaving.clear()
            await subscriber.subscribe(self._control)
            self._heard = time.monotonic()
            self._changed.set()
            tasks = [
                asyncio.create_task(self._read(subscriber), name="bus-read"),
                asyncio.create_task(self._join_and_leave(subscriber), name="bus-join"),
                asyncio.create_task(self._ping(), name="bus-ping"),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            # First, since whoever is cancelled twice gets no further than the first thing that is waited for.
            subscriber.close()
            await end(*tasks)
            self._lost |= self._confirmed
            self._confirmed.clear()
            await subscriber.aclose()

    async def _read(self, subscriber: ChannelSubscriber) -> None:
        while True:
            messages = await subscriber.messages()
            self._heard = time.monotonic()
            for kind, channel, data in messages:
                if kind == "subscribe":
                    if channel in self._joined:
                        self._confirm(channel)
                    continue
                if channel == self._control:
                    self._timed(self._heard - self._pinged_at)
                _deliver(self._handlers.get(channel, ()), data)

    def _confirm(self, channel: str) -> None:
        """The server has joined `channel`. One that was joined before had a gap: the client may reconnect silently."""
        if channel in self._confirmed or channel in self._lost:
            self._lost.discard(channel)
            self._tell_gap(self._handlers.get(channel, ()), _SPREAD)
        self._confirmed.add(channel)
        for awaited in self._awaited.pop(channel, ()):
            if not awaited.done():
                awaited.set_result(None)

    async def _join_and_leave(self, subscriber: ChannelSubscriber) -> None:
        """The only writer of the subscriber connection: joins and leaves are one after the other."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if join := self._joining:
                # Noted before the server is told: it may confirm at once.
                self._joining = set()
                self._joined |= join
                await subscriber.subscribe(*join)
            # Whoever came meanwhile and takes an old channel for joined has taken it off this list.
            if leave := self._leaving & self._joined:
                # Forgotten before the server is told, so that whoever comes back meanwhile joins anew, after it.
                self._joined -= leave
                self._confirmed -= leave
                self._lost -= leave
                self._leaving = set()
                await subscriber.unsubscribe(*leave)

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
                self._leaving.add(channel)
                self._changed.set()


def _give_up(awaited: asyncio.Future[None]) -> None:
    if not awaited.done():
        awaited.set_exception(Unavailable("Redis is not reachable."))


def _deliver(handlers: Iterable[Handler], data: str) -> None:
    """One that fails must not deafen the others."""
    for handler in handlers:
        try:
            handler.message(data)
        except Exception:
            _log.exception("message not understood", handler=type(handler).__name__)
