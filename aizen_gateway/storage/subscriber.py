"""One connection that hears channels: what came since the last look is given in one piece.

The library's own reader is a coroutine, a parser and a dictionary for each message and each confirmation, and keeps
books on every channel; thousands of devices that come back at once are as many confirmations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import hiredis
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

# What happened ("message" or "subscribe"), on which channel, and the message.
Message = tuple[str, str, str]

# Messages that nobody has taken; past it the server is read no further, and its own bound holds.
_MOST_UNREAD = 10_000
# Messages given at a time; between two such pieces others have their turn.
MOST_AT_ONCE = 256


class RedisSubscriber(asyncio.Protocol):
    """Connects with the first `subscribe`, and never again: what is lost is for its owner to see and to mend."""

    def __init__(self, connect: Callable[[], Awaitable[asyncio.StreamWriter]]) -> None:
        """`connect` makes a connection, which is ours from then on."""
        self._connect = connect
        # Kept for as long as its transport is used, which ends with it.
        self._writer: asyncio.StreamWriter | None = None
        self._transport: asyncio.Transport | None = None
        # What somebody else publishes may be no text; it is no reason to hear nothing more.
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, encoding="utf-8", errors="replace"
        )
        self._unread: list[Message] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._paused = False
        self.heard_at = asyncio.get_running_loop().time()

    async def subscribe(self, *channels: str) -> None:
        """Join channels; each is confirmed by a message. Raises `RedisError`, `OSError`."""
        if self._transport is None and self._error is None:
            self._writer = await self._connect()
            self._transport = cast("asyncio.Transport", self._writer.transport)
            self._transport.set_protocol(self)
            if self._error is not None or self._transport.is_closing():
                # Closed meanwhile, by us or by the server.
                self._end(RedisConnectionError("Redis closed the connection."))
        self._send("SUBSCRIBE", *channels)

    async def unsubscribe(self, *channels: str) -> None:
        """Leave channels. Raises as `subscribe`."""
        self._send("UNSUBSCRIBE", *channels)

    def ping(self) -> None:
        """Have the server say something: `heard_at` tells when it did. Raises as `subscribe`."""
        self._send("PING")

    def _send(self, *command: str) -> None:
        if self._error is not None:
            raise self._error
        assert self._transport is not None
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]

    async def messages(self) -> Sequence[Message]:
        """What has come since the last time, in its order; waits for something to come. Raises `RedisError`."""
        if self._unread:
            await asyncio.sleep(0)
        while not self._unread:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken, self._unread = self._unread[:MOST_AT_ONCE], self._unread[MOST_AT_ONCE:]
        if self._paused and not self._unread and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return taken

    def data_received(self, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        self._reader.feed(data)
        try:
            while (said := self._reader.gets()) is not False:
                if isinstance(said, Exception):
                    raise said
                if isinstance(said, list) and said[0] in ("message", "subscribe"):
                    self._unread.append((said[0], said[1], said[2]))
        except Exception as error:
            self._end(error)
            return
        if len(self._unread) >= _MOST_UNREAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._unread:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(RedisConnectionError("Redis closed the connection."))

    def _end(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def close(self) -> None:
        """Hear no more; whoever waits for messages gets an error."""
        self._end(RedisConnectionError("The connection has been closed."))

    async def aclose(self) -> None:
        """As `close`: there is nothing to wait for."""
        self.close()
