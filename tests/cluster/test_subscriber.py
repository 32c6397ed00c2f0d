"""The subscriber of a cluster: where it joins channels, and what it does when a node is away or hangs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from weakref import WeakKeyDictionary

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from aizen_gateway.storage import cluster_subscriber
from aizen_gateway.storage.cluster_subscriber import ClusterSubscriber
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from aizen_gateway.storage.subscriber import Message
from tests.support.cluster import Cluster, FreshCluster, ValkeyNode, client_of
from tests.support.outages import crash, hung
from tests.support.waiting import eventually

# What came with what was looked for.
_unread: WeakKeyDictionary[ClusterSubscriber, deque[Message]] = WeakKeyDictionary()


@pytest.fixture
async def subscriber(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClusterSubscriber]:
    """One that notices everything sooner than it does in earnest."""
    monkeypatch.setattr(cluster_subscriber, "_LOOK_EVERY", 0.2)
    monkeypatch.setattr(cluster_subscriber, "_SILENCE", 1.0)
    store = RedisStore.connect(RedisOptions(redis_url, timeout=0.5))
    opened = store.subscriber()
    assert isinstance(opened, ClusterSubscriber)
    yield opened
    await opened.aclose()
    await store.close()


async def heard(subscriber: ClusterSubscriber, kind: str) -> tuple[str, str]:
    """The channel and the data of the next message of `kind`."""
    unread = _unread.setdefault(subscriber, deque())
    async with asyncio.timeout(20):
        while True:
            while unread:
                found, channel, data = unread.popleft()
                if found == kind:
                    return channel, data
            unread.extend(await subscriber.messages())


async def joined(cluster: Cluster, channel: str) -> list[ValkeyNode]:
    """The nodes that have a subscriber of `channel`."""
    found = []
    for node in cluster.nodes:
        async with client_of(node) as client:
            ((_, count),) = await client.pubsub_numsub(channel)
            found += [node] * count
    return found


async def channel_of(cluster: Cluster, node: ValkeyNode) -> str:
    """A channel that is published at `node`."""
    for number in range(1_000):
        if await cluster.owner(channel := f"{{{number}}}") is node:
            return channel
    raise AssertionError


async def test_channels_are_joined_at_their_nodes_and_left(subscriber: ClusterSubscriber, cluster: Cluster) -> None:
    channels = {await channel_of(cluster, node): node for node in cluster.nodes}
    await subscriber.subscribe(*channels)
    assert {(await heard(subscriber, "subscribe"))[0] for _ in channels} == set(channels)
    for channel, node in channels.items():
        assert await joined(cluster, channel) == [node]
        async with client_of(node) as client:
            await client.publish(channel, "x")
        assert await heard(subscriber, "message") == (channel, "x")
    await subscriber.unsubscribe(*channels)
    for channel in channels:
        await eventually(lambda left=channel: joined(cluster, left), lambda found: not found)  # type: ignore[misc]


async def test_a_node_that_hangs_is_given_up_and_taken_again(subscriber: ClusterSubscriber, cluster: Cluster) -> None:
    away, other = cluster.nodes[0], cluster.nodes[1]
    channel = await channel_of(cluster, away)
    await subscriber.subscribe(channel)
    await heard(subscriber, "subscribe")
    with hung(away):
        # Another node does, and the confirmation tells of the gap.
        await heard(subscriber, "subscribe")
        async with client_of(other) as client:
            await client.publish(channel, "meanwhile")
        assert await heard(subscriber, "message") == (channel, "meanwhile")
    await heard(subscriber, "subscribe")
    await eventually(lambda: joined(cluster, channel), lambda found: found == [away])


async def test_a_node_that_is_away_from_the_start_is_replaced_until_it_is_there(
    subscriber: ClusterSubscriber, cluster: Cluster
) -> None:
    away = cluster.nodes[2]
    channel = await channel_of(cluster, away)
    await subscriber.subscribe("{somewhere}")
    await crash(away)
    await subscriber.subscribe(channel)
    await away.restart()
    await eventually(lambda: joined(cluster, channel), lambda found: found == [away])


async def test_without_any_node_it_says_so(fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_subscriber, "_LOOK_EVERY", 0.2)
    cluster = await fresh_cluster()
    store = RedisStore.connect(RedisOptions(cluster.url, timeout=0.5))
    subscriber = store.subscriber()
    assert isinstance(subscriber, ClusterSubscriber)
    await subscriber.subscribe("channel")
    for node in cluster.nodes:
        await crash(node)
    with pytest.raises(RedisConnectionError):
        await heard(subscriber, "nothing")
    await subscriber.aclose()
    await store.close()
