"""An instance that cannot hear the others takes no new socket, and tells its client to come again (section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from redis.asyncio import Redis

from tests.support.clients import World
from tests.support.pushes import shows, unheard
from tests.support.sockets import device_socket, open_socket, portal_socket


async def test_a_socket_that_could_not_be_told_anything_is_closed_1013(world: World, valkey: Redis) -> None:
    device = await world.device()

    async def turned_away(path: str, headers: Mapping[str, str]) -> None:
        async with open_socket(world.http, world.url + path, headers=headers) as socket:
            assert await socket.closed() == 1013
            assert socket.earlier == []

    async with unheard(valkey, 1):
        await asyncio.gather(
            turned_away("/ws/device", device.headers), turned_away("/ws/customer", world.owner.headers)
        )
        assert (await world.owner.status(device.device_id))["connection"] != "websocket"
    # They are welcome as soon as it hears again.
    async with device_socket(device), portal_socket(world.owner):
        await shows(world, device, "online", "websocket")
