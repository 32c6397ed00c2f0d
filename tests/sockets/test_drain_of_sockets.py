"""An instance that goes away: every socket is told, stuck ones do not hold it, nothing pushed is lost (section 7)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientSession, TCPConnector

from aizen_gateway.app import GATEWAY
from tests.support.clients import DeviceClient, World, expect
from tests.support.gateway import RunningGateway
from tests.support.line import Line
from tests.support.processes import GatewayProcess, StartGatewayProcess
from tests.support.pushes import pushed, result_of, shows
from tests.support.raw_socket import RawSocket, raw_device
from tests.support.sockets import Closed, SocketClient, device_socket, open_socket, portal_socket


def at(device: DeviceClient, process: GatewayProcess) -> DeviceClient:
    return replace(device, url=process.url)


async def draining(socket: SocketClient) -> tuple[int | None, str | None]:
    """The code and the reason with which the gateway closes a socket."""
    while (incoming := await socket.ws.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
        pass
    return socket.ws.close_code, incoming.extra


async def test_every_socket_is_closed_as_draining_and_what_nobody_took_is_given_back(
    start_gateway_process: StartGatewayProcess, line: Line
) -> None:
    process = await start_gateway_process(AIZEN_DRAIN_TIMEOUT="20")
    commands = [await line.submit() for _ in range(2)] + [await line.approved()]
    taken = await Line.open(line.world)
    await taken.submit()
    async with ClientSession(connector=TCPConnector(limit=0)) as http, AsyncExitStack() as stack:
        # More than one batch of them.
        owner = replace(line.world.owner, http=http, url=process.url)
        opening = [stack.enter_async_context(portal_socket(owner)) for _ in range(110)]
        portals = await asyncio.gather(*opening)
        untaken = await stack.enter_async_context(device_socket(at(line.device, process), "?prefetch=5"))
        for _ in commands:
            await pushed(untaken)
        busy = await stack.enter_async_context(device_socket(at(taken.device, process)))
        claimed = await pushed(busy)
        await busy.ask("ping", answer="pong")
        process.run.signal(signal.SIGTERM)
        ends = await asyncio.gather(*(draining(socket) for socket in (untaken, busy, *portals)))
        assert set(ends) == {(1001, "draining")}
        assert await process.run.ended() == 0
    assert "by force" not in process.run.text
    # At another instance the first device gets all of it at once, uncounted, and the other one answers what it has.
    again = await line.device.claim(limit=10)
    assert [(found["id"], found["attempt"]) for found in again] == [(command["id"], 1) for command in commands]
    assert (await taken.seen(claimed))["status"] == "claimed"
    assert expect(await taken.device.report(claimed), 200)["late"] is False
    await shows(line.world, line.device, "offline")


async def test_clients_that_do_not_close_do_not_hold_the_instance(
    start_gateway_process: StartGatewayProcess, world: World
) -> None:
    process = await start_gateway_process(AIZEN_DRAIN_TIMEOUT="12")
    devices = [at(await world.device(), process) for _ in range(3)]
    async with AsyncExitStack() as stack:
        for device in devices[:2]:
            await stack.enter_async_context(raw_device(device, receive_buffer=4096))
        half = await stack.enter_async_context(raw_device(devices[2]))
        # The start of a message that never ends.
        await half.send(b"\x01\x85" + bytes(4) + b'{"typ')
        for device in devices:
            await shows(world, device, "online")
        assert await process.run.stop() == 0
    assert process.run.entries[-1]["event"] == "stopped"
    for device in devices:
        assert (await shows(world, device, "offline"))["connection"] == "none"


@asynccontextmanager
async def beginning_to_drain(gateway: RunningGateway, device: DeviceClient) -> AsyncIterator[RawSocket]:
    """Inside, the instance drains and waits for a client that does not answer its close."""
    async with raw_device(device) as stuck:
        assert (await stuck.message())["type"] == "connected"
        draining = asyncio.create_task(gateway.app[GATEWAY].live.drain(5.0))
        with pytest.raises(Closed):
            await stuck.message()
        yield stuck
        await draining


async def test_while_draining_new_sockets_are_sent_elsewhere(world: World, gateway: RunningGateway) -> None:
    device = await world.device()
    async with beginning_to_drain(gateway, await world.device()):
        addresses: list[tuple[str, dict[str, str]]] = [
            ("/ws/device", {"X-Device-Token": device.token}),
            ("/ws/customer", world.owner.headers),
        ]
        for path, headers in addresses:
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with open_socket(world.http, world.url + path, headers=headers):
                    pass
            assert caught.value.status == 503
            assert caught.value.headers is not None
            assert int(caught.value.headers["Retry-After"]) >= 1
        # REST goes on.
        assert await device.claim() == []


async def test_an_agent_that_follows_a_rolling_restart_loses_no_command_and_runs_none_twice(
    start_gateway_process: StartGatewayProcess, line: Line
) -> None:
    processes = [await start_gateway_process() for _ in range(2)]
    commands = [await line.submit(maxDeliveries=1) for _ in range(20)]
    runs: dict[str, int] = {}
    unsent: dict[str, dict[str, Any]] = {}
    stopped: asyncio.Task[int] | None = None

    def run(claimed: dict[str, Any]) -> None:
        runs[claimed["id"]] = runs.get(claimed["id"], 0) + 1
        unsent[claimed["id"]] = result_of(claimed)

    while len(runs) < len(commands) or unsent:
        process = processes[0] if stopped is None else processes[1]
        try:
            async with device_socket(at(line.device, process), "?prefetch=5") as socket:
                for result in tuple(unsent.values()):
                    frame = await socket.ask_or_fail("command_result", result, answer="ack")
                    del unsent[result["commandId"]]
                    if frame["type"] == "error":
                        # Pushed just before the close: it was handed back, and comes again.
                        assert frame["payload"]["code"] == "INVALID_CLAIM_TOKEN"
                        del runs[result["commandId"]]
                    else:
                        assert frame["payload"]["status"] == "succeeded"
                while len(runs) < len(commands):
                    claimed = await pushed(socket)
                    run(claimed)
                    if len(runs) >= 7 and stopped is None:
                        stopped = asyncio.create_task(processes[0].run.stop())
                    await socket.ask("command_result", unsent[claimed["id"]], answer="ack")
                    del unsent[claimed["id"]]
        except Closed:
            # What came before the close came.
            for frame in socket.earlier:
                if frame["type"] == "command":
                    run(frame["payload"])
    assert stopped is not None
    assert await stopped == 0
    session = await line.world.owner.session(line.session_id)
    assert [(found["status"], found["attempt"]) for found in session["commands"]] == [("succeeded", 1)] * len(commands)
    assert set(runs.values()) == {1}
