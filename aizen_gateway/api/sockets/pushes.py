"""What the gateway says on a socket without being asked, and what any question may get: the rest of the two languages.

The answers proper are in the tables of questions, beside the work that makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from marshmallow import Schema

from ..schemas import customer_views as cv
from ..schemas import device_views as dv
from ..schemas import socket_views as v


@dataclass(frozen=True, slots=True)
class Push:
    """A type of message of the gateway: its payload, and whether it is an event with `eventId` and `room`."""

    view: Schema
    summary: str
    event: bool = False


DEVICE_PUSHES: Mapping[str, Push] = {
    "connected": Push(v.DeviceGreeting(), "The first message: the socket is the device's one now"),
    "command": Push(dv.Claimed(), "A command, leased to the device"),
    "command_canceled": Push(v.CommandCanceled(), "A command that the device may be working on was canceled"),
    "config_update": Push(
        v.ConfigUpdate(),
        "A setting changed while the socket was open; this version changes none and sends no such message",
    ),
}

CUSTOMER_PUSHES: Mapping[str, Push] = {
    "connected": Push(v.PortalGreeting(), "The portal is known, and may subscribe"),
    "auth_expiring": Push(v.AuthExpiring(), "The token ends within a minute: renew it with `auth`"),
    "device_status": Push(v.DeviceStatusEvent(), "A device came, went, or changed", event=True),
    "command_update": Push(cv.CommandAnswer(), "A command came into being or changed", event=True),
    "session_update": Push(cv.SessionAnswer(), "A session came into being or changed", event=True),
    "approval_requested": Push(v.ApprovalRequested(), "A command or a session waits for a person", event=True),
}

# On either socket, besides what its table says.
PONG = Push(v.Pong(), "The answer to `ping`")
ERROR = Push(v.ErrorPayload(), "A refusal or a failure, with the codes of REST")
