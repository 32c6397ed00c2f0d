"""What happens while a device's socket is being opened is not lost, however much it is (contract section 6)."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import orjson

from aizen_gateway.api.keys import SERVICES
from aizen_gateway.domain.values import Origin
from aizen_gateway.realtime.connection import Connection
from aizen_gateway.services.device_socket import DeviceSocket
from aizen_gateway.services.prefetch import SocketOptions
from tests.support.gateway import RunningGateway
from tests.support.line import Line
from tests.support.pipe import Pipe, running
from tests.support.waiting import eventually


def commands_in(pipe: Pipe) -> list[str]:
    """The ids of the commands that were pushed."""
    frames = [orjson.loads(sent) for sent in pipe.sent if sent.startswith(b"{")]
    return [frame["payload"]["id"] for frame in frames if frame["type"] == "command"]


async def taken_over(line: Line, gateway: RunningGateway, connection: Connection) -> DeviceSocket:
    """The device's socket, which has not been greeted yet."""
    sockets = gateway.app[SERVICES].device_sockets
    return await sockets.open(connection, line.device.token, SocketOptions(1, 300_000), Origin(str(uuid4()), None))


async def pushes_of(pipe: Pipe) -> list[str]:
    return await eventually(lambda: asyncio.sleep(0, commands_in(pipe)), bool)


async def test_a_command_whose_hint_was_lost_before_the_greeting_is_pushed(line: Line, gateway: RunningGateway) -> None:
    pipe = Pipe()
    pipe.opened.set()
    async with running(pipe) as connection:
        socket = await taken_over(line, gateway, connection)
        try:
            socket.gap()
            command = await line.submit()
            socket.gap()
            socket.begin()
            assert await pushes_of(pipe) == [command["id"]]
        finally:
            connection.end(1000, "")
            await gateway.app[SERVICES].device_sockets.leave(socket)


async def test_a_command_among_more_hints_than_are_kept_before_the_greeting_is_pushed(
    line: Line, gateway: RunningGateway
) -> None:
    pipe = Pipe()
    pipe.opened.set()
    async with running(pipe) as connection:
        socket = await taken_over(line, gateway, connection)
        try:
            command = await line.submit()
            for _ in range(100):
                socket.message("logout of-another")
            socket.begin()
            assert await pushes_of(pipe) == [command["id"]]
        finally:
            connection.end(1000, "")
            await gateway.app[SERVICES].device_sockets.leave(socket)
