"""A device's socket ends with its token, on whichever instance, with the code that says why (section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

from redis.asyncio import Redis

from aizen_gateway.storage.keys import DeviceKeys
from tests.support.clients import API, DeviceClient, World, expect
from tests.support.gateway import RunningGateway, StartWorld
from tests.support.pushes import unheard
from tests.support.sockets import SocketClient, device_socket
from tests.support.waiting import eventually

End = Callable[[World, DeviceClient], Awaitable[None]]


async def log_out(world: World, device: DeviceClient) -> None:
    expect(await device.post(f"{API}/device/logout", {}), 204)


async def rotate(world: World, device: DeviceClient) -> None:
    expect(await world.owner.post(f"{API}/customer/devices/{device.device_id}/rotate-secret", {}), 200)


async def suspend(world: World, device: DeviceClient) -> None:
    expect(await world.owner.post(f"{API}/customer/devices/{device.device_id}/suspend", {}), 200)


async def delete(world: World, device: DeviceClient) -> None:
    expect(await world.owner.call("DELETE", f"{API}/customer/devices/{device.device_id}"), 204)


async def settled(valkey: Redis, device: DeviceClient) -> None:
    """Return once the device's new socket has had its first look at how it stands."""
    key = DeviceKeys.of(device.device_id).device
    await eventually(lambda: valkey.hget(key, "written"), lambda found: found is not None)


ENDS: list[tuple[End, int]] = [(log_out, 4401), (rotate, 4401), (suspend, 4403), (delete, 4403)]


async def test_the_socket_ends_at_once_on_whichever_instance(world: World, second: RunningGateway) -> None:
    for end, code in ENDS:
        for url in (world.url, second.url):
            device = await world.device()
            async with device_socket(device, url=url) as socket:
                await end(world, device)
                assert await socket.closed() == code


async def test_the_socket_ends_with_the_same_code_when_the_hint_was_lost(world: World, valkey: Redis) -> None:
    devices = [await world.device() for _ in ENDS]
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(device_socket(device, "?prefetch=0")) for device in devices]
        for device in devices:
            await settled(valkey, device)
        async with unheard(valkey, 1):
            for device, socket, (end, _) in zip(devices, sockets, ENDS, strict=True):
                await end(world, device)
                # Nobody has told the instance yet.
                assert await socket.ask("ping", answer="pong") == {}
        assert [await socket.closed() for socket in sockets] == [code for _, code in ENDS]


async def test_a_message_after_the_lost_hint_is_refused_and_ends_the_socket(world: World, valkey: Redis) -> None:
    for end, code in ENDS:
        device = await world.device()
        async with device_socket(device, "?prefetch=0") as socket:
            await settled(valkey, device)
            async with unheard(valkey, 1):
                await end(world, device)
                await socket.send("heartbeat", {"status": "online"}, "too-late")
                frame = await socket.expect("error")
                assert (frame["requestId"], frame["payload"]["code"]) == ("too-late", "UNAUTHENTICATED")
                assert await socket.closed() == code


async def test_a_socket_of_new_credentials_is_not_ended_by_the_end_of_the_old(world: World) -> None:
    device = await world.device()
    for _ in range(3):
        rotated = expect(await world.owner.post(f"{API}/customer/devices/{device.device_id}/rotate-secret", {}), 200)
        body = {"deviceId": device.device_id, "activationCode": rotated["device"]["activationCode"]}
        device.secret = expect(await world.anyone().post(f"{API}/device/register", body), 201)["deviceSecret"]
        expect(await device.sign_in(), 200)
        async with device_socket(device) as socket:
            assert await socket.silent(0.2)
            assert (await socket.ask("heartbeat", {"status": "online"}, answer="heartbeat_ack"))["pendingCommands"] == 0


async def test_logging_out_one_token_leaves_the_socket_of_another(world: World) -> None:
    device = await world.device()
    other = replace(device, headers=dict(device.headers))
    expect(await other.sign_in(), 200)
    async with device_socket(device) as socket:
        await log_out(world, other)
        assert await socket.silent(0.3)
        assert await socket.ask("ping", answer="pong") == {}


async def test_the_end_of_one_device_leaves_the_others(world: World) -> None:
    device, other = await world.device(), await world.device()
    async with device_socket(device) as socket, device_socket(other) as unharmed:
        await suspend(world, device)
        assert await socket.closed() == 4403
        assert await unharmed.ask("ping", answer="pong") == {}


async def _beat(socket: SocketClient, seconds: float) -> None:
    for _ in range(int(seconds / 0.4)):
        await asyncio.sleep(0.4)
        await socket.ask("heartbeat", {"status": "online"}, answer="heartbeat_ack")


async def test_an_idle_socket_ends_with_its_token_and_one_that_is_used_lives_until_the_maximum_age(
    start_world: StartWorld,
) -> None:
    world = await start_world(AIZEN_DEVICE_SESSION_TTL="1", AIZEN_DEVICE_SESSION_MAX_AGE="3")
    idle, busy = await world.device(), await world.device()
    async with device_socket(idle) as first, device_socket(busy) as second:
        # Pings and pongs are no use of the token, and neither is what the gateway does by itself.
        ending = asyncio.create_task(first.closed())
        await _beat(second, 2.0)
        assert ending.done()
        assert ending.result() == 4401
        assert await second.closed() == 4401
