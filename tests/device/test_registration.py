"""How a device comes in: activation codes, and the secret that one is exchanged for (contract sections 2 and 3)."""

from __future__ import annotations

import asyncio
import base64
import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from aizen_gateway.domain.clock import from_ms
from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, DeviceClient, Reply, World, expect
from tests.support.gateway import StartWorld
from tests.support.inside import all_of_postgres, all_of_redis, redis_ms
from tests.support.waiting import TIME

CODE = re.compile(r"[0-9A-HJKMNP-TV-Z]{5}-[0-9A-HJKMNP-TV-Z]{5}")
WRONG = "00000-00000"


async def register(world: World, device_id: str, code: str, **fields: Any) -> Reply:
    body = {"deviceId": device_id, "activationCode": code, **fields}
    return await world.anyone().post(f"{API}/device/register", body)


async def sign_in(world: World, device_id: str, secret: str) -> Reply:
    return await world.anyone().post(f"{API}/device/auth", {"deviceId": device_id, "deviceSecret": secret})


async def provision(world: World, device_id: str) -> str:
    code: str = (await world.owner.provision(device_id))["activationCode"]
    return code


async def code_with(world: World, device_id: str, digit: str) -> str:
    """A code that contains `digit`: every provisioning gives another."""
    for _ in range(200):
        code = await provision(world, device_id)
        if digit in code:
            return code
    raise AssertionError("no such code in 200")


async def let_pass(world: World, device_id: str, column: str, time: timedelta) -> None:
    """Make what `column` of the device says lie `time` further in the past."""
    await world.database.execute(
        f"update aizen.devices set {column} = {column} - $2::interval where id = $1",  # noqa: S608
        device_id,
        time,
    )


def without_request_id(reply: Reply) -> Any:
    return reply.status, {name: value for name, value in reply.body["error"].items() if name != "requestId"}


async def test_a_device_registers_with_its_activation_code(world: World) -> None:
    code = await provision(world, "router-1")
    registered = expect(await register(world, "router-1", code), 201)
    assert registered.keys() == {"deviceId", "deviceSecret", "customerId", "registeredAt"}
    assert registered["deviceId"] == "router-1"
    assert registered["customerId"] == world.customer_id
    assert TIME.fullmatch(registered["registeredAt"])
    assert (await world.owner.status("router-1"))["registeredAt"] == registered["registeredAt"]


async def test_a_secret_is_256_random_bits(world: World) -> None:
    secrets = set()
    for name in ("router-1", "router-2"):
        answer = expect(await register(world, name, await provision(world, name)), 201)
        secret = answer["deviceSecret"]
        assert len(base64.urlsafe_b64decode(secret + "=" * (-len(secret) % 4))) == 32
        secrets.add(secret)
    assert len(secrets) == 2


async def test_an_activation_code_is_ten_characters_without_look_alikes_and_lives_24_hours(
    world: World, valkey: Redis
) -> None:
    before = await redis_ms(valkey)
    device = await world.owner.provision("router-1")
    after = await redis_ms(valkey)
    assert CODE.fullmatch(device["activationCode"])
    expires = datetime.fromisoformat(device["expiresAt"])
    assert from_ms(before) <= expires - timedelta(hours=24) <= from_ms(after)


@pytest.mark.parametrize(
    "written",
    [
        lambda code: code.lower(),
        lambda code: code.replace("-", ""),
        lambda code: code.replace("-", "").lower(),
        lambda code: f" {code} ",
    ],
    ids=["lower case", "no hyphen", "neither", "blanks around"],
)
async def test_a_code_is_read_in_any_case_with_or_without_its_hyphen(world: World, written: Any) -> None:
    code = await provision(world, "router-1")
    expect(await register(world, "router-1", written(code)), 201)


@pytest.mark.parametrize(("typed", "digit"), [("O", "0"), ("o", "0"), ("I", "1"), ("i", "1"), ("L", "1"), ("l", "1")])
async def test_a_look_alike_is_read_as_the_digit_that_it_looks_like(world: World, typed: str, digit: str) -> None:
    code = await code_with(world, "router-1", digit)
    expect(await register(world, "router-1", code.replace(digit, typed)), 201)


async def test_all_bad_codes_get_one_answer(world: World) -> None:
    wrong, expired, used, locked, others = "wrong-1", "expired-1", "used-1", "locked-1", "others-1"
    codes = {name: await provision(world, name) for name in (wrong, expired, used, locked, others)}
    await let_pass(world, expired, "activation_expires_at", timedelta(hours=24))
    secret = expect(await register(world, used, codes[used]), 201)["deviceSecret"]
    expect(await sign_in(world, used, secret), 200)
    for _ in range(5):
        expect(await register(world, locked, WRONG), 401)
    answers = [
        await register(world, wrong, WRONG),
        await register(world, expired, codes[expired]),
        await register(world, used, codes[used]),
        await register(world, locked, codes[locked]),
        await register(world, others, codes[wrong]),
    ]
    assert answers[0].code == "INVALID_ACTIVATION_CODE"
    assert [without_request_id(answer) for answer in answers] == [without_request_id(answers[0])] * 5


async def test_a_code_counts_until_its_very_end(world: World) -> None:
    code = await provision(world, "router-1")
    await let_pass(world, "router-1", "activation_expires_at", timedelta(hours=23, minutes=59))
    expect(await register(world, "router-1", code), 201)


async def test_a_device_that_nobody_provisioned_is_told_so(world: World) -> None:
    assert (await register(world, "router-1", WRONG)).code == "DEVICE_NOT_PROVISIONED"
    assert (await register(world, "router-1", WRONG)).status == 404


async def test_four_wrong_tries_lock_nothing(world: World) -> None:
    code = await provision(world, "router-1")
    for _ in range(4):
        assert (await register(world, "router-1", WRONG)).code == "INVALID_ACTIVATION_CODE"
    expect(await register(world, "router-1", code), 201)


async def test_five_wrong_tries_lock_the_code_and_provisioning_again_unlocks_with_a_new_one(world: World) -> None:
    code = await provision(world, "router-1")
    await asyncio.gather(*(register(world, "router-1", WRONG) for _ in range(5)))
    assert (await register(world, "router-1", code)).code == "INVALID_ACTIVATION_CODE"
    renewed = await provision(world, "router-1")
    assert renewed != code
    assert (await register(world, "router-1", code)).code == "INVALID_ACTIVATION_CODE"
    expect(await register(world, "router-1", renewed), 201)


async def test_wrong_tries_on_one_device_lock_no_other(world: World) -> None:
    code = await provision(world, "router-1")
    await provision(world, "router-2")
    for _ in range(6):
        await register(world, "router-2", code)
    expect(await register(world, "router-1", code), 201)


async def test_provisioning_again_voids_the_earlier_code(world: World) -> None:
    code = await provision(world, "router-1")
    await provision(world, "router-1")
    assert (await register(world, "router-1", code)).code == "INVALID_ACTIVATION_CODE"


async def test_a_lost_answer_does_not_brick_a_device(world: World) -> None:
    code = await provision(world, "router-1")
    lost = expect(await register(world, "router-1", code), 201)["deviceSecret"]
    secret = expect(await register(world, "router-1", code), 201)["deviceSecret"]
    assert secret != lost
    assert (await sign_in(world, "router-1", lost)).code == "INVALID_CREDENTIALS"
    expect(await sign_in(world, "router-1", secret), 200)


async def test_a_code_is_worth_nothing_once_the_secret_was_used(world: World) -> None:
    code = await provision(world, "router-1")
    secret = expect(await register(world, "router-1", code), 201)["deviceSecret"]
    expect(await sign_in(world, "router-1", secret), 200)
    assert (await register(world, "router-1", code)).code == "INVALID_ACTIVATION_CODE"
    expect(await sign_in(world, "router-1", secret), 200)


async def test_an_attempt_with_a_void_secret_does_not_use_the_code_up(world: World) -> None:
    code = await provision(world, "router-1")
    lost = expect(await register(world, "router-1", code), 201)["deviceSecret"]
    expect(await register(world, "router-1", code), 201)
    expect(await sign_in(world, "router-1", lost), 401)
    expect(await register(world, "router-1", code), 201)


async def test_a_used_code_registers_again_for_ten_minutes_from_its_first_use(world: World) -> None:
    code = await provision(world, "router-1")
    expect(await register(world, "router-1", code), 201)
    await let_pass(world, "router-1", "activation_used_at", timedelta(minutes=5))
    expect(await register(world, "router-1", code), 201)
    await let_pass(world, "router-1", "activation_used_at", timedelta(minutes=4, seconds=50))
    expect(await register(world, "router-1", code), 201)
    await let_pass(world, "router-1", "activation_used_at", timedelta(seconds=10))
    assert (await register(world, "router-1", code)).code == "INVALID_ACTIVATION_CODE"


async def test_a_code_that_was_used_in_its_last_minute_registers_again_after_it(world: World) -> None:
    code = await provision(world, "router-1")
    expect(await register(world, "router-1", code), 201)
    await let_pass(world, "router-1", "activation_expires_at", timedelta(hours=24))
    expect(await register(world, "router-1", code), 201)


async def test_of_many_registrations_at_once_the_last_secret_alone_is_good(world: World) -> None:
    code = await provision(world, "router-1")
    replies = await asyncio.gather(*(register(world, "router-1", code) for _ in range(5)))
    secrets = [expect(reply, 201)["deviceSecret"] for reply in replies]
    signed_in = [(await sign_in(world, "router-1", secret)).status for secret in secrets]
    assert sorted(signed_in) == [200, 401, 401, 401, 401]


async def test_rotation_voids_the_secret_and_gives_a_code_that_registers(world: World) -> None:
    device = await world.device("router-1")
    rotated = expect(await world.owner.post(f"{API}/customer/devices/router-1/rotate-secret"), 200)["device"]
    assert (await sign_in(world, "router-1", device.secret)).code == "INVALID_CREDENTIALS"
    assert CODE.fullmatch(rotated["activationCode"])
    secret = expect(await register(world, "router-1", rotated["activationCode"]), 201)["deviceSecret"]
    expect(await sign_in(world, "router-1", secret), 200)


async def test_a_deleted_device_is_not_provisioned_and_its_id_may_begin_anew(world: World) -> None:
    old = await world.device("router-1")
    assert (await world.owner.call("DELETE", f"{API}/customer/devices/router-1")).status == 204
    assert (await register(world, "router-1", WRONG)).code == "DEVICE_NOT_PROVISIONED"
    new = await world.device("router-1")
    expect(await new.heartbeat(), 200)
    assert (await sign_in(world, "router-1", old.secret)).code == "INVALID_CREDENTIALS"
    assert (await old.heartbeat()).code == "UNAUTHENTICATED"


async def test_a_device_may_tell_its_name_and_anything_of_itself(world: World) -> None:
    code = await provision(world, "router-1")
    metadata = {"model": "X1", "ports": [1, 2], "nested": {"deep": None}}
    expect(await register(world, "router-1", code, deviceName="Roof", metadata=metadata), 201)
    assert (await world.owner.status("router-1"))["name"] == "Roof"


async def test_a_device_that_tells_no_name_keeps_the_one_it_was_provisioned_with(world: World) -> None:
    code = (await world.owner.provision("router-1", name="Cellar"))["activationCode"]
    for name in (None, "", " "):
        expect(await register(world, "router-1", code, deviceName=name, metadata=None), 201)
        assert (await world.owner.status("router-1"))["name"] == "Cellar"


async def test_fields_that_the_gateway_does_not_know_are_ignored(world: World) -> None:
    code = await provision(world, "router-1")
    expect(await register(world, "router-1", code, firmware="2.0", nested={"any": 1}), 201)


async def test_a_registration_that_is_not_well_formed_names_its_field(world: World) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"activationCode": "ABCDE-12345"}, "deviceId"),
        ({"deviceId": "router-1"}, "activationCode"),
        ({"deviceId": "no", "activationCode": "ABCDE-12345"}, "deviceId"),
        ({"deviceId": "-router", "activationCode": "ABCDE-12345"}, "deviceId"),
        ({"deviceId": "a" * 65, "activationCode": "ABCDE-12345"}, "deviceId"),
        ({"deviceId": "router-1\n", "activationCode": "ABCDE-12345"}, "deviceId"),
        ({"deviceId": 7, "activationCode": "ABCDE-12345"}, "deviceId"),
        ({"deviceId": "router-1", "activationCode": 12345}, "activationCode"),
        ({"deviceId": "router-1", "activationCode": ""}, "activationCode"),
        ({"deviceId": "router-1", "activationCode": "ABCDE-12345", "deviceName": 1}, "deviceName"),
        ({"deviceId": "router-1", "activationCode": "ABCDE-12345", "metadata": [1]}, "metadata"),
    ]
    for body, field in cases:
        reply = await world.anyone().post(f"{API}/device/register", body)
        assert (reply.status, reply.code) == (400, "INVALID_REQUEST"), body
        assert reply.fields.keys() == {field}, body


async def test_only_hashes_of_secrets_codes_and_tokens_are_stored(
    world: World, database: Database, valkey: Redis
) -> None:
    code = await provision(world, "router-1")
    secret = expect(await register(world, "router-1", code), 201)["deviceSecret"]
    device = DeviceClient(world.http, world.url, {}, device_id="router-1", secret=secret)
    expect(await device.sign_in(), 200)
    expect(await device.heartbeat(), 200)
    rotated = expect(await world.owner.post(f"{API}/customer/devices/router-1/rotate-secret"), 200)["device"]
    kept = await all_of_postgres(database) + await all_of_redis(valkey)
    assert "router-1" in kept
    for shown in (code, rotated["activationCode"]):
        assert shown not in kept
        assert shown.replace("-", "") not in kept
    for shown in (secret, device.token, device.token.partition(".")[2]):
        assert shown not in kept
        assert shown.encode().hex() not in kept


async def test_failed_registrations_are_limited_for_each_device_id(start_world: StartWorld) -> None:
    limited = await start_world(AIZEN_RATE_LIMIT_AUTH="2")
    code = await provision(limited, "router-1")
    for _ in range(2):
        assert (await register(limited, "router-1", WRONG)).status == 401
    refused = await register(limited, "router-1", code)
    assert (refused.status, refused.code) == (429, "RATE_LIMITED")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60


async def test_the_failures_of_one_device_never_refuse_the_success_of_another(start_world: StartWorld) -> None:
    limited = await start_world(AIZEN_RATE_LIMIT_AUTH="1")
    code = await provision(limited, "router-1")
    for _ in range(3):
        await register(limited, "router-2", WRONG)
    expect(await register(limited, "router-1", code), 201)


async def test_failures_from_one_address_are_limited_at_ten_times_as_many(start_world: StartWorld) -> None:
    limited = await start_world(AIZEN_RATE_LIMIT_AUTH="1")
    code = await provision(limited, "router-1")
    for number in range(10):
        assert (await register(limited, f"nobody-{number}", WRONG)).status == 404
    refused = await register(limited, "router-1", code)
    assert (refused.status, refused.code) == (429, "RATE_LIMITED")
    assert int(refused.headers["Retry-After"]) >= 1


async def test_registrations_that_succeed_never_count(start_world: StartWorld) -> None:
    limited = await start_world(AIZEN_RATE_LIMIT_AUTH="1")
    code = await provision(limited, "router-1")
    for _ in range(4):
        expect(await register(limited, "router-1", code), 201)


async def test_a_limit_of_zero_is_none(start_world: StartWorld) -> None:
    unlimited = await start_world(AIZEN_RATE_LIMIT_AUTH="0")
    statuses = [(await register(unlimited, "nobody", WRONG)).status for _ in range(40)]
    assert set(statuses) == {404}
