"""The life of an upgraded socket: its handler reads, and has a worker only while there is something to answer.

The reader never waits for a service: frames go to the worker through a bounded queue, so that pings and pongs are seen
while a service works, and a client that sends faster than it is served is slowed by TCP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import WSMessage, WSMsgType

from ...domain.errors import GatewayError, NoCustomer, RateLimited, Unauthenticated, Unavailable
from ...logs import fresh_context
from ...realtime.allowance import Allowance
from ...realtime.close_codes import CloseCode
from ...realtime.connection import Connection
from ...realtime.frames import frame
from .messages import Malformed, Message, error_frame, parse_message
from .wire import WebSocket

_INBOX = 32
_MOST_MALFORMED = 3

Answer = Callable[[Message], Awaitable[None]]

_log = structlog.get_logger(__name__)


class Internal(GatewayError):
    """A failure nobody foresaw, as the client is told of it."""


class Conversation:
    """Reads a socket's frames and has them answered in order."""

    __slots__ = (
        "_allowance",
        "_answer",
        "_inbox",
        "_malformed",
        "_pings",
        "_roomy",
        "_socket",
        "_worker",
        "connection",
        "on_text",
    )

    def __init__(self, socket: WebSocket, connection: Connection, rate: int) -> None:
        self._socket = socket
        self.connection = connection
        self._allowance = Allowance(rate)
        # Apart, so that no ping costs a message.
        self._pings = Allowance(rate)
        # A list, for it is nearly always empty, and then small.
        self._inbox: list[Message] = []
        self._roomy: asyncio.Event | None = None
        self._worker: asyncio.Task[None] | None = None
        self._answer: Answer | None = None
        self._malformed = 0
        self.on_text: Callable[[], None] | None = None

    async def first(self) -> Message | None:
        """The first message of the client; None when the socket ends without one."""
        async with self.connection.reading():
            while not (self._inbox or self.connection.ending) and await self._take(await self._socket.receive()):
                pass
        return self._inbox.pop(0) if self._inbox else None

    async def hold(self, answer: Answer) -> None:
        """Read until the socket ends, from whichever side, and have the messages answered one after another.

        Returns when the last answer has been given.
        """
        self._answer = answer
        try:
            async with self.connection.reading():
                while not self.connection.ending and await self._take(await self._socket.receive()):
                    pass
        finally:
            # What is being answered is answered to its end, whoever cancels this.
            if self._worker is not None:
                await asyncio.wait({self._worker})

    async def _take(self, incoming: WSMessage) -> bool:
        """Handle one frame; return whether to go on reading."""
        connection = self.connection
        connection.heard()
        match incoming.type:
            case WSMsgType.TEXT:
                if self.on_text is not None:
                    self.on_text()
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
                if len(self._inbox) >= _INBOX:
                    await self._room()
                self._inbox.append(message)
                self._begin_working()

    async def _room(self) -> None:
        """Wait until the inbox has room: meanwhile nothing is read."""
        self.connection.deaf = True
        self._roomy = asyncio.Event()
        await self._roomy.wait()
        self.connection.deaf = False
        self.connection.heard()

    def _begin_working(self) -> None:
        if self._worker is None and self._answer is not None:
            self._worker = asyncio.create_task(self._work(self._answer), name="socket-worker")

    async def _work(self, answer: Answer) -> None:
        """Answer what is there. There is a worker only while there is something to answer.

        Of a socket that has ended only what the peer said before it left by itself is answered: a result that came
        with the close frame is a result.
        """
        connection = self.connection
        try:
            while self._inbox and (connection.close_code in (None, CloseCode.NORMAL)):
                message = self._inbox.pop(0)
                if self._roomy is not None:
                    self._roomy.set()
                    self._roomy = None
                with fresh_context(request_id=message.request_id):
                    await self._do(message, answer)
        finally:
            self._worker = None

    async def _do(self, message: Message, answer: Answer) -> None:
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


class Closing:
    """A block in which a socket is open. At its end the socket is closed, and nothing is left of it.

    What the services refuse ends here: it closes the socket with the code that tells why.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def __aenter__(self) -> None:
        return

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        connection = self._connection
        if isinstance(error, Exception):
            if not isinstance(error, GatewayError):
                _log.error("socket failed", exc_info=error, connection_id=str(connection.id))
            connection.end(*_reason(error))
        await connection.closed()
        return isinstance(error, Exception)


def _reason(error: Exception) -> tuple[CloseCode, str]:
    match error:
        case Unauthenticated():
            return CloseCode.UNAUTHENTICATED, "not authenticated"
        case NoCustomer():
            return CloseCode.FORBIDDEN, "no customer"
        case Unavailable():
            return CloseCode.TRY_AGAIN_LATER, "unavailable"
        case GatewayError():
            return CloseCode.POLICY, error.code
    return CloseCode.INTERNAL_ERROR, "internal error"
