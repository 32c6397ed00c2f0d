"""Device session tokens: where they are sent, how long they live, what ends them, how often they are used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.secrets import new_session_token
from aizen_gateway.storage.keys import DeviceKeys
from tests.support.clients import API, Client, DeviceClient, Reply, World, expect
from tests.support.gateway import RunningGateway, StartGateway, StartWorld
from tests.support.inside import redis_ms, waits
from tests.support.waiting import eventually

COMMAND = f"{API}/device/commands/11111111-2222-4333-8444-555555555555"
ROUTES = [
    ("POST", f"{API}/device/logout", {}),
    ("POST", f"{API}/device/heartbeat", {"status": "online"}),
    ("POST", f"{API}/device/commands/claim", {}),
    ("POST", f"{COMMAND}/extend", {"claimToken": "t"}),
    (
        "POST",
        f"{COMMAND}/result",
        {"claimToken": "t", "status": "success", "executedAt": "2026-01-01T00:00:00Z", "duration": 1},
    ),
    ("POST", f"{COMMAND}/release", {"claimToken": "t"}),
    ("GET", COMMAND, None),
]


async def beat_with(device: DeviceClient, **headers: str) -> Reply:
    """A heartbeat with these headers instead of the device's own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await Client(device.http, device.url, named).post(f"{API}/device/heartbeat", {"status": "online"})


def at(device: DeviceClient, gateway: RunningGateway) -> DeviceClient:
    """The same device, with the same token, at another instance."""
    return replace(device, url=gateway.url)


async def test_a_token_is_taken_from_each_of_its_three_headers(world: World) -> None:
    device = await world.device()
    expect(await beat_with(device, X_Device_Token=device.token), 200)
    expect(await beat_with(device, X_Device_Session=device.token), 200)
    expect(await beat_with(device, Authorization=f"Bearer {device.token}"), 200)
    expect(await beat_with(device, Authorization=f"bearer {device.token}"), 200)


@pytest.mark.parametrize("route", ROUTES, ids=["logout", "heartbeat", "claim", "extend", "result", "release", "read"])
async def test_no_call_is_answered_without_a_good_token(world: World, route: tuple[str, str, Any]) -> None:
    method, path, body = route
    device = await world.device("router-1")
    forged = new_session_token("router-1")
    refused = [
        {},
        {"X-Device-Token": ""},
        {"X-Device-Token": "nonsense"},
        {"X-Device-Token": forged},
        {"X-Device-Session": forged},
        {"Authorization": f"Bearer {forged}"},
        {"Authorization": device.token},
        {"Authorization": f"Basic {device.token}"},
        {"X-Device-Token": device.token[:-1]},
        {"X-Device-Token": device.token + "A"},
        {"X-Device-Token": device.token.replace("router-1", "router-2")},
        {"X-Device-Token": "router-1." + "é" * 43},
        {"Cookie": f"token={device.token}"},
    ]
    for headers in refused:
        reply = await world.anyone().call(method, path, body, headers=headers)
        assert (reply.status, reply.code) == (401, "UNAUTHENTICATED"), headers


async def test_a_customers_token_is_no_device_token(world: World) -> None:
    reply = await world.owner.post(f"{API}/device/heartbeat", {"status": "online"})
    assert (reply.status, reply.code) == (401, "UNAUTHENTICATED")


async def test_a_device_token_is_no_customers_token(world: World) -> None:
    device = await world.device()
    reply = await world.anyone().get(f"{API}/customer/devices", Authorization=f"Bearer {device.token}")
    assert (reply.status, reply.code) == (401, "UNAUTHENTICATED")


async def test_a_token_is_good_on_every_instance(start_gateway: StartGateway, world: World) -> None:
    device = await world.device()
    expect(await at(device, await start_gateway()).heartbeat(), 200)


async def test_an_answer_never_repeats_the_token(world: World) -> None:
    forged = new_session_token("router-1")
    reply = await world.anyone().post(f"{API}/device/heartbeat", {"status": "online"}, X_Device_Token=forged)
    assert forged.partition(".")[2] not in str(reply.body) + str(reply.headers)


async def test_a_token_that_is_used_outlives_its_time_and_one_that_is_not_ends(
    start_world: StartWorld, valkey: Redis
) -> None:
    world = await start_world(AIZEN_DEVICE_SESSION_TTL="2", AIZEN_RATE_LIMIT_DEVICE="0")
    used, unused = [await world.device() for _ in range(2)]
    assert expect(await unused.sign_in(), 200)["expiresIn"] == 2
    assert expect(await used.sign_in(), 200)["expiresIn"] == 2
    start = await redis_ms(valkey)
    while await redis_ms(valkey) <= start + 2_000:
        expect(await used.heartbeat(), 200)
    assert (await unused.heartbeat()).code == "UNAUTHENTICATED"
    expect(await used.heartbeat(), 200)


@pytest.mark.parametrize("call", ["claim", "heartbeat", "read"])
async def test_every_call_slides_its_token(world: World, valkey: Redis, call: str) -> None:
    device = await world.device()
    sessions = DeviceKeys.of(device.device_id).sessions
    before = await valkey.hgetall(sessions)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "claim": device.claim,
        "heartbeat": device.heartbeat,
        "read": lambda: device.read(str(uuid4())),
    }
    await calls[call]()
    assert (await valkey.hgetall(sessions)).keys() == before.keys()
    assert await valkey.hgetall(sessions) != before


async def test_sliding_never_passes_the_maximum_age(start_world: StartWorld, valkey: Redis) -> None:
    world = await start_world(
        AIZEN_DEVICE_SESSION_TTL="2", AIZEN_DEVICE_SESSION_MAX_AGE="2", AIZEN_RATE_LIMIT_DEVICE="0"
    )
    device = await world.device()
    start = await redis_ms(valkey)
    expect(await device.sign_in(), 200)
    good = 0
    while (reply := await device.heartbeat()).status == 200:
        good += 1
        assert await redis_ms(valkey) < start + 5_000
    assert reply.code == "UNAUTHENTICATED"
    assert good > 1
    expect(await device.sign_in(), 200)


async def test_a_token_does_not_live_longer_than_the_maximum_age_from_the_start(
    start_world: StartWorld,
) -> None:
    device = await (await start_world(AIZEN_DEVICE_SESSION_MAX_AGE="60")).device()
    assert expect(await device.sign_in(), 200)["expiresIn"] == 60


async def test_a_token_that_ended_leaves_nothing_in_redis(start_world: StartWorld, valkey: Redis) -> None:
    await (await start_world(AIZEN_DEVICE_SESSION_TTL="1")).device("router-1")
    sessions = DeviceKeys.of("router-1").sessions
    assert await valkey.exists(sessions)
    await eventually(lambda: valkey.exists(sessions), lambda found: not found)


ENDINGS = ["rotate-secret", "suspend", "delete", "register again"]


async def end(world: World, device: DeviceClient, how: str) -> None:
    """End all sessions of the device in one of the ways that do."""
    path = f"{API}/customer/devices/{device.device_id}"
    if how == "delete":
        assert (await world.owner.call("DELETE", path)).status == 204
    elif how == "register again":
        # Rotation ends the sessions itself, so registering is tried where the code may be used again: unused secret.
        await world.database.execute(
            "update aizen.devices set secret_used_at = null, activation_used_at = now() where id = $1", device.device_id
        )
        body = {"deviceId": device.device_id, "activationCode": CODES[device.device_id]}
        expect(await world.anyone().post(f"{API}/device/register", body), 201)
    else:
        expect(await world.owner.post(f"{path}/{how}"), 200)


CODES: dict[str, str] = {}


async def device_with_code(world: World, device_id: str) -> DeviceClient:
    """As `World.device`, remembering the activation code."""
    CODES[device_id] = (await world.owner.provision(device_id))["activationCode"]
    body = {"deviceId": device_id, "activationCode": CODES[device_id]}
    secret = expect(await world.anyone().post(f"{API}/device/register", body), 201)["deviceSecret"]
    device = DeviceClient(world.http, world.url, {}, device_id=device_id, secret=secret)
    expect(await device.sign_in(), 200)
    return device


@pytest.mark.parametrize("how", ENDINGS)
async def test_what_ends_a_devices_sessions_ends_them_at_once_on_every_instance(
    start_gateway: StartGateway, world: World, how: str
) -> None:
    device = await device_with_code(world, "router-1")
    second = replace(device, headers={})
    expect(await second.sign_in(), 200)
    elsewhere = at(device, await start_gateway())
    expect(await elsewhere.heartbeat(), 200)
    await end(world, device, how)
    for one in (elsewhere, device, second):
        assert (await one.heartbeat()).code == "UNAUTHENTICATED"


@pytest.mark.parametrize("how", ENDINGS)
async def test_a_long_poll_of_a_session_that_ends_is_refused_at_once(
    start_gateway: StartGateway, world: World, valkey: Redis, how: str
) -> None:
    device = await device_with_code(world, "router-1")
    elsewhere = at(device, await start_gateway())
    poll = asyncio.create_task(elsewhere.post(f"{API}/device/commands/claim", {"waitMs": 30_000}))
    await waits(valkey, "router-1")
    await end(world, device, how)
    async with asyncio.timeout(10):
        assert (await poll).code == "UNAUTHENTICATED"


async def test_one_devices_end_ends_no_others_sessions(world: World) -> None:
    device, other = await world.device(), await world.device()
    await end(world, device, "rotate-secret")
    expect(await other.heartbeat(), 200)


async def test_a_device_whose_token_redis_lost_signs_in_again(world: World, valkey: Redis) -> None:
    device = await world.device()
    await valkey.flushall()
    assert (await device.heartbeat()).code == "UNAUTHENTICATED"
    expect(await device.sign_in(), 200)
    expect(await device.heartbeat(), 200)


async def test_the_calls_of_a_device_are_limited_on_all_instances_together(
    start_gateway: StartGateway, world: World
) -> None:
    first, second = [await start_gateway(AIZEN_RATE_LIMIT_DEVICE="4") for _ in range(2)]
    device, other = await world.device(), await world.device()
    expect(await at(device, first).heartbeat(), 200)
    assert await at(device, second).claim() == []
    assert (await at(device, first).read(str(uuid4()))).status == 404
    expect(await at(device, second).heartbeat(), 200)
    for gateway in (first, second):
        refused = await at(device, gateway).heartbeat()
        assert (refused.status, refused.code) == (429, "RATE_LIMITED")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert (await at(device, gateway).post(f"{API}/device/commands/claim", {})).code == "RATE_LIMITED"
        assert (await at(device, gateway).read(str(uuid4()))).code == "RATE_LIMITED"
    expect(await at(other, first).heartbeat(), 200)


async def test_a_device_may_call_300_times_a_minute_by_default(world: World) -> None:
    device = await world.device()
    statuses: list[int] = []
    while not statuses or statuses[-1] == 200:
        statuses.append((await device.heartbeat()).status)
    assert statuses[-1] == 429
    assert len(statuses) > 300


async def test_calls_without_a_good_token_do_not_use_up_the_devices_limit(
    start_world: StartWorld,
) -> None:
    device = await (await start_world(AIZEN_RATE_LIMIT_DEVICE="1")).device("router-1")
    for _ in range(3):
        assert (await beat_with(device, X_Device_Token=new_session_token("router-1"))).status == 401
    expect(await device.heartbeat(), 200)


async def test_a_limit_of_zero_is_none(start_world: StartWorld) -> None:
    device = await (await start_world(AIZEN_RATE_LIMIT_DEVICE="0")).device()
    assert {(await device.heartbeat()).status for _ in range(310)} == {200}
