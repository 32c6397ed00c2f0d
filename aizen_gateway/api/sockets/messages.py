"""Frames as messages: parsed as strictly as REST bodies, answered with the same codes (contract section 6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from marshmallow import Schema

from ...domain.errors import GatewayError, InvalidRequest
from ...domain.values import REQUEST_ID, Origin
from ...realtime.frames import frame
from ..body import parse_object
from ..schemas.loading import load

_REQUEST_ID_CHARACTERS = 128


class Malformed(Exception):
    """A frame that is no JSON object; `error` is what its sender is told."""

    def __init__(self, error: InvalidRequest) -> None:
        self.error = error
        super().__init__(error.message)


@dataclass(frozen=True, slots=True)
class Message:
    """A client's message. `request_id` is echoed on the answer when the client gave one; `payload` is as it came."""

    type: str
    request_id: str | None
    payload: Any

    def origin(self, socket: Origin) -> Origin:
        """Where the message came from: its own request id where that has the contract's form, else a new one."""
        given = self.request_id
        request_id = given if given is not None and REQUEST_ID.match(given) else str(uuid4())
        return Origin(request_id, socket.ip, socket.user_agent)


def parse_message(raw: bytes) -> Message:
    """Read a text frame. Raises `Malformed`; an object that is no message has the type ''."""
    try:
        data = parse_object(raw)
    except InvalidRequest as error:
        raise Malformed(error) from error
    kind, request_id, payload = data.get("type"), data.get("requestId"), data.get("payload")
    usable = isinstance(request_id, str) and len(request_id) <= _REQUEST_ID_CHARACTERS
    return Message(
        kind if isinstance(kind, str) else "",
        request_id if usable else None,
        {} if payload is None else payload,
    )


def error_frame(error: GatewayError, request_id: str | None) -> bytes:
    """`error` with the code of REST."""
    payload: dict[str, Any] = {"code": error.code, "message": error.message}
    details = dict(error.details)
    if error.retry_after is not None:
        details["retryAfter"] = error.retry_after
    if details:
        payload["details"] = details
    return frame("error", payload, request_id)


Work = Callable[[Any, Message, dict[str, Any], Origin], Awaitable[Mapping[str, Any] | None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of message: the schema of its payload, the type of its answer, what to do, and the answer's payload.

    `work` gets the socket, the message, the loaded payload and the origin; None as its answer sends nothing, because
    the work has answered by itself or no answer is due.
    """

    schema: Schema
    answer: str
    work: Work
    summary: str
    view: Schema | None = None


def understood(kinds: Mapping[str, Kind], message: Message) -> tuple[Kind, dict[str, Any]]:
    """The kind of a message and its loaded payload. Raises `InvalidRequest` that names what is wrong."""
    kind = kinds.get(message.type)
    if kind is None:
        raise InvalidRequest.field("type", "Not a type of message that is known here.")
    if not kind.answer:
        return kind, {}
    if not isinstance(message.payload, dict):
        raise InvalidRequest.field("payload", "Must be an object.")
    return kind, load(kind.schema, message.payload)
