"""What tests of device sockets share: answers to pushed commands, presence as portals hear it, and other limits."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis

from aizen_gateway.api.keys import SERVICES
from aizen_gateway.api.server import GatewayRunner
from aizen_gateway.app import create_app
from aizen_gateway.realtime.connection import ConnectionLimits
from aizen_gateway.settings import Settings

from .clients import JWT_SECRET, DeviceClient, World
from .gateway import RunningGateway, StartGateway
from .sockets import SocketClient
from .waiting import eventually

Payload = dict[str, Any]
StartLimited = Callable[..., Awaitable[RunningGateway]]
_instances = itertools.count(1)


def result_of(claimed: Mapping[str, Any], status: str = "success", **fields: Any) -> Payload:
    """The payload of `command_result` for a command that was pushed or claimed."""
    return {
        "commandId": claimed["id"],
        "claimToken": claimed["claimToken"],
        "status": status,
        "executedAt": "2026-01-02T03:04:05.678Z",
        "duration": 12,
        **fields,
    }


async def pushed(socket: SocketClient) -> Payload:
    """The next command that is pushed."""
    return dict((await socket.expect("command"))["payload"])


async def finish(socket: SocketClient, claimed: Mapping[str, Any]) -> Payload:
    """Report a success over the socket and return what the gateway says to it."""
    return await socket.ask("command_result", result_of(claimed), answer="ack")


async def presence_events(portal: SocketClient, device: DeviceClient, count: int) -> list[tuple[str, str]]:
    """The next `count` changes of the device that a portal hears: status and connection. Other frames are kept."""

    def ours(frame: Mapping[str, Any]) -> bool:
        return bool(frame["type"] == "device_status" and frame["payload"]["deviceId"] == device.device_id)

    while len(found := [frame for frame in portal.earlier if ours(frame)]) < count:
        portal.earlier.append(await portal.receive())
    for frame in found[:count]:
        portal.earlier.remove(frame)
    return [(frame["payload"]["status"], frame["payload"]["connection"]) for frame in found[:count]]


async def shows(world: World, device: DeviceClient, status: str, connection: str | None = None) -> Payload:
    """The device as its customer sees it, once it is in `status`, and in touch by `connection`."""

    def holds(seen: Payload) -> bool:
        return bool(seen["status"] == status and connection in (None, seen["connection"]))

    return await eventually(lambda: world.owner.status(device.device_id), holds)


def sockets_at(gateway: RunningGateway) -> int:
    """How many devices' sockets the instance holds."""
    return len(gateway.app[SERVICES].device_sockets.open_sockets)


async def holds_sockets(gateway: RunningGateway, count: int) -> None:
    """Return once the instance holds `count` devices' sockets."""

    async def read() -> int:
        return sockets_at(gateway)

    await eventually(read, lambda found: found == count)


@asynccontextmanager
async def unheard(valkey: Redis, instances: int) -> AsyncIterator[None]:
    """Inside, the first `instances` do not hear what is published: their subscribers are cut, and cannot come back."""
    subscribers = sorted(int(found["id"]) for found in await valkey.client_list(_type="pubsub"))
    assert len(subscribers) >= instances
    await valkey.acl_setuser("default", enabled=True, commands=["-subscribe"])
    try:
        for subscriber in subscribers[:instances]:
            await valkey.client_kill_filter(_id=str(subscriber))
        yield
    finally:
        await valkey.acl_setuser("default", enabled=True, commands=["+subscribe"])


@pytest.fixture
async def second(start_gateway: StartGateway) -> RunningGateway:
    """Another instance beside that of `world`."""
    return await start_gateway()


@pytest.fixture
async def start_limited(database_url: str, redis_url: str) -> AsyncIterator[StartLimited]:
    """Call it with other limits of sockets for an instance; keyword arguments are environment variables."""
    async with AsyncExitStack() as stack:

        async def start(limits: ConnectionLimits, **variables: str) -> RunningGateway:
            environment = {
                "DATABASE_URL": database_url,
                "REDIS_URL": redis_url,
                "SUPABASE_JWT_SECRET": JWT_SECRET,
                "AIZEN_INSTANCE_ID": f"limited-{next(_instances)}",
            } | variables
            app = create_app(Settings.from_env(environment), socket_limits=limits)
            runner = GatewayRunner(app, shutdown_timeout=2.0)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            gateway = RunningGateway(f"http://{host}:{port}", app, runner)
            stack.push_async_callback(gateway.stop)
            return gateway

        yield start
