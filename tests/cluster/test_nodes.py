"""Nodes of a cluster that die, come back empty, hand over to a replica, or give slots away, under running gateways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.support.clients import CustomerClient, DeviceClient, World, expect
from tests.support.cluster import Cluster, FreshCluster, client_of
from tests.support.gateway import StartGateway, StartWorld
from tests.support.outages import crash
from tests.support.portal import subscribe
from tests.support.shards import device_on, device_on_each
from tests.support.sockets import Closed, SocketClient, device_socket, portal_socket
from tests.support.waiting import eventually

# Seconds for a node to come back and be taken back by the others.
_BACK_S = 20.0


async def works(world: World, device: DeviceClient, session_id: str) -> bool:
    """Whether a command can be submitted and comes to the device by polling, which signs in when it must."""
    reply = await world.owner.post(f"/api/v1/customer/sessions/{session_id}/commands", {"type": "ping"})
    if reply.status == 503:
        return False
    command = expect(reply, 201)["command"]
    while True:
        reply = await device.post("/api/v1/device/commands/claim", {"waitMs": 2_000})
        if reply.status == 401:
            reply = await device.sign_in()
        if reply.status == 503:
            return False
        for claimed in expect(reply, 200).get("commands", []):
            expect(await device.report(claimed), 200)
            if claimed["id"] == command["id"]:
                return True


@pytest.mark.parametrize("whole_only", [True, False])
async def test_a_node_that_comes_back_empty_costs_no_command_and_no_restart(
    world: World, start_gateway: StartGateway, cluster: Cluster, whole_only: bool
) -> None:
    await cluster.serve_whole_only(whole_only)
    other = await start_gateway()
    devices = await device_on_each(cluster, world)
    sessions = [(await world.owner.open_session(device.device_id))["id"] for device in devices]
    before = [await world.owner.submit(session) for session in sessions]
    lost = cluster.nodes[1]
    await crash(lost)
    assert (await devices[1].post("/api/v1/device/commands/claim")).status == 503
    await lost.restart()
    await eventually(devices[1].sign_in, lambda reply: reply.status == 200, _BACK_S)
    for device, command in zip(devices, before, strict=True):
        claimed = await eventually(lambda d=device: d.post("/api/v1/device/commands/claim"), _some, _BACK_S)  # type: ignore[misc]
        assert claimed.body["commands"][0]["id"] == command["id"]
        expect(await device.report(claimed.body["commands"][0]), 200)
    for device, session in zip(devices, sessions, strict=True):
        device.url = other.url
        assert await works(world, device, session)


def _some(reply: Any) -> bool:
    return reply.status == 200 and bool(reply.body["commands"])


async def test_sockets_of_a_node_that_came_back_empty_begin_anew_and_others_go_on(
    world: World, start_gateway: StartGateway, cluster: Cluster
) -> None:
    other = await start_gateway()
    lost = cluster.nodes[2]
    gone, stays = await device_on(cluster, lost, world), await device_on(cluster, cluster.nodes[0], world)
    session = await world.owner.open_session(stays.device_id)
    async with device_socket(gone, url=other.url) as lose, device_socket(stays, url=other.url) as keep:
        await crash(lost)
        await lost.restart()
        # What it was is forgotten with its session: it signs in again.
        assert await asyncio.wait_for(lose.closed(), _BACK_S) == 4401
        command = await world.owner.submit(session["id"])
        assert (await keep.expect("command"))["payload"]["id"] == command["id"]
    expect(await gone.sign_in(), 200)
    session = await world.owner.open_session(gone.device_id)
    async with device_socket(gone, url=other.url) as socket:
        command = await world.owner.submit(session["id"])
        assert (await socket.expect("command"))["payload"]["id"] == command["id"]


async def test_a_portal_hears_on_after_any_node_was_restarted(
    world: World, start_gateway: StartGateway, cluster: Cluster
) -> None:
    there = replace(world.owner, url=(await start_gateway()).url)
    async with AsyncExitStack() as stack:
        socket = await stack.enter_async_context(subscribed(there))
        for number, node in enumerate(cluster.nodes):
            await crash(node)
            await node.restart()
            await cluster.agreed()
            await world.owner.provision(f"after-{number}")
            # Where its customer's events were on that node, what may have been missed has to be read anew.
            if not await hears(socket, f"after-{number}"):
                socket = await stack.enter_async_context(subscribed(there))
            await world.owner.provision(f"later-{number}")
            assert await hears(socket, f"later-{number}")


@asynccontextmanager
async def subscribed(customer: CustomerClient) -> AsyncIterator[SocketClient]:
    async with portal_socket(customer) as socket:
        await subscribe(socket)
        yield socket


async def hears(socket: SocketClient, device_id: str) -> bool:
    """Wait for an event of the device; False when the gateway tells to begin anew."""
    told = None
    async with asyncio.timeout(_BACK_S):
        while told != device_id:
            try:
                told = (await socket.expect("device_status"))["payload"]["deviceId"]
            except Closed as closed:
                if closed.code == 1013:
                    return False
                raise
    return True


async def test_a_replica_that_takes_over_is_found_and_sockets_are_heard_there(
    start_world: StartWorld, fresh_cluster: FreshCluster
) -> None:
    own = await fresh_cluster()
    world = await start_world(REDIS_URL=own.url)
    lost = own.nodes[0]
    device = await device_on(own, lost, world)
    session = await world.owner.open_session(device.device_id)
    await own.add_replica(lost)
    async with device_socket(device) as socket:
        first = await world.owner.submit(session["id"])
        pushed = (await socket.expect("command"))["payload"]
        assert pushed["id"] == first["id"]
        second = await world.owner.submit(session["id"])
        await crash(lost)
        # The replica has the session and the queue too: the socket stays, and is heard where its keys are now.
        result = {"commandId": pushed["id"], "claimToken": pushed["claimToken"], "status": "success"}
        await eventually(lambda: answered(socket, result), bool, _BACK_S)
        assert (await socket.expect("command"))["payload"]["id"] == second["id"]


async def answered(socket: SocketClient, result: dict[str, Any]) -> bool:
    """Whether a result is taken: the gateway may not have found the node yet."""
    await socket.send("command_result", {**result, "executedAt": "2026-01-02T03:04:05Z", "duration": 3}, "r")
    while True:
        frame = await socket.receive()
        if frame.get("requestId") == "r":
            return bool(frame["type"] == "ack")
        socket.earlier.append(frame)


async def test_a_device_whose_slot_moves_is_served_on_and_heard_at_its_new_node(
    world: World, start_gateway: StartGateway, cluster: Cluster
) -> None:
    other = await start_gateway()
    device = await device_on(cluster, cluster.nodes[0], world)
    tag = f"{{{device.device_id}}}"
    session = await world.owner.open_session(device.device_id)
    async with device_socket(device, "?prefetch=10", url=other.url) as socket:
        target = await cluster.begin_move(tag)
        for _ in range(3):
            reply = await world.owner.post(f"/api/v1/customer/sessions/{session['id']}/commands", {"type": "ping"})
            expect(reply, 201)
        await cluster.end_move(tag, target)
        told = {(await socket.expect("command"))["payload"]["id"] for _ in range(3)}
        assert len(told) == 3
        channel = f"aizen:{tag}:channel"
        async with client_of(target) as client:
            await eventually(lambda: client.pubsub_numsub(channel), lambda found: found == [(channel, 1)])
        command = await world.owner.submit(session["id"])
        assert (await socket.expect("command"))["payload"]["id"] == command["id"]
