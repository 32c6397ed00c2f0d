"""One socket a device: the newest wins, wherever it is, and the end of an older one changes nothing (section 6)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from redis.asyncio import Redis

from tests.support.clients import World, expect
from tests.support.gateway import RunningGateway
from tests.support.line import Line
from tests.support.pushes import finish, holds_sockets, presence_events, pushed, shows, sockets_at, unheard
from tests.support.raw_socket import raw_device
from tests.support.sockets import Closed, SocketClient, device_socket, portal_socket
from tests.support.waiting import eventually

# Seconds after which a device whose socket has ended is long looked at.
_LONG = 4.0


async def end_of(socket: SocketClient) -> int | None:
    """The code with which a socket was closed, None when it still answers."""
    try:
        await socket.ask("ping", answer="pong")
    except Closed as closed:
        return closed.code
    return None


async def test_a_newer_socket_at_the_same_instance_wins(line: Line) -> None:
    async with device_socket(line.device) as older, device_socket(line.device) as newer:
        assert await older.closed() == 4409
        command = await line.submit()
        assert (await pushed(newer))["id"] == command["id"]


async def test_a_newer_socket_at_another_instance_wins_and_so_back_again(line: Line, second: RunningGateway) -> None:
    async with AsyncExitStack() as stack:
        older = await stack.enter_async_context(device_socket(line.device))
        for device in (line.at(second), line.device, line.at(second)):
            newer = await stack.enter_async_context(device_socket(device))
            assert await older.closed() == 4409
            older = newer
        command = await line.submit()
        claimed = await pushed(older)
        assert claimed["id"] == command["id"]
        assert (await finish(older, claimed))["status"] == "succeeded"


async def test_another_token_of_the_same_device_supersedes_as_well(line: Line) -> None:
    async with device_socket(line.device) as older:
        expect(await line.device.sign_in(), 200)
        async with device_socket(line.device):
            assert await older.closed() == 4409


async def test_of_many_that_connect_at_once_exactly_one_stays_and_it_is_the_newest(
    line: Line, gateway: RunningGateway, second: RunningGateway
) -> None:
    for _ in range(3):
        async with AsyncExitStack() as stack:
            devices = [line.device, line.at(second)] * 5
            opening = [stack.enter_async_context(device_socket(device)) for device in devices]
            sockets = await asyncio.gather(*opening)

            async def count() -> int:
                return sockets_at(gateway) + sockets_at(second)

            await eventually(count, lambda found: found == 1)
            codes = await asyncio.gather(*map(end_of, sockets))
            assert sorted(codes, key=str) == [4409] * (len(sockets) - 1) + [None]
            survivor = sockets[codes.index(None)]
            # It is the one that Redis knows, so that pushes reach it.
            command = await line.submit()
            claimed = await pushed(survivor)
            assert claimed["id"] == command["id"]
            assert (await line.world.owner.status(line.device.device_id))["connection"] == "websocket"
            await finish(survivor, claimed)


async def test_a_socket_that_does_not_answer_its_close_is_replaced_all_the_same(
    line: Line, second: RunningGateway
) -> None:
    async with raw_device(line.device) as stuck:
        assert (await stuck.message())["type"] == "connected"
        command = await line.submit()
        assert (await stuck.message())["type"] == "command"
        # It never said a word since, so what was pushed to it is the new one's, long before its close times out.
        async with device_socket(line.at(second)) as newer:
            claimed = await asyncio.wait_for(pushed(newer), 1.5)
            assert (claimed["id"], claimed["attempt"]) == (command["id"], 1)
        assert await stuck.closed() == 4409


async def test_the_late_end_of_an_older_socket_marks_nobody_offline(world: World, second: RunningGateway) -> None:
    device = await world.device()
    async with portal_socket(world.owner) as portal:
        await portal.ask("join_rooms", answer="rooms_joined")
        older = await world.http.ws_connect(f"{world.url}/ws/device", headers=device.headers, autoclose=False)
        assert (await older.receive_json())["type"] == "connected"
        assert await presence_events(portal, device, 1) == [("online", "websocket")]
        async with device_socket(device, url=second.url) as newer:
            # The older one takes its time to answer the close.
            await asyncio.sleep(0.3)
            await older.close()
            assert await portal.silent(_LONG)
            assert (await world.owner.status(device.device_id))["connection"] == "websocket"
            assert await newer.ask("ping", answer="pong") == {}


async def test_an_older_socket_that_missed_the_hint_ends_when_its_subscriber_is_back(
    world: World, gateway: RunningGateway, second: RunningGateway, valkey: Redis
) -> None:
    device = await world.device()
    # The other instance has joined the device's channel, and stays in it for a while.
    assert await replace(device, url=second.url).claim(waitMs=10) == []
    async with device_socket(device) as older:
        async with unheard(valkey, 1):
            newer = await world.http.ws_connect(f"{second.url}/ws/device", headers=device.headers)
            assert (await newer.receive_json())["type"] == "connected"
            assert await older.ask("ping", answer="pong") == {}
            # The newer one is gone again, but it was the newer one.
            await newer.close()
        assert await older.closed() == 4409
    await holds_sockets(gateway, 0)
    await shows(world, device, "offline", "none")
