"""The feeds of the customers that have sockets at this instance: begun with the first socket, ended with the last."""

from __future__ import annotations

from uuid import UUID

from ..storage import keys
from ..storage.events import EventStream
from .bus import Bus
from .feed import Feed
from .subscribers import Subscriber


class Feeds:
    """The feeds of the customers that have sockets here."""

    def __init__(self, bus: Bus, stream: EventStream) -> None:
        self._bus = bus
        self._stream = stream
        self._feeds: dict[UUID, Feed] = {}

    async def follow(self, customer_id: UUID, subscriber: Subscriber) -> Feed:
        """Take part in a customer's feed until `leave`, which must follow. Raises `Unavailable`."""
        channel = keys.customer_channel(customer_id)
        feed = self._feeds.get(customer_id)
        if feed is None:
            feed = self._feeds[customer_id] = Feed(customer_id, self._stream)
            self._bus.attach(channel, feed)
        feed.subscribers.add(subscriber)
        await self._bus.confirmed(channel)
        await feed.begin()
        return feed

    async def leave(self, customer_id: UUID, subscriber: Subscriber) -> None:
        """Take part no more."""
        feed = self._feeds.get(customer_id)
        if feed is None:
            return
        feed.subscribers.discard(subscriber)
        if not feed.subscribers:
            del self._feeds[customer_id]
            self._bus.detach(keys.customer_channel(customer_id), feed)
            await feed.stop()
