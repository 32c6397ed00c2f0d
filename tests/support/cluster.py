"""A Redis Cluster of three Valkey processes that share out the slots, and what happens to such a cluster.

A worker has one, made when a test first asks for it. Nodes keep nothing but their place in the cluster, so that one
that is restarted comes back empty, while the others have all they had.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from aizen_gateway.dev.embedded import EmbeddedValkey
from aizen_gateway.dev.embedded_server import HOST

from .waiting import eventually

_NODES = 3
_SLOTS = 16_384
# Milliseconds after which a silent node counts as failed.
_NODE_TIMEOUT_MS = 1_500
_PASSWORD = "password"
# Seconds for the nodes to agree.
_AGREE_S = 30.0


class ValkeyNode(EmbeddedValkey):
    """One node. All nodes of a cluster have the password that lies beside their directories."""

    title = "Valkey node"

    async def _prepare(self) -> None:
        await super()._prepare()
        self._password = self.data_dir.with_name(_PASSWORD).read_text()
        self.bus_port = free_port()

    def _command(self) -> tuple[list[str], bytes]:
        command, settings = super()._command()
        more = (
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-port {self.bus_port}",
            f"cluster-node-timeout {_NODE_TIMEOUT_MS}",
            # What is on nodes that are there goes on without one that is away.
            "cluster-require-full-coverage no",
            f"masterauth {self._password}",
        )
        return command, settings + "\n".join(("", *more)).encode()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes, which hold a third of the slots each."""

    nodes: Sequence[ValkeyNode]

    @classmethod
    async def start(cls, directory: Path) -> Cluster:
        """Start the nodes, make them a cluster, and return when all of them agree on it."""
        await asyncio.to_thread(_prepare, directory)
        cluster = cls([await ValkeyNode.start(directory / str(number), durable=False) for number in range(_NODES)])
        for number, node in enumerate(cluster.nodes):
            async with client_of(node) as client:
                await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                first, last = number * _SLOTS // _NODES, (number + 1) * _SLOTS // _NODES - 1
                await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                for other in cluster.nodes[:number]:
                    await client.execute_command("CLUSTER", "MEET", HOST, other.port, other.bus_port)
        await cluster.agreed()
        return cluster

    @property
    def password(self) -> str:
        """The password of all nodes."""
        return self.nodes[0].url.partition("//:")[2].partition("@")[0]

    @property
    def url(self) -> str:
        """What a gateway connects to."""
        return f"redis+cluster://:{self.password}@" + ",".join(node.address for node in self.nodes)

    async def agreed(self) -> None:
        """Wait until every node finds the cluster whole."""
        for node in self.nodes:
            async with client_of(node) as client:
                await eventually(lambda asked=client: _state(asked), _is_whole, within=_AGREE_S)  # type: ignore[misc]

    async def empty(self) -> None:
        """Forget everything on every node."""
        for node in self.nodes:
            async with client_of(node) as client:
                await client.flushall()

    async def owner(self, key: str) -> ValkeyNode:
        """The node that holds the slot of `key`."""
        async with client_of(self.nodes[0]) as client:
            for first, last, (_, port, *_), *_ in await client.execute_command("CLUSTER", "SLOTS"):
                if first <= key_slot(key.encode()) <= last:
                    return next(node for node in self.nodes if node.port == port)
        raise AssertionError(key)

    async def begin_move(self, key: str) -> ValkeyNode:
        """Begin to move the slot of `key` to another node, which is returned: some of its keys are there by now."""
        source = await self.owner(key)
        target = next(node for node in self.nodes if node is not source)
        slot = key_slot(key.encode())
        async with client_of(source) as old, client_of(target) as new:
            await new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", await _id(old))
            await old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", await _id(new))
            await self._migrate(old, target, slot, 1)
        return target

    async def end_move(self, key: str, target: ValkeyNode) -> None:
        """Move the rest of the slot of `key`."""
        source = await self.owner(key)
        slot = key_slot(key.encode())
        async with client_of(source) as old, client_of(target) as new:
            while await self._migrate(old, target, slot, 100):
                pass
            owner = await _id(new)
        for node in (target, source, *self.nodes):
            async with client_of(node) as client:
                await client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", owner)

    @asynccontextmanager
    async def replica_of(self, node: ValkeyNode) -> AsyncIterator[ValkeyNode]:
        """A further node that has what `node` has and takes over from it; in the end `node` takes its slots back."""
        directory = node.data_dir.with_name("replica")
        replica = await ValkeyNode.start(directory, durable=False, fresh=True)
        try:
            async with client_of(replica) as client, client_of(node) as original:
                replica_id, node_id = await _id(client), await _id(original)
                await client.execute_command("CLUSTER", "MEET", HOST, node.port, node.bus_port)
                await eventually(lambda: _attempt(client, "CLUSTER", "REPLICATE", node_id), bool, within=_AGREE_S)
                await eventually(lambda: client.info("replication"), _is_linked, within=_AGREE_S)
            yield replica
            async with client_of(node) as original:
                await eventually(lambda: original.info("replication"), _is_linked, within=_AGREE_S)
                await eventually(lambda: _attempt(original, "CLUSTER", "FAILOVER"), bool, within=_AGREE_S)
                await eventually(lambda: original.info("replication"), _is_master, within=_AGREE_S)
        finally:
            await replica.stop()
            for other in self.nodes:
                async with client_of(other) as client:
                    await _attempt(client, "CLUSTER", "FORGET", replica_id)

    async def _migrate(self, old: Redis, target: ValkeyNode, slot: int, most: int) -> bool:
        keys = await old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, most)
        if keys:
            where = (HOST, target.port, "", 0, 5_000, "AUTH", self.password, "KEYS")
            await old.execute_command("MIGRATE", *where, *keys)
        return bool(keys)

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()


def _prepare(directory: Path) -> None:
    directory.mkdir()
    (directory / _PASSWORD).write_text(secrets.token_urlsafe(24))


def free_port() -> int:
    """A port that nobody uses now, for a server that has to be told one."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def client_of(node: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A client that speaks with one node and with no other."""
    async with Redis.from_url(node.url, decode_responses=True) as client:
        yield client


async def _attempt(client: Redis, *command: str) -> bool:
    """Whether a command is taken now."""
    try:
        await client.execute_command(*command)
    except ResponseError:
        return False
    return True


def _is_linked(replication: dict[str, Any]) -> bool:
    return replication.get("master_link_status") == "up"


def _is_master(replication: dict[str, Any]) -> bool:
    return bool(replication["role"] == "master")


async def _id(client: Redis) -> str:
    return str(await client.execute_command("CLUSTER", "MYID"))


async def _state(client: Redis) -> dict[str, str]:
    text: str = await client.execute_command("CLUSTER", "INFO")
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _is_whole(state: dict[str, str]) -> bool:
    wanted = {"cluster_state": "ok", "cluster_slots_ok": str(_SLOTS), "cluster_known_nodes": str(_NODES)}
    return wanted.items() <= state.items() and state["cluster_size"] == str(_NODES)


@pytest.fixture(scope="session")
def cluster_server(session_loop: asyncio.AbstractEventLoop, server_dir: Path) -> Iterator[Cluster]:
    """The worker's cluster; `cluster` is what a test asks for."""
    started = session_loop.run_until_complete(Cluster.start(server_dir / "cluster"))
    yield started
    session_loop.run_until_complete(started.stop())


@pytest.fixture
def cluster(session_loop: asyncio.AbstractEventLoop, cluster_server: Cluster) -> Cluster:
    """The worker's cluster: whole, and emptied."""
    session_loop.run_until_complete(cluster_server.agreed())
    session_loop.run_until_complete(cluster_server.empty())
    return cluster_server
