"""Channels of a Redis Cluster, heard where they are published: as reliable as those of a single Redis.

Nodes pass messages on to each other, and any node would do to hear them all; but what is lost between two nodes is lost
without a word. So each channel is joined at the node that holds its slot, at which scripts publish: one connection a
node. Where that node is away, another one must do. A channel that had to be joined again is confirmed again, which
tells whoever listens that there may be a gap.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from .cluster import Address, ClusterClient
from .subscriber import MOST_AT_ONCE, Message, RedisSubscriber

# Seconds between two looks at lines and places, and after which a line that does not answer is given up.
_LOOK_EVERY = 2.0
_SILENCE = 6.0
# Messages; past it the connections are read no further, and the server's own bound holds.
_MOST_UNREAD = 10_000


@dataclass(eq=False, slots=True)
class _Line:
    """The subscriber connection of one node."""

    address: Address
    subscriber: RedisSubscriber
    read: bool = False


class ClusterSubscriber:
    """What `RedisSubscriber` is to a single Redis."""

    def __init__(self, cluster: ClusterClient) -> None:
        self._cluster = cluster
        self._lines: dict[Address, _Line] = {}
        # Where each channel is joined; None while it must be joined again.
        self._places: dict[str, Address | None] = {}
        self._away: set[Address] = set()
        self._unread: asyncio.Queue[Message | Exception] = asyncio.Queue(_MOST_UNREAD)
        # The end, to be told after what came before it.
        self._error: Exception | None = None
        self._writing = asyncio.Lock()
        self._broken = asyncio.Event()
        # Whether a channel is not where it should be, by the map of this generation.
        self._astray = False
        self._generation = cluster.generation
        self._kept = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def subscribe(self, *channels: str) -> None:
        """Join channels; each is confirmed by a message. Raises `RedisError`, `OSError`."""
        async with self._writing:
            await self._join(channels)
        if not self._kept:
            self._kept = True
            self._own(self._keep(), "cluster-keep")

    async def unsubscribe(self, *channels: str) -> None:
        """Leave channels."""
        async with self._writing:
            await self._leave([(channel, self._places.pop(channel, None)) for channel in channels])

    async def messages(self) -> Sequence[Message]:
        """What has come, in the order of each node; waits for something. Raises when no node is left to hear from."""
        if not self._unread.empty():
            await asyncio.sleep(0)
        found: list[Message] = []
        unread = self._error or await self._unread.get()
        while not isinstance(unread, Exception):
            found.append(unread)
            if self._unread.empty() or len(found) >= MOST_AT_ONCE:
                return found
            unread = self._unread.get_nowait()
        self._error = unread
        if not found:
            raise unread
        return found

    def close(self) -> None:
        """Hear no more."""
        for task in self._tasks:
            task.cancel()
        for line in self._lines.values():
            line.subscriber.close()
        self._lines.clear()

    async def aclose(self) -> None:
        """As `close`, and wait until everything has ended."""
        self.close()
        while self._tasks:
            # A cancellation can get lost in the library, so it is said again.
            await asyncio.wait(self._tasks, timeout=0.2)
            # With what the task may have opened that did not hear of it.
            self.close()

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, channels: Iterable[str]) -> None:
        addresses = await self._cluster.addresses()
        groups: dict[Address | None, list[str]] = defaultdict(list)
        for channel in channels:
            groups[self._cluster.owner(channel)].append(channel)
        for owner, group in groups.items():
            # The owner first, unless it is away.
            others = [address for address in addresses if address != owner]
            places = others if owner is None else [owner, *others]
            for place in sorted(places, key=self._away.__contains__):
                if await self._join_at(place, group):
                    self._astray |= place != owner
                    break
            else:
                raise RedisConnectionError("No node of the cluster can be heard.")

    async def _join_at(self, place: Address, channels: Sequence[str]) -> bool:
        line = self._lines.get(place)
        if line is None:
            line = _Line(place, self._cluster.node(place).subscriber())
            self._lines[place] = line
        try:
            await line.subscriber.subscribe(*channels)
        except (RedisError, OSError):
            self._lose(line)
            return False
        if not line.read:
            line.read = True
            self._own(self._read(line), "cluster-read")
        self._places.update(dict.fromkeys(channels, place))
        return True

    async def _leave(self, places: Iterable[tuple[str, Address | None]]) -> None:
        groups: dict[Address, list[str]] = defaultdict(list)
        for channel, place in places:
            if place is not None:
                groups[place].append(channel)
        for place, group in groups.items():
            if (line := self._lines.get(place)) is not None:
                with suppress(RedisError, OSError):
                    await line.subscriber.unsubscribe(*group)

    async def _read(self, line: _Line) -> None:
        try:
            while self._lines.get(line.address) is line:
                for message in await line.subscriber.messages():
                    await self._unread.put(message)
        except Exception:
            # Whatever is raised when a connection ends: its channels are joined anew.
            self._lose(line)

    def _lose(self, line: _Line) -> None:
        if self._lines.get(line.address) is line:
            del self._lines[line.address]
            line.subscriber.close()
            self._away.add(line.address)
            for channel, place in self._places.items():
                if place == line.address:
                    self._places[channel] = None
            self._astray = True
            self._broken.set()

    async def _keep(self) -> None:
        """Have every channel joined at its place, until no place is left."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY):
                        await self._broken.wait()
                self._broken.clear()
                await self._ask_lines()
                await self._ask_away()
                await self._put_right()
        except Exception as error:
            await self._unread.put(error)

    async def _ask_lines(self) -> None:
        """Give up the lines that have not answered, and ask all others."""
        silent_since = asyncio.get_running_loop().time() - _SILENCE
        for line in list(self._lines.values()):
            if line.subscriber.heard_at < silent_since:
                self._lose(line)
                continue
            async with self._writing:
                with suppress(RedisError, OSError):
                    line.subscriber.ping()

    async def _ask_away(self) -> None:
        """See who is back."""
        self._away &= set(await self._cluster.addresses())
        for address in tuple(self._away):
            with suppress(RedisError, OSError):
                await self._cluster.node(address).execute_command("PING")
                self._away.discard(address)

    async def _put_right(self) -> None:
        """Join what is not where it should be, and leave it where it was."""
        if not self._astray and self._generation == self._cluster.generation:
            return
        async with self._writing:
            self._generation, self._astray = self._cluster.generation, False
            # A node that has left the cluster still answers, and hears nothing more.
            addresses = await self._cluster.addresses()
            for line in [line for line in self._lines.values() if line.address not in addresses]:
                self._lose(line)
            wrong = {channel: place for channel, place in self._places.items() if self._is_wrong(channel, place)}
            await self._join(wrong)
            await self._leave((channel, place) for channel, place in wrong.items() if place != self._places[channel])

    def _is_wrong(self, channel: str, place: Address | None) -> bool:
        """Whether there is a better place now than `place`."""
        owner = self._cluster.owner(channel)
        if place is not None and owner in self._away:
            self._astray = True
            return False
        return place is None or place != owner
