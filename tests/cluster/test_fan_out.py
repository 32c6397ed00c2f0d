"""What is told from one instance to another, on a cluster: whichever node has the device or the customer."""

# What is imported is collected here too, and runs against the Redis of this directory.
# ruff: noqa: F401

from __future__ import annotations

from dataclasses import replace

import pytest

from aizen_gateway.storage import keys
from tests.sockets.test_events import (
    test_each_subject_is_told_in_order_however_many_change_it_at_once,
    test_event_ids_increase_over_all_that_a_customer_hears,
    test_nobody_hears_of_another_customer,
    test_the_status_of_a_device_is_told_with_each_change,
    test_what_happens_on_one_instance_is_heard_on_another,
)
from tests.support.clients import API, World, expect
from tests.support.cluster import Cluster, client_of
from tests.support.gateway import StartGateway
from tests.support.portal import events, subscribe
from tests.support.shards import device_on_each, worlds_on_each
from tests.support.sockets import device_socket, portal_socket


async def test_a_command_and_its_cancel_reach_a_socket_on_another_instance(
    world: World, start_gateway: StartGateway, cluster: Cluster
) -> None:
    other = await start_gateway()
    for device in await device_on_each(cluster, world):
        session = await world.owner.open_session(device.device_id)
        async with device_socket(device, url=other.url) as socket:
            command = await world.owner.submit(session["id"])
            pushed = (await socket.expect("command"))["payload"]
            assert pushed["id"] == command["id"]
            expect(await world.owner.cancel(command, reason="enough"), 200)
            told = (await socket.expect("command_canceled"))["payload"]
            assert told == {"id": command["id"], "reason": "enough"}


async def test_a_newer_socket_on_another_instance_closes_the_older(
    world: World, start_gateway: StartGateway, cluster: Cluster
) -> None:
    other = await start_gateway()
    for device in await device_on_each(cluster, world):
        async with device_socket(device) as older, device_socket(device, url=other.url) as newer:
            assert await older.closed() == 4409
            await newer.ask("heartbeat", {"status": "online"}, answer="heartbeat_ack")


@pytest.mark.parametrize(("deed", "code"), [("rotate-secret", 4401), ("suspend", 4403)])
async def test_what_ends_a_session_closes_its_socket_on_another_instance(
    world: World, start_gateway: StartGateway, cluster: Cluster, deed: str, code: int
) -> None:
    other = await start_gateway()
    for device in await device_on_each(cluster, world):
        async with device_socket(device, url=other.url) as socket:
            expect(await world.owner.post(f"{API}/customer/devices/{device.device_id}/{deed}"), 200)
            assert await socket.closed() == code


async def test_a_portal_resumes_on_another_instance_without_gap_or_repeat(
    world: World, start_gateway: StartGateway, cluster: Cluster
) -> None:
    other = await start_gateway()
    for customer in await worlds_on_each(cluster, world):
        await customer.owner.provision(f"known-{customer.customer_id}")
        async with portal_socket(customer.owner) as socket:
            await subscribe(socket)
            await customer.owner.provision(f"first-{customer.customer_id}")
            (first,) = await events(socket, 1)
        there = replace(customer.owner, url=other.url)
        for number in range(3):
            await there.provision(f"missed-{number}-{customer.customer_id}")
        async with portal_socket(there) as socket:
            answer = await subscribe(socket, last_event_id=first["eventId"])
            assert (answer["replayed"], answer["complete"]) == (3, True)
            await customer.owner.provision(f"live-{customer.customer_id}")
            told = [frame["payload"]["deviceId"] for frame in await events(socket, 4)]
            assert told == [f"{what}-{customer.customer_id}" for what in ("missed-0", "missed-1", "missed-2", "live")]


async def test_a_channel_is_joined_where_it_is_published_and_nowhere_else(world: World, cluster: Cluster) -> None:
    for device in await device_on_each(cluster, world):
        channel = keys.DeviceKeys.of(device.device_id).channel
        owner = await cluster.owner(channel)
        async with device_socket(device):
            for node in cluster.nodes:
                async with client_of(node) as client:
                    assert await client.pubsub_numsub(channel) == [(channel, int(node is owner))]
