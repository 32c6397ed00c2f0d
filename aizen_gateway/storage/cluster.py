"""A Redis Cluster as if it were one Redis: each command goes to the node that holds its keys, and follows them.

A node is a link like that of a single Redis, so that time-outs and the rule that nothing is repeated are the same. The
library's own cluster client is not used for what it did when tried (redis-py 8.1, asyncio): calls beyond its
connections fail instead of waiting, each failed call costs a new map and 15 ms of the event loop, which one lost node
turns into a standstill, and some calls fail while a slot moves, since `ASKING` goes out on another connection.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .link import Command, Link

Address = tuple[str, int]

# More than a slot that moves needs: one that goes on redirecting is answered as a cluster that is down.
_REDIRECTS = 6
# Seconds. Keys of a slot that moves are together again soon.
_TRY_AGAIN_S = 0.05
# Seconds between two maps, whatever fails, and after which an old one is looked at anew though nothing did.
_MAP_EVERY_S = 0.5
_MAP_AGE_S = 30.0


class ClusterClient:
    """The nodes of one cluster, found from `seeds`; `connect` makes the client of a node."""

    def __init__(self, seeds: Sequence[Address], connect: Callable[[Address], Link]) -> None:
        self._seeds = tuple(seeds)
        self._connect = connect
        self._nodes: dict[Address, Link] = {}
        self._owners: list[Address | None] = []
        self._doubtful = False
        self._learned_at = float("-inf")
        self._learning: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        # Rises whenever slots have moved.
        self.generation = 0

    def open_call(self, command: Command) -> asyncio.Future[Any] | None:
        """As that of a link; always None, since what goes to different nodes keeps no order."""
        return None

    def run_script(self, command: Command) -> Awaitable[Any]:
        """As that of a link."""
        return self.execute_command(*command)

    async def execute_command(self, *command: str | int) -> Any:
        """Run a command at the node of its keys; one without keys at the node of slot 0, the same for all callers.

        All keys must be of one hash tag. Raises what a plain client raises, and `ClusterDownError`.
        """
        slot = _slot_of(command)
        address, asking = await self._holder(slot), False
        for _ in range(_REDIRECTS):
            try:
                return await (self._ask if asking else self._run)(address, command)
            except MovedError as moved:
                address, asking = _target(moved, address), False
                self._move(slot, address)
            except AskError as elsewhere:
                address, asking = _target(elsewhere, address), True
            except TryAgainError:
                await asyncio.sleep(_TRY_AGAIN_S)
            except (RedisConnectionError, RedisTimeoutError, ClusterDownError, OSError):
                self._doubtful = True
                raise
        raise ClusterDownError(f"Slot {slot} is nowhere to be found.")

    async def _run(self, address: Address, command: Command) -> Any:
        return await self.node(address).execute_command(*command)

    async def _ask(self, address: Address, command: Command) -> Any:
        """Run a command at the node to which its slot is on its way; the permission holds for one connection."""
        return await self.node(address).execute_after(("ASKING",), command)

    def node(self, address: Address) -> Link:
        """The client of one node."""
        if address not in self._nodes:
            self._nodes[address] = self._connect(address)
        return self._nodes[address]

    async def addresses(self) -> Sequence[Address]:
        """All nodes that hold slots, by a map that is fresh enough. Raises as `execute_command`."""
        await self._refresh()
        return _distinct(self._owners)

    def owner(self, name: str) -> Address | None:
        """The node that holds the slot of a key or a channel by the map at hand, None when nobody is known to."""
        return self._owners[key_slot(name.encode())] if self._owners else None

    async def tags(self, stem: str) -> Sequence[str]:
        """Hash tags, one on each node that holds slots: `stem` itself and more. Raises as `execute_command`."""
        left = set(await self.addresses())
        tags = []
        for number in itertools.count():
            tag = f"{stem}:{number}" if number else stem
            if not number or self.owner(tag) in left:
                tags.append(tag)
                left.discard(self.owner(tag) or next(iter(left)))
            if not left:
                return tags
        raise AssertionError

    @property
    def calls(self) -> int:
        """How many calls are under way at all nodes."""
        return sum(node.calls for node in self._nodes.values())

    async def aclose(self) -> None:
        """Close all connections."""
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)
        for address in tuple(self._nodes):
            await self._retire(address)

    async def _refresh(self) -> None:
        """Have a map; a new one is made in the background, so that what is on nodes that are there goes on."""
        age = asyncio.get_running_loop().time() - self._learned_at
        due = not self._owners or age > (_MAP_EVERY_S if self._doubtful else _MAP_AGE_S)
        if due and (self._learning is None or self._learning.done()):
            self._learning = asyncio.create_task(self._learn(), name="cluster-map")
        if not self._owners:
            assert self._learning is not None
            await asyncio.shield(self._learning)
            if not self._owners:
                raise RedisConnectionError("No node of the cluster can be asked.") from self._failure

    async def _holder(self, slot: int) -> Address:
        await self._refresh()
        owner = self._owners[slot]
        if owner is None:
            self._doubtful = True
            raise ClusterDownError(f"No node holds slot {slot}.")
        return owner

    async def _learn(self) -> None:
        """Make the map that the first node tells that knows of all slots, or of the most."""
        known = [address for address in self._nodes if address not in self._seeds]
        addresses = random.sample(known, len(known)) + random.sample(self._seeds, len(self._seeds))
        best: list[Address | None] = []
        for address in addresses:
            try:
                ranges = await self.node(address).execute_command("CLUSTER", "SLOTS")
            except (RedisError, OSError) as error:
                self._failure = error
                continue
            found = _owners(ranges, address)
            if found.count(None) < (best.count(None) if best else REDIS_CLUSTER_HASH_SLOTS):
                best = found
            if None not in best:
                break
        self._learned_at = asyncio.get_running_loop().time()
        # Doubts that nobody could clear stay.
        self._doubtful = not best
        if best and best != self._owners:
            self._owners = best
            self.generation += 1
            for gone in set(self._nodes) - set(_distinct(best)) - set(self._seeds):
                await self._retire(gone)

    def _move(self, slot: int, address: Address) -> None:
        self._doubtful = True
        if self._owners[slot] != address:
            self._owners[slot] = address
            self.generation += 1

    async def _retire(self, address: Address) -> None:
        with suppress(RedisError, OSError):
            await self._nodes.pop(address).aclose()


def _slot_of(command: Sequence[str | int]) -> int:
    """The slot of a command's first key, by the forms that the gateway uses."""
    place = 3 if command[0] in ("EVALSHA", "EVAL") else 1
    return key_slot(str(command[place]).encode()) if len(command) > place else 0


def _owners(ranges: Iterable[Any], asked: Address) -> list[Address | None]:
    """The primary of each slot out of an answer to CLUSTER SLOTS."""
    owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, (host, port, *_), *_ in ranges:
        owners[int(first) : int(last) + 1] = [(_host(host, asked), int(port))] * (int(last) - int(first) + 1)
    return owners


def _target(redirected: AskError, asked: Address) -> Address:
    return _host(redirected.host, asked), redirected.port


def _host(told: str | None, asked: Address) -> str:
    """A node that does not know its own name says nothing, or `?`: it is where it was asked."""
    return told if told and told != "?" else asked[0]


def _distinct(owners: Iterable[Address | None]) -> Sequence[Address]:
    return [owner for owner in dict.fromkeys(owners) if owner is not None]
