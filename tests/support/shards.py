"""Devices and customers whose keys are on different nodes of a cluster."""

from __future__ import annotations

import itertools
from uuid import UUID

from aizen_gateway.storage.keys import customer_channel

from .clients import DeviceClient, World
from .cluster import Cluster, ValkeyNode

_numbers = itertools.count(1)


async def device_on(cluster: Cluster, node: ValkeyNode, world: World) -> DeviceClient:
    """A new device whose keys are on `node`."""
    for number in _numbers:
        device_id = f"sharded-{number}"
        if await cluster.owner("{" + device_id + "}") is node:
            return await world.device(device_id)
    raise AssertionError


async def device_on_each(cluster: Cluster, world: World) -> list[DeviceClient]:
    """A new device for each node."""
    return [await device_on(cluster, node, world) for node in cluster.nodes]


async def worlds_on_each(cluster: Cluster, world: World) -> list[World]:
    """A customer for each node, at the instance of `world`."""
    found: dict[int, World] = {}
    while len(found) < len(cluster.nodes):
        another = await world.another()
        found.setdefault((await cluster.owner(customer_channel(UUID(another.customer_id)))).port, another)
    return list(found.values())
