"""Portals on sockets: all of them see how every command of their customer ended, or have stopped reading."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientWebSocketResponse

from tests.support.clients import CustomerClient
from tests.support.raw_socket import text_of

from .connection import away, connection, for_a_moment, freeze, keep_on, receive, tell
from .ledger import Ledger, Manner

_ROOM = "customer"


@dataclass(slots=True)
class Portal:
    """One portal in the room that hears everything. `succeeded` are the commands that it saw succeed."""

    client: CustomerClient
    customer_id: str
    manner: Manner
    urls: Sequence[str]
    ledger: Ledger
    last_event_id: str | None = None
    succeeded: set[str] = field(default_factory=set)
    events: int = 0
    there: asyncio.Event = field(default_factory=asyncio.Event)

    async def attend(self) -> None:
        """Be there until cancelled."""
        turns = {Manner.STEADY: self._steady, Manner.FLAPPING: self._flap, Manner.FROZEN: self._freeze}
        await keep_on(turns[self.manner], self.ledger, f"{self.manner} portal")

    async def _steady(self) -> None:
        async with self._connection() as socket:
            await self._listen(socket)

    async def _flap(self) -> None:
        async with self._connection() as socket:
            await for_a_moment(socket, self._listen(socket))
        await away()

    async def _freeze(self) -> None:
        await freeze(self._url(), self.client.headers, self.there, text_of("subscribe", {"room": _ROOM}))

    def _url(self) -> str:
        return f"{random.choice(self.urls)}/ws/customer"

    def _connection(self) -> AbstractAsyncContextManager[ClientWebSocketResponse]:
        return connection(self.client.http, self._url(), self.client.headers)

    async def _listen(self, socket: ClientWebSocketResponse) -> None:
        wish = {"room": _ROOM} | ({"lastEventId": self.last_event_id} if self.last_event_id else {})
        await tell(socket, "subscribe", wish)
        while True:
            frame = await receive(socket)
            if frame["type"] == "subscribed":
                self._subscribed(frame["payload"])
            elif "eventId" in frame:
                self._heard(frame)
            elif frame["type"] == "error":
                self.ledger.failures.append(f"{self.manner} portal: told {frame['payload']['code']}")

    def _subscribed(self, answer: dict[str, Any]) -> None:
        if not answer["complete"]:
            self.ledger.failures.append(f"{self.manner} portal: events were lost")
        if self.last_event_id is None:
            self.last_event_id = answer["lastEventId"]
        self.there.set()

    def _heard(self, frame: dict[str, Any]) -> None:
        if self.last_event_id is not None and _order(frame["eventId"]) <= _order(self.last_event_id):
            self.ledger.failures.append(f"{self.manner} portal: an event came again or out of order")
        self.last_event_id = frame["eventId"]
        self.events += 1
        if frame["type"] == "command_update" and frame["payload"]["command"]["status"] == "succeeded":
            self.succeeded.add(frame["payload"]["command"]["id"])


def _order(event_id: str) -> tuple[int, ...]:
    """Clients take ids as they are; this one looks inside, to see that they rise."""
    return tuple(map(int, event_id.split("-")))
