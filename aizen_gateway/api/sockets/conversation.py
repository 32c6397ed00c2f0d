"""The life of an upgraded socket: one reader, one worker, one writer, all ended together whatever happens.

The reader never waits for a service: frames go to the worker through a bounded queue, so that pings and pongs are seen
while a service works, and a client that sends faster than it is served is slowed by TCP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import WSMessage, WSMsgType

from ...domain.errors import GatewayError, RateLimited, Unauthenticated
from ...logs import fresh_context
from ...realtime.allowance import Allowance
from ...realtime.connection import CloseCode, Connection
from ...realtime.frames import frame
from ...realtime.tasks import end, whole
from .messages import Malformed, Message, error_frame, parse_message
from .wire import WebSocket

_INBOX = 32
_MOST_MALFORMED = 3
# Seconds within which a part of a socket that was cancelled has cleaned up.
_CLEANED_UP = 10.0

Answer = Callable[[Message], Awaitable[None]]

_log = structlog.get_logger(__name__)


class Internal(GatewayError):
    """A failure nobody foresaw, as the client is told of it."""


class Conversation:
    """Reads a socket's frames and has them answered in order.

    Unless `greeted`, no message is taken before `greeted` is set: the first frame of all is to be the greeting.
    """

    def __init__(self, socket: WebSocket, connection: Connection, rate: int, *, greeted: bool = True) -> None:
        self._socket = socket
        self.connection = connection
        self._allowance = Allowance(rate)
        # Apart, so that no ping costs a message.
        self._pings = Allowance(rate)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(_INBOX)
        self._malformed = 0
        self.greeted = asyncio.Event()
        if greeted:
            self.greeted.set()
        self.on_text: Callable[[], None] = lambda: None

    async def read(self) -> None:
        """Read until the socket ends, from whichever side."""
        while not self.connection.ending:
            incoming = await self._socket.receive()
            self.connection.heard()
            if not await self._take(incoming):
                return

    async def _take(self, incoming: WSMessage) -> bool:
        """Handle one frame; return whether to go on reading."""
        connection = self.connection
        match incoming.type:
            case WSMsgType.TEXT:
                self.on_text()
                await self.greeted.wait()
                await self._take_text(incoming.data)
            case WSMsgType.PING | WSMsgType.PONG:
                if not self._pings.take():
                    connection.end(CloseCode.TOO_MANY_MESSAGES, "too many messages")
                elif incoming.type is WSMsgType.PING:
                    connection.pinged(bytes(incoming.data))
            case WSMsgType.BINARY:
                connection.end(CloseCode.UNSUPPORTED, "text frames only")
            case WSMsgType.CLOSE:
                connection.end(CloseCode.NORMAL, "")
                return False
            case _:
                # Too big, against the protocol, or gone: aiohttp has closed it with the code that fits.
                failed = incoming.type is WSMsgType.ERROR
                connection.end((failed and self._socket.close_code) or CloseCode.NORMAL, "")
                return False
        return True

    async def _take_text(self, raw: bytes) -> None:
        if not self._allowance.take():
            self.connection.end(CloseCode.TOO_MANY_MESSAGES, "too many messages")
            return
        try:
            raw.decode("utf-8")
            message = parse_message(raw)
        except UnicodeDecodeError:
            self.connection.end(CloseCode.INVALID_DATA, "not UTF-8")
        except Malformed as malformed:
            self._malformed += 1
            self.connection.send(error_frame(malformed.error, None))
            if self._malformed >= _MOST_MALFORMED:
                self.connection.end(CloseCode.INVALID_DATA, "malformed JSON")
        else:
            if message.type == "ping":
                self.connection.send(frame("pong", {}, message.request_id))
            else:
                self.connection.deaf = self._inbox.full()
                await self._inbox.put(message)
                self.connection.deaf = False
                self.connection.heard()

    async def together(self, answer: Answer, *others: Awaitable[None]) -> None:
        """Answer messages beside `others`, until one of them ends or the socket does."""
        tasks = [asyncio.ensure_future(self.work(answer)), *map(asyncio.ensure_future, others)]
        # It may have ended before: a cancellation that came while the socket was being opened can get lost.
        self.connection.when_ending(tasks[0].cancel)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
        finally:
            await end(*tasks, again=_CLEANED_UP)
            await self._finish(answer)

    async def _finish(self, answer: Answer) -> None:
        """Do what the peer had said before it left: a result that came with the close frame is a result."""
        while self.connection.close_code == CloseCode.NORMAL and not self._inbox.empty():
            message = self._inbox.get_nowait()
            with fresh_context(request_id=message.request_id):
                await whole(self._answer(message, answer))

    async def next(self) -> Message:
        """The next message of the client."""
        return await self._inbox.get()

    async def work(self, answer: Answer) -> None:
        """Answer the messages one after another, for ever."""
        while True:
            message = await self._inbox.get()
            with fresh_context(request_id=message.request_id):
                await whole(self._answer(message, answer))

    async def _answer(self, message: Message, answer: Answer) -> None:
        try:
            await answer(message)
        except Unauthenticated as error:
            self.connection.send(error_frame(error, message.request_id))
            self.connection.end(CloseCode.UNAUTHENTICATED, "session ended")
        except RateLimited as error:
            self.connection.send(error_frame(error, message.request_id))
        except GatewayError as error:
            self.connection.send(error_frame(error, message.request_id))
        except Exception:
            _log.exception("message_failed", type=message.type[:64], connection_id=str(self.connection.id))
            self.connection.send(error_frame(Internal("The gateway failed."), message.request_id))


async def converse(conversation: Conversation, *others: Awaitable[None]) -> None:
    """Run reader, writer and `others` until the socket has ended; then end them all.

    Returns when the writer has closed the socket, so that nothing of it is left.
    """
    connection = conversation.connection
    reader = asyncio.ensure_future(conversation.read())
    # Whoever closes reads up to the peer's own close frame. Next to a reader it would not wait for that, and data that
    # come after the end break the line before our close frame has gone through a proxy.
    connection.when_ending(reader.cancel)
    rest = [asyncio.ensure_future(other) for other in others]
    writer = asyncio.ensure_future(connection.run())
    try:
        await asyncio.wait({reader, writer, *rest}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(*rest, again=_CLEANED_UP)
        for task in rest:
            if not task.cancelled() and (failure := task.exception()) is not None:
                _log.error("socket part failed", exc_info=failure, connection_id=str(connection.id))
                connection.end(CloseCode.INTERNAL_ERROR, "internal error")
        connection.end(CloseCode.NORMAL, "")
        await asyncio.gather(writer, return_exceptions=True)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
