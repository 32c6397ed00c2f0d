"""Signing in and out with a device's secret (contract sections 2 and 3)."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from typing import Any

import pytest

from tests.support.clients import API, DeviceClient, Reply, World, expect
from tests.support.gateway import StartGateway, StartWorld

WRONG = "not-the-secret"


async def sign_in(world: World, device_id: str, secret: str) -> Reply:
    return await world.anyone().post(f"{API}/device/auth", {"deviceId": device_id, "deviceSecret": secret})


async def logout(device: DeviceClient, body: Any = None) -> Reply:
    return await device.post(f"{API}/device/logout", body)


def without_request_id(reply: Reply) -> Any:
    return reply.status, {name: value for name, value in reply.body["error"].items() if name != "requestId"}


def other_session(device: DeviceClient) -> DeviceClient:
    """The same device, about to sign in once more."""
    return DeviceClient(device.http, device.url, {}, device_id=device.device_id, secret=device.secret)


async def test_a_device_gets_a_token_for_its_secret_that_lives_seven_days(world: World) -> None:
    device = await world.device("router-1")
    answer = expect(await device.sign_in(), 200)
    assert answer.keys() == {"token", "expiresIn", "deviceId"}
    assert answer["expiresIn"] == 7 * 24 * 3600
    assert answer["deviceId"] == "router-1"
    expect(await device.heartbeat(), 200)


async def test_a_token_has_at_least_256_random_bits_and_is_another_each_time(world: World) -> None:
    device = await world.device()
    tokens = {expect(await device.sign_in(), 200)["token"] for _ in range(4)}
    randoms = {token.removeprefix(device.device_id + ".") for token in tokens}
    assert len(randoms) == 4
    assert all(len(base64.urlsafe_b64decode(random + "=" * (-len(random) % 4))) >= 32 for random in randoms)


async def test_an_unknown_device_is_answered_like_a_wrong_secret(world: World) -> None:
    await world.device("router-1")
    await world.owner.provision("router-2")
    wrong = await sign_in(world, "router-1", WRONG)
    assert (wrong.status, wrong.code) == (401, "INVALID_CREDENTIALS")
    for device_id in ("nobody", "router-2"):
        assert without_request_id(await sign_in(world, device_id, WRONG)) == without_request_id(wrong)


async def test_the_secret_of_another_device_is_wrong(world: World) -> None:
    first, second = await world.device(), await world.device()
    assert (await sign_in(world, first.device_id, second.secret)).code == "INVALID_CREDENTIALS"


async def test_an_activation_code_is_no_secret(world: World) -> None:
    code = (await world.owner.provision("router-1"))["activationCode"]
    assert (await sign_in(world, "router-1", code)).code == "INVALID_CREDENTIALS"


async def test_a_suspended_device_is_told_so_with_the_right_secret_only(world: World) -> None:
    device = await world.device()
    expect(await world.owner.post(f"{API}/customer/devices/{device.device_id}/suspend"), 200)
    told = await sign_in(world, device.device_id, device.secret)
    assert (told.status, told.code) == (403, "DEVICE_SUSPENDED")
    assert (await sign_in(world, device.device_id, WRONG)).code == "INVALID_CREDENTIALS"


async def test_a_resumed_device_signs_in_with_the_secret_it_has(world: World) -> None:
    device = await world.device()
    expect(await world.owner.post(f"{API}/customer/devices/{device.device_id}/suspend"), 200)
    expect(await world.owner.post(f"{API}/customer/devices/{device.device_id}/resume"), 200)
    assert (await device.heartbeat()).status == 401
    expect(await device.sign_in(), 200)
    expect(await device.heartbeat(), 200)


async def test_a_device_may_hold_several_tokens(world: World) -> None:
    device = await world.device()
    second = other_session(device)
    expect(await second.sign_in(), 200)
    assert device.token != second.token
    expect(await device.heartbeat(), 200)
    expect(await second.heartbeat(), 200)


@pytest.mark.parametrize("body", [None, {}, {"reason": "going to sleep"}])
async def test_logout_ends_this_token_and_no_other(world: World, body: Any) -> None:
    device = await world.device()
    second = other_session(device)
    expect(await second.sign_in(), 200)
    gone = await logout(device, body)
    assert (gone.status, gone.body) == (204, None)
    assert (await device.heartbeat()).code == "UNAUTHENTICATED"
    assert (await logout(device, body)).code == "UNAUTHENTICATED"
    expect(await second.heartbeat(), 200)


async def test_a_device_that_signed_out_may_sign_in_again(world: World) -> None:
    device = await world.device()
    assert (await logout(device)).status == 204
    expect(await device.sign_in(), 200)
    expect(await device.heartbeat(), 200)


async def test_fields_that_the_gateway_does_not_know_are_ignored(world: World) -> None:
    device = await world.device()
    body = {"deviceId": device.device_id, "deviceSecret": device.secret, "agent": {"version": 3}}
    expect(await world.anyone().post(f"{API}/device/auth", body), 200)


async def test_a_sign_in_that_is_not_well_formed_names_its_field(world: World) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"deviceSecret": "s"}, "deviceId"),
        ({"deviceId": "router-1"}, "deviceSecret"),
        ({"deviceId": "no", "deviceSecret": "s"}, "deviceId"),
        ({"deviceId": ["router-1"], "deviceSecret": "s"}, "deviceId"),
        ({"deviceId": "router-1", "deviceSecret": 1}, "deviceSecret"),
        ({"deviceId": "router-1", "deviceSecret": ""}, "deviceSecret"),
        ({"deviceId": "router-1", "deviceSecret": None}, "deviceSecret"),
    ]
    for body, field in cases:
        reply = await world.anyone().post(f"{API}/device/auth", body)
        assert (reply.status, reply.code) == (400, "INVALID_REQUEST"), body
        assert reply.fields.keys() == {field}, body


async def test_failed_tries_are_limited_for_each_device_on_all_instances_together(
    start_gateway: StartGateway, start_world: StartWorld
) -> None:
    limited = await start_world(AIZEN_RATE_LIMIT_AUTH="3")
    first, second = limited.url, (await start_gateway(AIZEN_RATE_LIMIT_AUTH="3")).url
    device, other = await limited.device(), await limited.device()
    for url in (first, second, first):
        limited.url = url
        assert (await sign_in(limited, device.device_id, WRONG)).status == 401
    for url in (first, second):
        limited.url = url
        refused = await sign_in(limited, device.device_id, device.secret)
        assert (refused.status, refused.code) == (429, "RATE_LIMITED")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
    expect(await other.sign_in(), 200)


async def test_failed_tries_at_the_same_moment_are_limited_as_well(start_world: StartWorld) -> None:
    limited = await start_world(AIZEN_RATE_LIMIT_AUTH="3")
    device = await limited.device()
    replies = await asyncio.gather(*(sign_in(limited, device.device_id, WRONG) for _ in range(20)))
    assert Counter(reply.status for reply in replies) == {401: 3, 429: 17}
    assert all(1 <= int(reply.headers["Retry-After"]) <= 60 for reply in replies if reply.status == 429)


async def test_failed_tries_from_one_address_are_limited_at_ten_times_as_many(start_world: StartWorld) -> None:
    limited = await start_world(AIZEN_RATE_LIMIT_AUTH="1")
    device = await limited.device()
    for number in range(10):
        expect(await device.sign_in(), 200)
        assert (await sign_in(limited, f"nobody-{number}", WRONG)).status == 401
    refused = await device.sign_in()
    assert (refused.status, refused.code) == (429, "RATE_LIMITED")
    assert int(refused.headers["Retry-After"]) >= 1


async def test_right_tries_never_count(start_world: StartWorld) -> None:
    limited = await start_world(AIZEN_RATE_LIMIT_AUTH="1")
    device = await limited.device()
    for _ in range(12):
        expect(await device.sign_in(), 200)
    expect(await limited.owner.post(f"{API}/customer/devices/{device.device_id}/suspend"), 200)
    for _ in range(3):
        assert (await device.sign_in()).code == "DEVICE_SUSPENDED"


async def test_a_try_that_is_refused_for_the_limit_is_not_counted_again(start_world: StartWorld) -> None:
    """A device that keeps trying is let in as soon as the limit has room again: 600 a minute are 10 a second."""
    limited = await start_world(AIZEN_RATE_LIMIT_AUTH="600")
    device = await limited.device()
    statuses: list[int] = []
    while not statuses or statuses[-1] == 401:
        statuses.append((await sign_in(limited, device.device_id, WRONG)).status)
    assert statuses[-1] == 429
    assert len(statuses) > 600
    while (reply := await device.sign_in()).status == 429:
        assert reply.headers["Retry-After"] == "1"
    assert reply.status == 200
