"""One connection to a Redis server for all callers of an instance: what they ask within a tick goes out in one write.

A pool has each call take a connection, wait for it, and read its own answer; that cost most of a call. Here answers
come in the order of the questions, which is all that the server promises and all that is needed: no command of the
gateway blocks. The library makes the connection (TLS, passwords, sentinels); from then on the wire is ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import hiredis
from redis._parsers.base import BaseParser
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .subscriber import RedisSubscriber

Command = tuple[str | int, ...]

# Calls under way, and octets not yet taken by the server: more than any load that it could still serve.
_MOST_CALLS = 20_000
_MOST_UNSENT = 16 * 1024 * 1024
_LOOKS_A_TIMEOUT = 4


class Link:
    """The commands of one server. Connects when first used, and again after every loss."""

    def __init__(self, redis: Redis, timeout: float, timed: Callable[[float], None]) -> None:
        """`redis` says how to connect; `timeout` is seconds for a connection and for an answer.

        `timed` is told the seconds from each write to the last of its answers.
        """
        self._redis = redis
        self._timeout = timeout
        self._wire: _Wire | None = None
        self._opening: asyncio.Task[_Wire] | None = None
        self._timed = timed
        self._readers: dict[Any, Any] = dict(redis.response_callbacks.items())
        self._closed = False

    def run_script(self, command: Command) -> Awaitable[Any]:
        """Run one `EVALSHA` or `EVAL`, or whatever is answered as the server says it; never twice.

        Raises the library's errors, at once or when awaited.
        """
        return self.open_call(command) or self.execute_command(*command)

    def open_call(self, command: Command) -> asyncio.Future[Any] | None:
        """Send a command now, to be answered as the server says it; None when there is no connection yet.

        Raises the library's errors.
        """
        wire = self._open_wire
        return None if wire is None else wire.call(command)

    async def execute_command(self, *command: str | int) -> Any:
        """As `run_script`, any command, whose answer is given as the library gives it."""
        answer = await (self._open_wire or await self._connected()).call(command)
        read = self._readers.get(command[0])
        return answer if read is None else read(answer)

    async def execute_after(self, first: Command, command: Command) -> Any:
        """Run two commands with nothing between them; return the answer to the second. Raises as `execute_command`."""
        wire = self._open_wire or await self._connected()
        before, answer = wire.call(first), wire.call(command)
        await asyncio.wait((before, answer))
        before.exception()
        return await answer

    @property
    def _open_wire(self) -> _Wire | None:
        return None if self._wire is None or self._wire.lost else self._wire

    def subscriber(self) -> RedisSubscriber:
        """A subscriber, on a connection of its own."""
        return RedisSubscriber(self._connect)

    @property
    def calls(self) -> int:
        """How many calls are under way."""
        return 0 if self._wire is None else self._wire.calls

    @property
    def master_address(self) -> object:
        """Where sentinels last said that the master is; None without sentinels."""
        return getattr(self._redis.connection_pool, "master_address", None)

    async def aclose(self) -> None:
        """Close the connections; callers that wait get an error."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._wire is not None:
            self._wire.close()
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    async def _connected(self) -> _Wire:
        """The wire, when it is there in time; the attempt goes on for others.

        An attempt that was under way already may fail for what was before this call: then there is another one.
        """
        until = asyncio.get_running_loop().time() + self._timeout
        while not self._closed:
            new = self._opening is None or self._opening.done()
            if self._opening is None or new:
                self._opening = asyncio.create_task(self._open(), name="redis-connect")
                # Whoever still waits is told; when nobody does, nobody has to be.
                self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
            opening = self._opening
            left = until - asyncio.get_running_loop().time()
            if left <= 0 or not (await asyncio.wait((opening,), timeout=left))[0]:
                raise RedisTimeoutError("Redis did not take a connection in time.")
            if not opening.cancelled() and (new or opening.exception() is None):
                return opening.result()
        raise RedisConnectionError("The connection has been closed.")

    async def _open(self) -> _Wire:
        if self._wire is not None:
            self._wire.close()
        self._wire = _Wire(await self._connect(), self._timeout, self._timed)
        return self._wire

    async def _connect(self) -> asyncio.StreamWriter:
        """A new connection, made by the library, which then forgets it: to close it is the caller's."""
        connection = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(2 * self._timeout):
                await connection.connect()
        except BaseException as error:
            await connection.disconnect(nowait=True)
            # The event loop's way to say that the line was reset while the library was still greeting the server.
            if isinstance(error, RuntimeError):
                raise RedisConnectionError("Redis closed the connection.") from error
            raise
        writer: asyncio.StreamWriter = connection._writer
        connection._reader = connection._writer = None
        return writer


class _Wire(asyncio.Protocol):
    """The life of one connection."""

    def __init__(self, writer: asyncio.StreamWriter, timeout: float, timed: Callable[[float], None]) -> None:
        # Kept for as long as its transport is used, which ends with it.
        self._writer = writer
        self._timed = timed
        self._transport = cast("asyncio.Transport", writer.transport)
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, encoding="utf-8", errors="strict"
        )
        self._calls: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._full = False
        # Calls that were sent, and the moments at which the last of so many was.
        self._sent = self._answered = 0
        self._writes: deque[tuple[int, float]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self.lost = False
        self._transport.set_write_buffer_limits(high=_MOST_UNSENT)
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            # The news of its end went to the library.
            self.lost = True

    def call(self, command: Command) -> asyncio.Future[Any]:
        """Send a command with all others of this tick. Raises when it cannot be sent."""
        if self.lost or self._full or len(self._calls) >= _MOST_CALLS:
            raise RedisConnectionError("Redis is away, or too many calls wait for it.")
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(packed)
        answer = self._loop.create_future()
        self._calls.append(answer)
        return answer

    @property
    def calls(self) -> int:
        return len(self._calls)

    def _flush(self) -> None:
        if self.lost or self._transport.is_closing():
            # Whoever waits is told when the connection is lost.
            self._unsent.clear()
            return
        self._sent += len(self._unsent)
        self._writes.append((self._sent, self._loop.time()))
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout / _LOOKS_A_TIMEOUT, self._look)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        calls, stale = self._calls, False
        try:
            while (answer := self._reader.gets()) is not False:
                self._answered += 1
                call = calls.popleft()
                if call.done():
                    continue
                if isinstance(answer, Exception):
                    _fail(call, answer)
                    stale = stale or isinstance(answer, ReadOnlyError)
                else:
                    call.set_result(answer)
        except (InvalidResponse, UnicodeDecodeError, IndexError):
            # Nobody knows any more which answer is whose.
            stale = True
        while self._writes and self._writes[0][0] <= self._answered:
            self._timed(self._loop.time() - self._writes.popleft()[1])
        if stale:
            # A master that has become a replica is looked for anew.
            self._transport.abort()

    def _look(self) -> None:
        """Give up a server that owes an answer for too long; look no more when it owes none."""
        self._watch = None
        if not self._writes or self.lost:
            return
        if self._loop.time() - self._writes[0][1] > self._timeout:
            self._end(RedisTimeoutError("Redis did not answer in time."))
            self._transport.abort()
        else:
            self._watch = self._loop.call_later(self._timeout / _LOOKS_A_TIMEOUT, self._look)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def connection_lost(self, error: Exception | None) -> None:
        self._end(RedisConnectionError("Redis closed the connection."))

    def _end(self, error: Exception) -> None:
        self.lost = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._calls:
            call = self._calls.popleft()
            if not call.done():
                _fail(call, error)

    def close(self) -> None:
        """End it; callers that wait get an error."""
        self._end(RedisConnectionError("The connection has been closed."))
        self._transport.abort()


def _fail(call: asyncio.Future[Any], error: Exception) -> None:
    call.set_exception(error)
    # Whoever waits is told; when nobody does any more, it is no news.
    call.exception()
