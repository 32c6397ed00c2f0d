"""One live socket as the rest of the gateway sees it: a bounded outbox, one writer, a heart that is listened to.

Nobody but the writer sends, and nobody else waits for a client's network: `send` never blocks, and a peer that does
not read is closed, by force when it must be.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol
from uuid import UUID, uuid4

import structlog

_log = structlog.get_logger(__name__)


class CloseCode(IntEnum):
    """Why the gateway closes a socket (contract section 6)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    UNSUPPORTED = 1003
    INVALID_DATA = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    SUPERSEDED = 4409
    TOO_MANY_MESSAGES = 4429


# What a client is to make of each.
CLOSE_MEANINGS: Mapping[CloseCode, str] = {
    CloseCode.NORMAL: "The client has closed, and this is the answer.",
    CloseCode.GOING_AWAY: "The instance goes away (reason `draining`): connect again, after a random moment.",
    CloseCode.UNSUPPORTED: "A binary frame came: only text frames are understood.",
    CloseCode.INVALID_DATA: "A frame that is not UTF-8, or the third one that is no JSON object.",
    CloseCode.POLICY: "The socket may not be had like this; the reason is an error code.",
    CloseCode.TOO_BIG: "A frame of more than 256 KiB came.",
    CloseCode.INTERNAL_ERROR: "The gateway failed: connect again, after a random moment.",
    CloseCode.TRY_AGAIN_LATER: "The client reads too slowly, or what the gateway needs is away: connect again.",
    CloseCode.UNAUTHENTICATED: "The token is missing, not valid, expired, rotated or logged out: get another one.",
    CloseCode.FORBIDDEN: "The device is suspended or deleted, or the user belongs to no customer any more.",
    CloseCode.SUPERSEDED: "A newer connection of the same device is open: do not connect again at once.",
    CloseCode.TOO_MANY_MESSAGES: "Too many messages within a minute: send less.",
}


class Wire(Protocol):
    """The transport of a socket. `send` and `close` may wait for the peer; `abort` never does."""

    async def send(self, frame: bytes) -> None: ...

    async def ping(self) -> None: ...

    async def pong(self, data: bytes) -> None: ...

    async def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of a socket; times are seconds. A portal that does not read has `frames` and `octets` (section 6)."""

    frames: int = 256
    octets: int = 1024 * 1024
    ping_every: float = 30.0
    pong_within: float = 10.0
    close_within: float = 3.0


class _Ping:
    """Queued like a frame, for the writer alone writes."""

    __slots__ = ()


_PING = _Ping()
_Item = bytes | _Ping | tuple[str, bytes]


class Connection:
    """One socket. The owner runs `run` in a task of its own and calls `heard` for whatever the peer sends."""

    def __init__(self, wire: Wire, limits: ConnectionLimits) -> None:
        self.id: UUID = uuid4()
        self.request_id: str | None = None
        self._wire = wire
        self._limits = limits
        self._items: deque[_Item] = deque()
        self._octets = 0
        self._ready = asyncio.Event()
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._ending: tuple[int, str] | None = None
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._force: asyncio.TimerHandle | None = None
        self._on_end: list[Callable[[], object]] = []
        # Set while we do not read, because we are behind with what the peer has said: its silence means nothing.
        self.deaf = False

    @property
    def ending(self) -> bool:
        """Whether the socket is closed or about to be: what is sent now goes nowhere."""
        return self._ending is not None

    @property
    def close_code(self) -> int | None:
        """With what code the gateway ends it, None while it lives."""
        return self._ending[0] if self._ending else None

    def send(self, frame: bytes) -> None:
        """Queue one text frame. Past the bound the socket is closed 1013, and what waited is dropped."""
        if self._ending is not None:
            return
        if len(self._items) >= self._limits.frames or self._octets + len(frame) > self._limits.octets:
            self._items.clear()
            self._octets = 0
            _log.info("slow consumer", connection_id=str(self.id))
            self.end(CloseCode.TRY_AGAIN_LATER, "slow consumer")
            return
        self._items.append(frame)
        self._octets += len(frame)
        self._ready.set()

    async def roomy(self) -> None:
        """Wait until the outbox is at most half full, or the socket ends: for replays, which must not overflow it."""
        while self._ending is None and self._half_full():
            self._roomy.clear()
            await self._roomy.wait()

    def _half_full(self) -> bool:
        return len(self._items) * 2 >= self._limits.frames or self._octets * 2 >= self._limits.octets

    def end(self, code: int, reason: str) -> None:
        """Close after what is queued has been sent, by force if that takes too long. The first reason counts."""
        if self._ending is not None:
            return
        self._ending = (code, reason)
        self._ready.set()
        self._roomy.set()
        self._force = self._loop.call_later(self._limits.close_within, self._wire.abort)
        for callback in self._on_end:
            callback()

    def when_ending(self, callback: Callable[[], object]) -> None:
        """Have `callback` called at the moment the socket begins to end, whoever ends it; now if it has begun."""
        self._on_end.append(callback)
        if self._ending is not None:
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
        if len(self._items) < self._limits.frames:
            self._items.append(("pong", data))
            self._ready.set()

    async def run(self) -> None:
        """Write until the end, then close. Whatever happens, the transport is free afterwards."""
        self._schedule_ping()
        try:
            await self._write()
            assert self._ending is not None
            await self._wire.close(*self._ending)
        except (ConnectionError, RuntimeError):
            # The peer went away; the reader notices it as well.
            self.end(CloseCode.NORMAL, "")
        finally:
            for timer in (self._timer, self._force):
                if timer is not None:
                    timer.cancel()
            self._items.clear()
            self._wire.abort()

    async def _write(self) -> None:
        while True:
            while self._items:
                item = self._items.popleft()
                if isinstance(item, bytes):
                    self._octets -= len(item)
                    await self._wire.send(item)
                    if not self._roomy.is_set() and not self._half_full():
                        self._roomy.set()
                elif isinstance(item, _Ping):
                    await self._wire.ping()
                else:
                    await self._wire.pong(item[1])
            if self._ending is not None:
                return
            self._ready.clear()
            await self._ready.wait()

    def _schedule_ping(self) -> None:
        # Thousands of sockets that opened together must not all be pinged together.
        delay = self._limits.ping_every * random.uniform(0.8, 1.0)
        self._timer = self._loop.call_later(delay, self._ping)

    def _ping(self) -> None:
        self._items.append(_PING)
        self._ready.set()
        self._timer = self._loop.call_later(self._limits.pong_within, self._check, self._loop.time())

    def _check(self, pinged_at: float) -> None:
        if self._heard_at >= pinged_at or self.deaf:
            self._schedule_ping()
            return
        _log.info("peer fell silent", connection_id=str(self.id))
        self.abort()
