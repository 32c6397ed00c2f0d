"""Each user has a number of calls a minute, counted over all instances (contract sections 1 and 7)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.support.clients import API, CustomerClient, Reply, expect, token_for
from tests.support.gateway import StartGateway, StartWorld

DEVICES = f"{API}/customer/devices"


async def asks(who: CustomerClient, times: int) -> list[Reply]:
    return [await who.get(DEVICES) for _ in range(times)]


async def test_a_burst_of_a_minutes_calls_passes_and_the_next_is_429_with_when_to_come_back(
    start_world: StartWorld,
) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_CUSTOMER="6")
    replies = await asks(world.owner, 8)
    assert [reply.status for reply in replies] == [200] * 6 + [429] * 2
    last = replies[-1]
    assert last.code == "RATE_LIMITED"
    assert 1 <= int(last.headers["Retry-After"]) <= 10
    assert last.body["error"]["requestId"] == last.headers["X-Request-ID"]


async def test_after_retry_after_one_more_call_passes(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_CUSTOMER="60")
    replies = await asyncio.gather(*(world.owner.get(DEVICES) for _ in range(80)))
    refused = [reply for reply in replies if reply.status == 429]
    assert refused
    await asyncio.sleep(int(refused[-1].headers["Retry-After"]))
    expect(await world.owner.get(DEVICES), 200)


async def test_users_do_not_use_up_each_others_calls(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_CUSTOMER="3")
    other = await world.another()
    assert (await asks(world.owner, 4))[-1].status == 429
    for who in (world.admin, world.viewer, world.service, other.owner, other.service):
        assert [reply.status for reply in await asks(who, 3)] == [200] * 3


async def test_calls_of_one_user_count_over_all_instances_and_all_its_tokens(
    start_world: StartWorld, start_gateway: StartGateway
) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_CUSTOMER="4")
    elsewhere = (await start_gateway(AIZEN_RATE_LIMIT_CUSTOMER="4")).url
    another_token = {"Authorization": f"Bearer {token_for(world.owner.user_id, ttl=1800)}"}
    who = [world.owner, replace(world.owner, url=elsewhere, headers=another_token)]
    replies = [await client.get(DEVICES) for client in who * 3]
    assert [reply.status for reply in replies] == [200] * 4 + [429] * 2


async def test_a_refused_call_does_nothing(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_CUSTOMER="1")
    expect(await world.owner.get(DEVICES), 200)
    refused = await world.owner.post(f"{DEVICES}/provision", {"deviceId": "edge-1"})
    assert refused.status == 429
    assert expect(await world.admin.get(DEVICES), 200)["total"] == 0


async def test_strangers_do_not_use_up_a_users_calls(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_CUSTOMER="2")
    forged = {"Authorization": world.owner.headers["Authorization"][:-4] + "AAAA"}
    for _ in range(3):
        assert (await world.anyone().call("GET", DEVICES, headers=forged)).status == 401
    assert [reply.status for reply in await asks(world.owner, 2)] == [200] * 2


async def test_zero_is_no_limit(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_CUSTOMER="0")
    assert {reply.status for reply in await asyncio.gather(*(world.owner.get(DEVICES) for _ in range(50)))} == {200}
