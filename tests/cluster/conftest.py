"""Here the tests' Redis is a cluster of three nodes: whatever asks for `redis_url` or `valkey` gets it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio.cluster import ClusterNode, RedisCluster

from tests.support.cluster import Cluster


class EveryNode(RedisCluster):
    """A client of the cluster that is not the gateway's, and that asks all nodes who listens."""

    async def pubsub_numsub(self, *args: Any, **kwargs: Any) -> Any:
        return await super().pubsub_numsub(*args, target_nodes=RedisCluster.ALL_NODES, **kwargs)


@pytest.fixture
def redis_url(cluster: Cluster) -> str:
    """The worker's cluster, emptied."""
    return cluster.url


@pytest.fixture
async def valkey(cluster: Cluster) -> AsyncIterator[RedisCluster]:
    """A client of the worker's cluster."""
    nodes = [ClusterNode("127.0.0.1", node.port) for node in cluster.nodes]
    async with EveryNode(startup_nodes=nodes, password=cluster.password, decode_responses=True) as client:
        yield client
