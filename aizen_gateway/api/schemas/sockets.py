"""Payloads of socket messages: the bodies of REST, and what REST has in its paths and headers (contract section 6)."""

from __future__ import annotations

from marshmallow import fields

from ..credentials import IDEMPOTENCY_KEY
from . import customer as c
from . import device as d
from .fields import Patterned, Text, Uuid
from .loading import CustomerBody, DeviceBody

_LONGEST_TOKEN = 16 * 1024


class Ignored(DeviceBody):
    """Anything."""


class _OfCommand(DeviceBody):
    command_id = Text(64, 1, data_key="commandId", required=True)


class StatusMessage(d.HeartbeatBody):
    pass


class ClaimMessage(DeviceBody):
    limit = d.ClaimBody._declared_fields["limit"]
    visibility_timeout = d.ClaimBody._declared_fields["visibility_timeout"]


class ExtendMessage(d.ExtendBody, _OfCommand):
    pass


class ReleaseMessage(d.ReleaseBody, _OfCommand):
    pass


class ResultMessage(d.ResultBody, _OfCommand):
    pass


class AuthMessage(CustomerBody):
    token = Text(_LONGEST_TOKEN, 1, required=True)


class RoomMessage(CustomerBody):
    room = Text(100, 1, load_default=None)
    device_id = Text(64, 1, data_key="deviceId", load_default=None)


def _last_event_id(description: str) -> fields.String:
    return fields.String(
        data_key="lastEventId", allow_none=True, load_default=None, metadata={"description": description}
    )


class SubscribeMessage(RoomMessage):
    last_event_id = _last_event_id("The last event that was seen; what came after it is replayed.")


class UnsubscribeMessage(RoomMessage):
    last_event_id = _last_event_id("Ignored; here because `subscribe` has it.")


class JoinRoomsMessage(CustomerBody):
    pass


class SendCommandMessage(c.SubmitCommandBody):
    session_id = Uuid(data_key="sessionId", required=True)
    idempotency_key = Patterned(
        IDEMPOTENCY_KEY,
        "Must be 1 to 128 printable ASCII characters.",
        "order-4711",
        data_key="idempotencyKey",
        allow_none=True,
        load_default=None,
    )


class ApproveMessage(c.ApproveBody):
    session_id = Uuid(data_key="sessionId", required=True)
