"""A portal socket in the feed of its customer: the rooms it is in, and what it has yet to get of the past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..storage.events import BEGINNING, Order, StoredEvent
from .connection import Connection


@dataclass(frozen=True, slots=True)
class Past:
    """What a subscription found: how many events follow from the past, and whether none is missing."""

    last_event_id: str | None
    replayed: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Replay:
    """What a socket has yet to get: after `start` and up to `until` the events of `room` alone, then of all its rooms.

    `first` are the first of these events, None when they have to be read.
    """

    room: str
    start: Order
    until: Order
    first: Sequence[StoredEvent] | None


@dataclass(eq=False, slots=True)
class Subscriber:
    """A portal socket with the rooms it is in, each with the place after which it has brought all its events.

    While `replay` is there live events pass it by. Up to `reached` it has got what it gets.
    """

    connection: Connection
    rooms: dict[str, Order] = field(default_factory=dict)
    reached: Order = BEGINNING
    replay: Replay | None = None

    def offer(self, event: StoredEvent) -> None:
        """Send a live event, once, if it is for a room that the socket is in."""
        if self.replay is None and event.order > self.reached and self.hears(event):
            self.connection.send(event.frame)

    def hears(self, event: StoredEvent, besides: str = "") -> bool:
        """Whether a room other than `besides` brings this event to the socket, or has done so."""
        rooms = self.rooms
        return any(name in rooms and event.order > rooms[name] for name in event.rooms if name != besides)

    def missed(self, event: StoredEvent, room: str) -> bool:
        """Whether an event of the past is for `room`, and no other room has brought it."""
        return room in event.rooms and not self.hears(event, besides=room)
