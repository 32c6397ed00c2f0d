"""Clients that behave as no library does: whatever they do, nothing of them is left when they are gone (section 6)."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import uuid4

import psutil
import pytest
from aiohttp import ClientSession

from aizen_gateway.api.keys import SERVICES
from aizen_gateway.api.sockets.conversation import Conversation
from aizen_gateway.app import GATEWAY
from aizen_gateway.realtime.connection import Connection, ConnectionLimits
from aizen_gateway.services.device_socket import DeviceSocket
from aizen_gateway.storage.keys import DeviceKeys
from aizen_gateway.storage.postgres import Database, PostgresOptions
from tests.support.clients import DeviceClient, World
from tests.support.gateway import RunningGateway
from tests.support.outages import hung
from tests.support.pushes import StartLimited, holds_sockets, result_of
from tests.support.raw_socket import Opcode, RawSocket, frame_of, raw_device, text_of
from tests.support.servers import FreshPostgres
from tests.support.sockets import SocketClient, device_socket
from tests.support.waiting import eventually

LIMITS = ConnectionLimits(ping_every=0.5, pong_within=0.5, close_within=0.5)
_MEGABYTE = 1024 * 1024

Behaviour = Callable[[RawSocket], Awaitable[None]]


async def says_nothing(socket: RawSocket) -> None:
    """Not even a pong."""


async def half_closes(socket: RawSocket) -> None:
    socket.writer.write_eof()


async def sends_garbage(socket: RawSocket) -> None:
    await socket.send(bytes(range(256)) * 64)


async def speaks_http(socket: RawSocket) -> None:
    await socket.send(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n")


async def announces_a_huge_frame(socket: RawSocket) -> None:
    await socket.send(b"\x81\xff" + struct.pack("!Q", 2**62) + bytes(4) + b"x" * 4096)


async def announces_more_than_there_is(socket: RawSocket) -> None:
    await socket.send(b"\x81\xff" + struct.pack("!Q", 2**64 - 1) + bytes(4))


async def stops_in_a_header(socket: RawSocket) -> None:
    await socket.send(b"\x81")


async def stops_in_a_frame(socket: RawSocket) -> None:
    await socket.send(b"\x81\xfe" + struct.pack("!H", 60_000) + bytes(4) + b"{")


async def never_ends_its_message(socket: RawSocket) -> None:
    await socket.send(frame_of(Opcode.TEXT, b"{", fin=False), *[frame_of(Opcode.CONTINUATION, fin=False)] * 1000)


async def sends_no_mask(socket: RawSocket) -> None:
    await socket.send(b"\x89\x00")


async def cuts(socket: RawSocket) -> None:
    socket.cut()


async def cuts_in_a_frame(socket: RawSocket) -> None:
    await socket.send(text_of("heartbeat", {"status": "online"})[:-3])
    socket.cut()


async def closes_and_stays(socket: RawSocket) -> None:
    await socket.send(frame_of(Opcode.CLOSE, b"\x03\xe8"))


async def closes_wrongly(socket: RawSocket) -> None:
    await socket.send(frame_of(Opcode.CLOSE, b"\x00"))


async def talks_after_its_close(socket: RawSocket) -> None:
    await socket.send(frame_of(Opcode.CLOSE), *[text_of("heartbeat", {"status": "online"})] * 50)


async def claims_and_cuts(socket: RawSocket) -> None:
    await socket.send(*[text_of("claim", {"limit": 10})] * 5)
    socket.cut()


BEHAVIOURS: list[Behaviour] = [
    says_nothing,
    half_closes,
    sends_garbage,
    speaks_http,
    announces_a_huge_frame,
    announces_more_than_there_is,
    stops_in_a_header,
    stops_in_a_frame,
    never_ends_its_message,
    sends_no_mask,
    cuts,
    cuts_in_a_frame,
    closes_and_stays,
    closes_wrongly,
    talks_after_its_close,
    claims_and_cuts,
]


_PARTS = ("api/sockets/", "realtime/connection", "realtime/live", "services/device_socket")


def tasks_of_sockets() -> list[str]:
    """What still runs for some socket of this process."""
    codes = [getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()]
    return [code.co_qualname for code in codes if code and any(part in code.co_filename for part in _PARTS)]


def objects_of_sockets() -> list[type]:
    """What there still is of some socket of this process."""
    gc.collect()
    kinds = (Connection, Conversation, DeviceSocket)
    return [type(one) for one in gc.get_objects() if type(one) in kinds]


async def nothing_is_left(gateway: RunningGateway) -> None:
    """Return once nothing is left of any socket of the instance."""
    services, bus = gateway.app[SERVICES], gateway.app[GATEWAY].bus

    async def left() -> list[object]:
        handlers = [handler for of_channel in bus._handlers.values() for handler in of_channel]
        return [*services.device_sockets.open_sockets, *handlers, *tasks_of_sockets(), *[None] * services.live.count]

    await eventually(left, lambda found: not found)
    # One of each kind at most: the last one that the subscriber has told something.
    objects = objects_of_sockets()
    assert len(objects) == len(set(objects))


async def client(device: DeviceClient, behave: Behaviour) -> None:
    """Open a socket, behave, and wait to be let go, whatever one's own end of the connection is doing."""
    socket = await RawSocket.open(device.url, "/ws/device", device.headers)
    assert (await socket.message())["type"] == "connected"
    await behave(socket)
    await socket.gone()
    socket.cut()


async def test_whatever_a_client_does_nothing_of_it_is_left(world: World, start_limited: StartLimited) -> None:
    limited = await start_limited(LIMITS)
    devices = [replace(await world.device(), url=limited.url) for _ in BEHAVIOURS]
    for device in devices:
        session = await world.owner.open_session(device.device_id)
        await world.owner.submit(session["id"])
    await asyncio.gather(*map(client, devices, BEHAVIOURS))
    await nothing_is_left(limited)
    # And the instance is as good as new.
    async with device_socket(devices[0]) as socket:
        assert await socket.ask("ping", answer="pong") == {}


async def keeps_asking(bystander: SocketClient) -> None:
    """A device like any other, which must not notice anything."""
    while True:
        assert await bystander.ask("ping", answer="pong") == {}
        await asyncio.sleep(0.05)


async def test_a_client_that_stops_reading_costs_little_and_is_let_go(
    world: World, start_limited: StartLimited
) -> None:
    limited = await start_limited(LIMITS, AIZEN_RATE_LIMIT_SOCKET="0")
    device, other = [replace(await world.device(), url=limited.url) for _ in range(2)]
    async with device_socket(other) as bystander:
        asking = asyncio.create_task(keeps_asking(bystander))
        before = psutil.Process().memory_info().rss
        async with raw_device(device, receive_buffer=4096) as stuck:
            # Each is answered with much more than it is, and nothing is read.
            question = frame_of(Opcode.TEXT, b'{"requestId":"%s"}' % (b"x" * 128))
            with pytest.raises(ConnectionError):
                await stuck.send_for_ever(question * 200)
            assert psutil.Process().memory_info().rss - before < 32 * _MEGABYTE
        await holds_sockets(limited, 1)
        assert not asking.done()
        asking.cancel()
    await nothing_is_left(limited)


async def test_a_flood_of_control_frames_ends_the_socket(world: World, start_limited: StartLimited) -> None:
    limited = await start_limited(LIMITS)
    device, other = [replace(await world.device(), url=limited.url) for _ in range(2)]
    async with device_socket(other) as bystander:
        asking = asyncio.create_task(keeps_asking(bystander))
        for opcode in (Opcode.PING, Opcode.PONG):
            async with raw_device(device) as socket:
                await socket.send(frame_of(opcode) * 5000)
                assert await socket.closed() in (4429, None)
            await holds_sockets(limited, 1)
        assert not asking.done()
        asking.cancel()


async def test_a_client_that_is_not_read_because_the_gateway_is_behind_is_not_taken_for_dead(
    start_limited: StartLimited, fresh_postgres: FreshPostgres, http: ClientSession
) -> None:
    postgres = await fresh_postgres()
    limited = await start_limited(LIMITS, DATABASE_URL=postgres.url)
    database = Database(PostgresOptions(postgres.url, pool_size=2))
    world = await World.create(limited.url, http, database)
    device = await world.device()
    async with raw_device(device, "?prefetch=0") as socket:
        assert (await socket.message())["type"] == "connected"
        with hung(postgres):
            # More than are taken at once, each of which needs the database; the pongs wait behind all of them.
            unknown = result_of({"id": str(uuid4()), "claimToken": "none"})
            await socket.send(*[text_of("command_result", unknown)] * 100)
            pings = 0
            while pings < 2:
                opcode, _ = await socket.receive()
                if opcode is Opcode.PING:
                    await socket.send(frame_of(Opcode.PONG))
                    pings += 1
        codes = [(await socket.message())["payload"]["code"] for _ in range(100)]
        assert codes[-1] == "COMMAND_NOT_FOUND"
    await database.close()


async def test_a_device_that_connects_over_and_over_leaves_one_channel(world: World, gateway: RunningGateway) -> None:
    device = await world.device()
    bus = gateway.app[GATEWAY].bus
    for _ in range(20):
        async with raw_device(device):
            pass
    await nothing_is_left(gateway)
    ours = [channel for channel in bus._joined if channel == DeviceKeys.of(device.device_id).channel]
    assert len(ours) <= 1
