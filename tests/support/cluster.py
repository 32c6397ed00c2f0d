"""A Redis Cluster of three Valkey processes that share out the slots, and what happens to such a cluster.

A worker has one, made when a test first asks for it. Nodes keep nothing but their place in the cluster, so that one
that is restarted comes back empty, while the others have all they had.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from aizen_gateway.dev.embedded import EmbeddedValkey
from aizen_gateway.dev.embedded_server import HOST

from .waiting import eventually

Client = Any  # Redis, which leaves `execute_command` without types
FreshCluster = Callable[[], Awaitable["Cluster"]]

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
            f"masterauth {self._password}",
            "repl-diskless-sync-delay 0",
        )
        return command, settings + "\n".join(("", *more)).encode()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes, which hold a third of the slots each."""

    nodes: Sequence[ValkeyNode]
    replicas: list[ValkeyNode] = field(default_factory=list)

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

    async def serve_whole_only(self, only: bool) -> None:
        """Whether nodes serve only while all slots are held, as they do unless told otherwise."""
        for node in self.nodes:
            async with client_of(node) as client:
                await client.config_set("cluster-require-full-coverage", "yes" if only else "no")

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

    async def add_replica(self, node: ValkeyNode) -> None:
        """Start a further node that has what `node` has, and takes over from it."""
        replica = await ValkeyNode.start(node.data_dir.with_name("replica"), durable=False)
        self.replicas.append(replica)
        async with client_of(replica) as client, client_of(node) as original:
            await client.execute_command("CLUSTER", "MEET", HOST, node.port, node.bus_port)
            name = await _id(original)
            await eventually(lambda: _attempt(client, "CLUSTER", "REPLICATE", name), bool, within=_AGREE_S)
            await eventually(lambda: client.info("replication"), _is_linked, within=_AGREE_S)
            name = await _id(client)
        await replicated(node, replica)
        for other in self.nodes:
            # Those that do not know it do not vote for it.
            async with client_of(other) as client:
                await eventually(lambda asked=client: _replicas(asked), lambda known: name in known, within=_AGREE_S)  # type: ignore[misc]

    async def _migrate(self, old: Client, target: ValkeyNode, slot: int, most: int) -> bool:
        keys = await old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, most)
        if keys:
            where = (HOST, target.port, "", 0, 5_000, "AUTH", self.password, "KEYS")
            await old.execute_command("MIGRATE", *where, *keys)
        return bool(keys)

    async def stop(self) -> None:
        for node in (*self.nodes, *self.replicas):
            await node.stop()


async def replicated(master: EmbeddedValkey, replica: EmbeddedValkey) -> None:
    """Return when the replica has all that the master has now, and gets at once what is written from now on."""
    async with client_of(master) as first, client_of(replica) as second:
        await eventually(lambda: first.info("replication"), _is_fed, within=_AGREE_S)
        offset = (await first.info("replication"))["master_repl_offset"]
        await eventually(lambda: second.info("replication"), lambda found: found["slave_repl_offset"] >= offset)


def _is_fed(replication: dict[str, Any]) -> bool:
    return bool(replication["connected_slaves"]) and replication["slave0"]["state"] == "online"


def _prepare(directory: Path) -> None:
    directory.mkdir()
    (directory / _PASSWORD).write_text(secrets.token_urlsafe(24))


def free_port() -> int:
    """A port that nobody uses now, for a server that has to be told one."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def client_of(node: EmbeddedValkey) -> AsyncIterator[Client]:
    """A client that speaks with one server and with no other."""
    async with Redis.from_url(node.url, decode_responses=True) as client:
        yield client


async def _attempt(client: Client, *command: str) -> bool:
    """Whether a command is taken now."""
    try:
        await client.execute_command(*command)
    except ResponseError:
        return False
    return True


async def _replicas(client: Client) -> set[str]:
    nodes: dict[str, dict[str, str]] = await client.execute_command("CLUSTER NODES")
    return {node["node_id"] for node in nodes.values() if "slave" in node["flags"]}


def _is_linked(replication: dict[str, Any]) -> bool:
    return replication.get("master_link_status") == "up"


async def _id(client: Client) -> str:
    return str(await client.execute_command("CLUSTER", "MYID"))


async def _state(client: Client) -> dict[str, str]:
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
    """The worker's cluster: whole, emptied, and serving what it has when a node is away."""
    session_loop.run_until_complete(cluster_server.agreed())
    session_loop.run_until_complete(cluster_server.serve_whole_only(False))
    session_loop.run_until_complete(cluster_server.empty())
    return cluster_server


@pytest.fixture
def fresh_cluster(session_loop: asyncio.AbstractEventLoop, server_dir: Path) -> Iterator[FreshCluster]:
    """Call it for a cluster of the test's own."""
    started: list[Cluster] = []

    async def start() -> Cluster:
        started.append(await Cluster.start(Path(own, "cluster")))
        return started[-1]

    with tempfile.TemporaryDirectory(dir=server_dir) as own:
        yield start
        for cluster in started:
            session_loop.run_until_complete(cluster.stop())
