"""Who is there: sockets that end, hang or die with their instance, and each change told exactly once (section 6)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from aiohttp import ClientSession
from redis.asyncio import Redis

from aizen_gateway.realtime.connection import ConnectionLimits
from aizen_gateway.storage import keys
from aizen_gateway.storage.postgres import Database, PostgresOptions
from tests.support.clients import API, DeviceClient, World, expect
from tests.support.gateway import RunningGateway
from tests.support.outages import hung
from tests.support.processes import StartGatewayProcess
from tests.support.pushes import StartLimited, holds_sockets, presence_events, pushed, shows
from tests.support.raw_socket import Opcode, RawSocket, frame_of, raw_device, text_of
from tests.support.servers import FreshPostgres, FreshValkey
from tests.support.sockets import SocketClient, device_socket, portal_socket
from tests.support.waiting import eventually

# Seconds after which a device whose socket has ended is long looked at.
_LONG = 4.0


async def joined(portal: SocketClient) -> SocketClient:
    await portal.ask("join_rooms", answer="rooms_joined")
    return portal


async def heard(portal: SocketClient, device: DeviceClient) -> list[tuple[str, str]]:
    """All changes of the device that the portal has heard by now and has not been asked for."""
    await portal.ask("ping", answer="pong")
    ours = [
        frame
        for frame in portal.earlier
        if frame["type"] == "device_status" and frame["payload"]["deviceId"] == device.device_id
    ]
    portal.earlier = [frame for frame in portal.earlier if frame not in ours]
    return [(frame["payload"]["status"], frame["payload"]["connection"]) for frame in ours]


async def listed(world: World, status: str) -> list[str]:
    body = expect(await world.owner.get(f"{API}/customer/devices?status={status}"), 200)
    return [found["id"] for found in body["devices"]]


async def test_each_change_is_told_exactly_once_however_many_instances_there_are(
    world: World, second: RunningGateway
) -> None:
    device = await world.device()
    async with portal_socket(world.owner) as portal, portal_socket(world.owner, url=second.url) as other:
        await joined(portal)
        await joined(other)
        for url in (world.url, second.url):
            async with device_socket(device, url=url) as socket:
                # Without any heartbeat.
                assert await presence_events(portal, device, 1) == [("online", "websocket")]
                seen = await world.owner.status(device.device_id)
                assert (seen["status"], seen["connection"]) == ("online", "websocket")
                assert seen["lastHeartbeat"] is None or url == second.url
                assert await listed(world, "online") == [device.device_id]
                for status in ("error", "busy", "online", "healthy"):
                    await socket.ask("heartbeat", {"status": status}, answer="heartbeat_ack")
                assert await presence_events(portal, device, 2) == [("error", "websocket"), ("online", "websocket")]
            assert await presence_events(portal, device, 1) == [("offline", "none")]
            seen = await world.owner.status(device.device_id)
            assert (seen["status"], seen["connection"]) == ("offline", "none")
            assert await listed(world, "online") == []
        assert await heard(portal, device) == []
        assert len(await presence_events(other, device, 8)) == 8
        assert await heard(other, device) == []


async def test_devices_that_come_at_the_same_moment_are_each_told_once_and_wait_for_no_other(world: World) -> None:
    devices = [await world.device() for _ in range(12)]
    held, free = devices[0], devices[1:]
    async with AsyncExitStack() as stack:
        portal = await joined(await stack.enter_async_context(portal_socket(world.owner)))
        async with world.database.unit() as connection:
            # Somebody is busy with one of them.
            await connection.execute("select 1 from aizen.devices where id = $1 for update", held.device_id)
            await asyncio.gather(*(stack.enter_async_context(device_socket(device)) for device in devices))
            for device in free:
                assert await presence_events(portal, device, 1) == [("online", "websocket")]
            assert await heard(portal, held) == []
        assert await presence_events(portal, held, 1) == [("online", "websocket")]
        for device in devices:
            assert await heard(portal, device) == []


async def test_a_device_that_comes_back_at_once_was_never_away(world: World, second: RunningGateway) -> None:
    device = await world.device()
    async with portal_socket(world.owner) as portal:
        await joined(portal)
        for url in (world.url, second.url, second.url, world.url):
            async with device_socket(device, url=url) as socket:
                await socket.ask("heartbeat", {"status": "error"}, answer="heartbeat_ack")
        async with device_socket(device):
            await asyncio.sleep(_LONG)
            # What the device said of itself holds over its sockets.
            assert await heard(portal, device) == [("online", "websocket"), ("error", "websocket")]


async def test_a_heartbeat_over_rest_keeps_a_device_online_when_its_socket_ends(
    world: World, second: RunningGateway
) -> None:
    device, silent = await world.device(), await world.device()
    async with portal_socket(world.owner) as portal:
        await joined(portal)
        async with device_socket(device, url=second.url), device_socket(silent) as socket:
            assert await presence_events(portal, device, 1) == [("online", "websocket")]
            expect(await device.heartbeat(), 200)
            assert (await world.owner.status(device.device_id))["connection"] == "websocket"
            # Over the socket it does not: the socket itself did.
            await socket.ask("heartbeat", {"status": "online"}, answer="heartbeat_ack")
        await shows(world, silent, "offline")
        assert await presence_events(portal, device, 1) == [("online", "polling")]
        seen = await world.owner.status(device.device_id)
        assert (seen["status"], seen["connection"]) == ("online", "polling")
        assert await heard(portal, device) == []


async def test_offline_and_error_are_shown_while_the_socket_is_open(world: World) -> None:
    device = await world.device()
    async with device_socket(device) as socket:
        for told, shown in (("error", "error"), ("offline", "offline"), ("degraded", "online")):
            await socket.ask("status", {"status": told}, answer="ack")
            seen = await world.owner.status(device.device_id)
            assert (seen["status"], seen["connection"]) == (shown, "websocket")
            assert await listed(world, shown) == [device.device_id]


async def test_a_peer_that_is_gone_without_a_word_is_found_by_ping(world: World, start_limited: StartLimited) -> None:
    limited = await start_limited(ConnectionLimits(ping_every=0.5, pong_within=0.8, close_within=0.3))
    gone, ponging, talking = [replace(await world.device(), url=limited.url) for _ in range(3)]
    async with raw_device(gone) as silent, raw_device(ponging) as quiet, raw_device(talking) as busy:
        assert (await silent.message())["type"] == "connected"
        await holds_sockets(limited, 3)
        # One answers pings, one only talks; the third one is not heard of.
        others = [asyncio.create_task(_pong(quiet)), asyncio.create_task(_talk(busy))]
        assert await silent.closed() is None
        await holds_sockets(limited, 2)
        assert await shows(world, gone, "offline")
        for device in (ponging, talking):
            assert (await world.owner.status(device.device_id))["connection"] == "websocket"
        for task in others:
            assert not task.done()
            task.cancel()


async def _pong(socket: RawSocket) -> None:
    while True:
        if (await socket.receive())[0] is Opcode.PING:
            await socket.send(frame_of(Opcode.PONG))


async def _talk(socket: RawSocket) -> None:
    while True:
        await socket.send(text_of("ping"))
        await asyncio.sleep(0.05)


async def test_when_an_instance_dies_its_devices_go_offline_and_its_commands_come_back_after_their_leases(
    start_gateway_process: StartGatewayProcess, world: World
) -> None:
    process = await start_gateway_process()
    devices = [await world.device() for _ in range(3)]
    session = await world.owner.open_session(devices[0].device_id)
    async with ClientSession() as http, portal_socket(world.owner) as portal:
        await joined(portal)
        sockets = []
        for device in devices:
            ws = await http.ws_connect(f"{process.url}/ws/device?visibilityTimeout=6000", headers=device.headers)
            sockets.append(SocketClient(ws))
            await sockets[-1].expect("connected")
        command = await world.owner.submit(session["id"])
        claimed = await pushed(sockets[0])
        for device in devices:
            assert await presence_events(portal, device, 1) == [("online", "websocket")]
        # Nobody gave it back: the whole instance is gone.
        await process.run.kill()
        for device in devices:
            assert await presence_events(portal, device, 1) == [("offline", "none")]
            assert (await shows(world, device, "offline"))["connection"] == "none"
        assert (await world.owner.command(command))["status"] == "claimed"
        (again,) = await devices[0].claim(waitMs=20_000)
        assert (again["id"], again["attempt"]) == (command["id"], 2)
        assert again["timestamp"] >= claimed["visibleUntil"]
        assert await heard(portal, devices[0]) == []


async def test_an_instance_that_died_is_not_mistaken_for_its_successor_of_the_same_name(
    start_gateway_process: StartGatewayProcess, world: World
) -> None:
    device = await world.device()
    # The name is that of the machine, say; the successor is there before anybody can have missed the first.
    process = await start_gateway_process(AIZEN_INSTANCE_ID="the-same")
    async with ClientSession() as http:
        async with http.ws_connect(f"{process.url}/ws/device", headers=device.headers) as ws:
            assert (await ws.receive_json())["type"] == "connected"
            await shows(world, device, "online", "websocket")
            await process.run.kill()
            await start_gateway_process(AIZEN_INSTANCE_ID="the-same")
        await shows(world, device, "offline", "none")


async def test_when_redis_is_emptied_devices_sign_in_again_and_nobody_was_offline(
    world: World, second: RunningGateway, valkey: Redis
) -> None:
    polling, lost = await world.device(), await world.device()
    expect(await polling.heartbeat(), 200)
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    async with device_socket(device, url=second.url) as socket, device_socket(lost) as other:
        waiting = await world.owner.submit(session["id"])
        claimed = await pushed(socket)
        await eventually(lambda: listed(world, "online"), lambda found: len(found) == 3)
        await valkey.flushall()
        # Its token is gone, and it is told so.
        assert await socket.closed() == 4401
        assert await other.closed() == 4401
    async with portal_socket(world.owner) as portal:
        await joined(portal)
        expect(await device.sign_in(), 200)
        async with device_socket(device, url=second.url) as socket:
            assert (await pushed(socket))["id"] == waiting["id"]
            assert (await shows(world, device, "online"))["connection"] == "websocket"
            assert claimed["id"] == waiting["id"]
            # One that does not come back is offline, and one that polls has the time of its heartbeat.
            assert await presence_events(portal, lost, 1) == [("offline", "none")]
            assert await heard(portal, device) == []
            assert device.device_id in await listed(world, "online")
            assert polling.device_id in await listed(world, "online")


async def test_a_socket_that_redis_forgot_says_that_it_is_open(world: World, valkey: Redis) -> None:
    device = await world.device()
    async with portal_socket(world.owner) as portal, device_socket(device) as socket:
        await socket.ask("heartbeat", {"status": "error"}, answer="heartbeat_ack")
        await joined(portal)
        # Another instance thought that this one was dead, and has buried it.
        instance = str((await valkey.zrange(keys.instances(keys.INDEX), 0, -1))[0])
        await valkey.hdel(keys.DeviceKeys.of(device.device_id).device, "socket")
        await valkey.delete(keys.instance_sockets(instance))
        await valkey.zadd(keys.WATCH, {device.device_id: 0})
        assert await presence_events(portal, device, 1) == [("offline", "none")]
        await valkey.zrem(keys.instances(keys.INDEX), instance)
        assert await presence_events(portal, device, 1) == [("error", "websocket")]
        assert (await world.owner.status(device.device_id))["connection"] == "websocket"
        sockets = await valkey.hgetall(keys.instance_sockets(instance))
        assert list(sockets.values()) == [device.device_id]
        session = await world.owner.open_session(device.device_id)
        command = await world.owner.submit(session["id"])
        assert (await pushed(socket))["id"] == command["id"]


async def test_a_redis_that_stands_still_takes_nobody_offline_but_those_that_left_meanwhile(
    start_gateway_process: StartGatewayProcess, fresh_valkey: FreshValkey, database: Database
) -> None:
    valkey = await fresh_valkey()
    processes = [await start_gateway_process(REDIS_URL=valkey.url) for _ in range(2)]
    async with ClientSession() as http:
        world = await World.create(processes[0].url, http, database)
        staying = [await world.device() for _ in range(2)]
        leaving = await world.device()
        sockets = []
        for process, device in zip([*processes, processes[1]], [*staying, leaving], strict=True):
            ws = await http.ws_connect(f"{process.url}/ws/device", headers=device.headers)
            sockets.append(SocketClient(ws))
            await sockets[-1].expect("connected")
        await eventually(lambda: listed(world, "online"), lambda found: len(found) == 3)
        # Sure of each other, so that a mistake would show.
        await asyncio.sleep(3.0)
        ws = await http.ws_connect(f"{world.url}/ws/customer", headers=world.owner.headers)
        portal = await joined(SocketClient(ws))
        with hung(valkey):
            await sockets[2].ws.close()
            await asyncio.sleep(4.0)
        assert await presence_events(portal, leaving, 1) == [("offline", "none")]
        for socket, device in zip(sockets, staying, strict=False):
            while not await beats(socket):
                pass
            assert (await world.owner.status(device.device_id))["connection"] == "websocket"
            assert await heard(portal, device) == []
        session = await world.owner.open_session(staying[1].device_id)
        command = await world.owner.submit(session["id"])
        assert (await pushed(sockets[1]))["id"] == command["id"]


async def beats(socket: SocketClient) -> bool:
    """Whether a heartbeat is acknowledged; else Redis is still away."""
    await socket.send("heartbeat", {"status": "online"}, "beat")
    while (frame := await socket.receive()).get("requestId") != "beat":
        socket.earlier.append(frame)
    return bool(frame["type"] == "heartbeat_ack")


async def test_a_change_that_the_database_could_not_take_is_told_when_it_is_back(
    start_gateway_process: StartGatewayProcess, fresh_postgres: FreshPostgres
) -> None:
    postgres = await fresh_postgres()
    process = await start_gateway_process(DATABASE_URL=postgres.url)
    opened = Database(PostgresOptions(postgres.url, pool_size=2))
    async with ClientSession() as http:
        world = await World.create(process.url, http, opened)
        device = await world.device()
        async with portal_socket(world.owner) as portal, AsyncExitStack() as stack:
            await joined(portal)
            with hung(postgres):
                # Sockets need no database.
                socket = await stack.enter_async_context(device_socket(device))
                assert await socket.ask("ping", answer="pong") == {}
            assert await presence_events(portal, device, 1) == [("online", "websocket")]
            await eventually(lambda: listed(world, "online"), lambda found: found == [device.device_id])
            with hung(postgres):
                await socket.ws.close()
            assert await presence_events(portal, device, 1) == [("offline", "none")]
    await opened.close()
