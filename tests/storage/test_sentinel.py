"""A Redis behind Sentinel: the gateway finds the master, waits for its turn as ever, and follows it to the replica."""

from __future__ import annotations

import asyncio

from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from tests.support.clients import expect
from tests.support.gateway import StartWorld
from tests.support.outages import crash
from tests.support.portal import subscribe
from tests.support.sentinel import StartWatched
from tests.support.sockets import device_socket, portal_socket
from tests.support.waiting import eventually


async def test_the_main_job_is_done_and_goes_on_when_the_replica_takes_over(
    start_world: StartWorld, watched: StartWatched
) -> None:
    servers = await watched()
    world = await start_world(REDIS_URL=servers.url)
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    async with portal_socket(world.owner) as portal, device_socket(device) as socket:
        await subscribe(portal)
        command = await world.owner.submit(session["id"])
        pushed = (await socket.expect("command"))["payload"]
        assert pushed["id"] == command["id"]
        expect(await device.report(pushed), 200)

        await servers.replicated()
        await crash(servers.master)
        submitted = await eventually(
            lambda: world.owner.post(f"/api/v1/customer/sessions/{session['id']}/commands", {"type": "ping"}),
            lambda reply: reply.status == 201,
            within=20.0,
        )
        pushed = (await asyncio.wait_for(socket.expect("command"), 20.0))["payload"]
        assert pushed["id"] == submitted.body["command"]["id"]
        assert (await eventually(lambda: device.report(pushed), lambda reply: reply.status == 200)).status == 200
        told = ""
        while told != "succeeded":
            told = (await portal.expect("command_update"))["payload"]["command"]["status"]


async def test_calls_beyond_the_connections_wait_for_their_turn(watched: StartWatched) -> None:
    servers = await watched()
    store = RedisStore.connect(RedisOptions(servers.url))
    counted = await asyncio.gather(*(store.call("INCR", "key") for _ in range(100)))
    assert sorted(map(int, counted)) == list(range(1, 101))
    await store.close()
