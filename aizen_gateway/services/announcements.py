"""Changes as the events that portals see (contract section 6). Pure: what is told, to which rooms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from ..domain.clock import rfc3339_or_none
from ..domain.lifecycle import is_stopped
from ..domain.records import Command, Device, Session
from ..domain.values import CommandStatus, SessionStatus
from ..domain.views import command_view, device_status, session_view
from ..storage.postgres import Change

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Announcement:
    """An event with its rooms, the most specific first, and the subject whose versions order it.

    The room `customer` hears everything and is not among `rooms`.
    """

    subject: str
    rooms: tuple[str, ...]
    event: Event


def of(change: Change) -> Iterator[Announcement]:
    """The events of a change."""
    record = change.record
    if isinstance(record, Command):
        rooms = (f"session:{record.session_id}", f"device:{record.device_id}")
        payload = {"command": command_view(record)}
        yield Announcement(f"command:{record.id}", rooms, _event("command_update", payload, change))
        if change.change == "proposed" and record.status is CommandStatus.PENDING_APPROVAL:
            yield Announcement(f"asked:{record.id}", rooms, _event("approval_requested", payload, change))
    elif isinstance(record, Session):
        rooms = (f"session:{record.id}", f"device:{record.device_id}")
        payload = {"session": session_view(record)}
        yield Announcement(f"session:{record.id}", rooms, _event("session_update", payload, change))
        if change.change == "opened" and record.status is SessionStatus.PENDING_APPROVAL:
            yield Announcement(f"asked:{record.id}", rooms, _event("approval_requested", payload, change))
    elif change.change != "updated":
        # A new name or place is no change of status.
        own = f"device:{record.id}"
        yield Announcement(own, (own,), _event("device_status", _status(record), change))


def stop_notice(command: Command, change: Change) -> str | None:
    """What the device's socket is told when a command that it may be working on was canceled, as JSON.

    Nothing for one that `stopped` after it was told to.
    """
    if not is_stopped(command) or change.change != "updated":
        return None
    return orjson.dumps({"requestId": change.request_id, "payload": stop_payload(command)}).decode()


def stop_payload(command: Command) -> dict[str, Any]:
    """`command_canceled` for `command`."""
    return {"id": str(command.id), "reason": command.cancel_reason}


def _event(name: str, payload: Event, change: Change) -> Event:
    event: Event = {"type": name, "payload": payload}
    if change.request_id is not None:
        event["requestId"] = change.request_id
    return event


def _status(device: Device) -> Event:
    return {
        "deviceId": device.id,
        "status": device_status(device).value,
        "connection": device.connection,
        "lastSeen": rfc3339_or_none(device.last_seen_at),
    }
