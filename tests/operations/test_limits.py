"""Limits behind proxies, and the bounds on a client's time: what a stranger writes changes neither (section 7)."""

from __future__ import annotations

import pytest

from aizen_gateway.api.http_connection import TimeLimits
from aizen_gateway.api.keys import ApiOptions
from tests.support.clients import API, Reply, World, expect
from tests.support.gateway import StartWorld

# One failed try a device id, ten an address.
_STRICT = {"AIZEN_RATE_LIMIT_AUTH": "1"}
# A balancer on this machine, and one before it.
_BEHIND = {**_STRICT, "AIZEN_TRUSTED_PROXIES": "127.0.0.1/32, 10.1.0.0/16"}


async def _fails(world: World, number: int, forwarded: str | None, path: str = "auth") -> Reply:
    """A try for a device that is not there, as it comes from a proxy that says where it is from."""
    bodies = {
        "auth": {"deviceId": f"nobody-{number}", "deviceSecret": "wrong"},
        "register": {"deviceId": f"nobody-{number}", "activationCode": "AAAAA-AAAAA"},
    }
    headers = {} if forwarded is None else {"X_Forwarded_For": forwarded}
    return await world.anyone().post(f"{API}/device/{path}", bodies[path], **headers)


@pytest.mark.parametrize("path", ["auth", "register"])
async def test_each_client_behind_the_proxies_has_a_limit_of_its_own(start_world: StartWorld, path: str) -> None:
    world = await start_world(**_BEHIND)
    for number in range(10):
        # What stands before the address that the outer proxy saw is the client's own invention.
        reply = await _fails(world, number, f"192.0.2.{number}, 198.51.100.7, 10.1.0.5", path)
        assert reply.status in (401, 404)
    refused = await _fails(world, 10, "192.0.2.99, 198.51.100.7, 10.1.0.5", path)
    assert (refused.status, refused.code) == (429, "RATE_LIMITED")
    assert int(refused.headers["Retry-After"]) >= 1
    # The proxies themselves, and whoever else is behind them, are none the worse.
    for number, other in enumerate(("198.51.100.8, 10.1.0.5", "192.0.2.1", "10.1.0.5", None), 11):
        assert (await _fails(world, number, other, path)).status in (401, 404)


async def test_an_address_that_only_the_client_names_does_not_get_round_the_limit(start_world: StartWorld) -> None:
    world = await start_world(**_STRICT)
    for number in range(10):
        assert (await _fails(world, number, f"198.51.100.{number}")).status == 401
    assert (await _fails(world, 10, "198.51.100.10")).status == 429


async def test_nobody_is_shut_out_by_a_stranger_that_writes_his_address(start_world: StartWorld) -> None:
    world = await start_world(**_BEHIND)
    device = await world.device()
    for number in range(11):
        await _fails(world, number, "198.51.100.7, 203.0.113.66")
    credentials = {"deviceId": device.device_id, "deviceSecret": device.secret}
    victim = await world.anyone().post(f"{API}/device/auth", credentials, X_Forwarded_For="198.51.100.7")
    expect(victim, 200)


async def test_the_audit_log_names_the_client_and_not_the_proxy(start_world: StartWorld) -> None:
    world = await start_world(**_BEHIND)
    path = f"{API}/customer/devices/provision"
    expect(await world.owner.post(path, {"deviceId": "router-1"}, X_Forwarded_For="192.0.2.1, 198.51.100.7"), 201)
    (record, *_) = expect(await world.owner.get(f"{API}/customer/audit"), 200)["records"]
    assert (record["action"], record["ip"]) == ("device.provisioned", "198.51.100.7")


def test_clients_have_the_time_that_the_contract_gives_them() -> None:
    limits = TimeLimits()
    assert (limits.head, limits.idle) == (10, 75)
    assert ApiOptions(version="1").request_timeout_s == 50
    # The handler says that it took too long before the line is cut.
    assert 50 < limits.exchange < 55
