"""One live socket as the rest of the gateway sees it: a bounded outbox, one writer, a heart that is listened to.

Nobody waits for a client's network but the socket's own writer: `send` never blocks, and a peer that does not read is
closed, by force when it must be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import structlog

from .close_codes import CloseCode
from .later import Cancellable, Timers
from .reading import Reading
from .wire import Wire

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of a socket; times are seconds. A portal that does not read has `frames` and `octets` (section 6)."""

    frames: int = 256
    octets: int = 1024 * 1024
    ping_every: float = 30.0
    pong_within: float = 10.0
    close_within: float = 3.0


class _Ping:
    """Waits like a frame, for its turn."""

    __slots__ = ()


_PING = _Ping()
_Item = bytes | _Ping | tuple[str, bytes]


class Connection:
    """One socket, pinged from the beginning. Its owner calls `heard` for whatever the peer sends and, at the end,
    awaits `closed`.

    What the transport takes at once is given to it at once. There is a writer, a task, only while something waits for
    the peer: frames, or the close.
    """

    __slots__ = (
        "_ending",
        "_force",
        "_heard_at",
        "_items",
        "_limits",
        "_loop",
        "_octets",
        "_on_end",
        "_reading",
        "_roomy",
        "_timer",
        "_timers",
        "_unread",
        "_wire",
        "_writer",
        "deaf",
        "id",
    )

    def __init__(self, wire: Wire, limits: ConnectionLimits, timers: Timers | None = None) -> None:
        """`timers` say when a ping is due; by themselves, the event loop's."""
        self.id: UUID = uuid4()
        self._wire = wire
        self._limits = limits
        # A list, for it is nearly always empty, and then small.
        self._items: list[_Item] = []
        self._octets = 0
        self._writer: asyncio.Task[None] | None = None
        self._roomy: asyncio.Event | None = None
        self._ending: tuple[int, str] | None = None
        self._reading: asyncio.Timeout | None = None
        self._unread: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._timers: Timers = timers or self._loop
        self._timer: Cancellable | None = None
        self._force: asyncio.TimerHandle | None = None
        self._on_end: tuple[Callable[[], object], ...] = ()
        # Set while we do not read, because we are behind with what the peer has said: its silence means nothing.
        self.deaf = False
        self._schedule_ping()

    @property
    def ending(self) -> bool:
        """Whether the socket is closed or about to be: what is sent now goes nowhere."""
        return self._ending is not None

    @property
    def close_code(self) -> int | None:
        """With what code the gateway ends it, None while it lives."""
        return self._ending[0] if self._ending else None

    def send(self, frame: bytes) -> None:
        """Send one text frame, or have it wait. Past the bound the socket is closed 1013, and what waited is dropped.

        It never blocks and raises nothing.
        """
        if self._ending is not None:
            return
        if self._writer is None and not self._wire.full:
            self._put(frame)
            return
        if len(self._items) >= self._limits.frames or self._octets + len(frame) > self._limits.octets:
            self._items.clear()
            self._octets = 0
            _log.info("slow consumer", connection_id=str(self.id))
            self.end(CloseCode.TRY_AGAIN_LATER, "slow consumer")
            return
        self._items.append(frame)
        self._octets += len(frame)
        self._begin_writing()

    def _say(self, item: _Item) -> None:
        """Send a ping or pong in its turn."""
        if self._writer is None and not self._wire.full:
            self._put(item)
        else:
            self._items.append(item)
            self._begin_writing()

    def _put(self, item: _Item) -> None:
        try:
            self._write(item)
        except (ConnectionError, RuntimeError):
            # The peer went away; the reader notices it as well.
            self.end(CloseCode.NORMAL, "")

    def _write(self, item: _Item) -> None:
        if isinstance(item, bytes):
            self._wire.write(item)
        elif isinstance(item, _Ping):
            self._wire.ping()
        else:
            self._wire.pong(item[1])

    async def roomy(self) -> None:
        """Wait until the outbox is at most half full, or the socket ends: for replays, which must not overflow it."""
        while self._ending is None and self._half_full():
            if self._roomy is None:
                self._roomy = asyncio.Event()
            await self._roomy.wait()

    def _half_full(self) -> bool:
        return len(self._items) * 2 >= self._limits.frames or self._octets * 2 >= self._limits.octets

    def _tell_roomy(self) -> None:
        if self._roomy is not None:
            self._roomy.set()
            self._roomy = None

    def end(self, code: int, reason: str) -> None:
        """Close after what is queued has been sent, by force if that takes too long. The first reason counts."""
        if self._ending is not None:
            return
        self._ending = (code, reason)
        self._tell_roomy()
        if self._timer is not None:
            self._timer.cancel()
        self._force = self._loop.call_later(self._limits.close_within, self._wire.abort)
        # Forgotten, for they know this connection: what has ended is freed without the garbage collector.
        callbacks, self._on_end = self._on_end, ()
        for callback in callbacks:
            callback()
        if self._reading is not None:
            self._reading.reschedule(self._loop.time())
        self._begin_writing()

    def when_ending(self, callback: Callable[[], object]) -> None:
        """Have `callback` called at the moment the socket begins to end, whoever ends it; now if it has begun."""
        if self._ending is None:
            self._on_end += (callback,)
        else:
            callback()

    def abort(self) -> None:
        """End at once, whatever is queued."""
        self.end(CloseCode.GOING_AWAY, "")
        self._wire.abort()

    def heard(self) -> None:
        """Something came from the peer."""
        self._heard_at = self._loop.time()

    def pinged(self, data: bytes) -> None:
        """The peer asks whether we live."""
        if len(self._items) < self._limits.frames and self._ending is None:
            self._say(("pong", data))

    def reading(self) -> Reading:
        """A block in which the peer is read. It is broken off when the socket begins to end, and then just left.

        Whoever closes reads up to the peer's own close frame. Next to a reader it would not wait for that, and data
        that come after the end break the line before our close frame has gone through a proxy.
        """
        return Reading(self)

    def begin_reading(self, block: asyncio.Timeout) -> None:
        """`block` is left when it is told that its time is over."""
        self._reading = block
        if self._ending is not None:
            block.reschedule(self._loop.time())

    def end_reading(self) -> None:
        """Whoever closes may read now."""
        self._reading = None
        if self._unread is not None and not self._unread.done():
            self._unread.set_result(None)

    async def closed(self) -> None:
        """Close, if nobody has, and wait for the end. Whatever happens, the transport is free afterwards."""
        self.end(CloseCode.NORMAL, "")
        try:
            if self._writer is not None:
                await asyncio.gather(self._writer, return_exceptions=True)
        finally:
            # A writer that is cancelled before it began frees nothing.
            self._free()

    def _begin_writing(self) -> None:
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_on(), name="socket-writer")

    async def _write_on(self) -> None:
        """Write until nothing waits; if the socket ends, close it then."""
        try:
            await self._catch_up()
            if self._ending is not None:
                if self._reading is not None:
                    self._unread = self._loop.create_future()
                    await self._unread
                if self._wire.full:
                    await self._wire.drained()
                await self._wire.close(*self._ending)
        except (ConnectionError, RuntimeError):
            self.end(CloseCode.NORMAL, "")
        finally:
            if self._ending is None:
                self._writer = None
            else:
                self._free()

    async def _catch_up(self) -> None:
        while self._items:
            if self._wire.full:
                await self._wire.drained()
                # While it waited the rest may have been dropped.
                continue
            item = self._items.pop(0)
            if isinstance(item, bytes):
                self._octets -= len(item)
            self._write(item)
            if not self._half_full():
                self._tell_roomy()

    def _free(self) -> None:
        """Nothing is written any more."""
        if self._force is not None:
            self._force.cancel()
        self._items.clear()
        self._wire.abort()

    def _schedule_ping(self) -> None:
        # Thousands of sockets that opened together must not all be pinged together.
        delay = self._limits.ping_every * random.uniform(0.8, 1.0)
        self._timer = self._timers.call_later(delay, self._ping)

    def _ping(self) -> None:
        self._say(_PING)
        if self._ending is None:
            self._timer = self._timers.call_later(self._limits.pong_within, self._check, self._loop.time())

    def _check(self, pinged_at: float) -> None:
        if self._heard_at >= pinged_at or self.deaf:
            self._schedule_ping()
            return
        _log.info("peer fell silent", connection_id=str(self.id))
        self.abort()
