"""A portal's socket lives as long as its token, and a renewed one longer (section 6)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from uuid import uuid4

import jwt
import pytest

from aizen_gateway.api.keys import SERVICES
from tests.support.clients import JWT_SECRET, World, expect, token_for
from tests.support.gateway import RunningGateway
from tests.support.sockets import SocketClient, open_socket, portal_socket


@asynccontextmanager
async def portal(world: World, token: str) -> AsyncIterator[SocketClient]:
    """A socket with a token of the test's own, greeted."""
    headers = {"Authorization": f"Bearer {token}"}
    async with open_socket(world.http, f"{world.url}/ws/customer", headers=headers) as socket:
        await socket.expect("connected")
        yield socket


def ends(token: str) -> float:
    return float(jwt.decode(token, options={"verify_signature": False})["exp"])


def seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


async def works(socket: SocketClient) -> None:
    """The socket answers and hears."""
    assert (await socket.ask("join_rooms", answer="rooms_joined"))["rooms"] == ["customer"]


async def test_a_token_of_the_same_user_renews_the_socket(world: World) -> None:
    async with portal_socket(world.owner) as socket:
        token = token_for(world.owner.user_id, ttl=7200)
        answer = await socket.ask("auth", {"token": token}, answer="auth_success")
        assert answer["userId"] == world.owner.user_id
        assert seconds(answer["expiresAt"]) == ends(token)
        await works(socket)


async def test_a_token_of_another_user_or_customer_is_forbidden_and_changes_nothing(world: World) -> None:
    other = await world.another()
    service = world.service.headers["Authorization"].removeprefix("Bearer ")
    mine_elsewhere = token_for(world.owner.user_id, customer=other.customer_id, role="owner")
    tokens = [token_for(world.admin.user_id), token_for(other.owner.user_id), token_for(str(uuid4())), service]
    async with portal_socket(world.owner) as socket:
        await socket.ask("join_rooms", answer="rooms_joined")
        for token in [*tokens, mine_elsewhere]:
            error = await socket.ask("auth", {"token": token}, answer="error")
            assert error["code"] == "FORBIDDEN"
        await other.owner.provision("device-of-the-other")
        await world.owner.provision("device-of-mine")
        event = await socket.expect("device_status")
        assert event["payload"]["deviceId"] == "device-of-mine"


async def test_a_bad_token_renews_nothing_and_leaves_the_socket_as_it_was(world: World) -> None:
    async with portal_socket(world.owner) as socket:
        expired = jwt.encode(
            {"sub": world.owner.user_id, "aud": "authenticated", "exp": int(time.time()) - 60}, JWT_SECRET
        )
        for bad in ("nonsense", expired):
            error = await socket.ask("auth", {"token": bad}, answer="error")
            assert error["code"] == "UNAUTHENTICATED"
        error = await socket.ask("auth", {}, answer="error")
        assert error["code"] == "INVALID_REQUEST"
        await works(socket)


async def test_the_end_is_told_a_minute_before(gateway: RunningGateway, world: World) -> None:
    assert gateway.app[SERVICES].portal_sockets.times.expiring == 60
    token = token_for(world.owner.user_id, ttl=62)
    async with portal(world, token) as socket:
        await works(socket)
        told = await socket.expect("auth_expiring")
        assert seconds(told["payload"]["expiresAt"]) == ends(token)
        # A minute is left: it was not told at once.
        assert 55 < ends(token) - time.time() < 60.5


async def test_the_end_is_told_at_once_when_less_is_left_and_the_socket_closed_4401_at_it(world: World) -> None:
    token = token_for(world.owner.user_id, ttl=2)
    async with portal(world, token) as socket:
        assert (await socket.receive())["type"] == "auth_expiring"
        assert await socket.closed() == 4401
        assert -0.1 < time.time() - ends(token) < 3


async def test_a_renewal_moves_the_end(gateway: RunningGateway, world: World) -> None:
    sockets = gateway.app[SERVICES].portal_sockets
    sockets.times = replace(sockets.times, expiring=1.0)
    short, longer = token_for(world.owner.user_id, ttl=2), token_for(world.owner.user_id, ttl=5)
    async with portal(world, short) as socket:
        await socket.ask("auth", {"token": longer}, answer="auth_success")
        await asyncio.sleep(ends(short) - time.time() + 0.3)
        await works(socket)
        assert "auth_expiring" not in [frame["type"] for frame in socket.earlier]
        assert seconds((await socket.expect("auth_expiring"))["payload"]["expiresAt"]) == ends(longer)
        assert await socket.closed() == 4401
        assert time.time() >= ends(longer) - 0.1


async def test_a_renewal_with_a_token_that_ends_soon_is_told_so_at_once(world: World) -> None:
    async with portal_socket(world.owner) as socket:
        token = token_for(world.owner.user_id, ttl=30)
        await socket.ask("auth", {"token": token}, answer="auth_success")
        assert seconds((await socket.expect("auth_expiring"))["payload"]["expiresAt"]) == ends(token)


async def test_a_token_that_never_seems_to_end_holds(world: World) -> None:
    claims = {"sub": world.owner.user_id, "aud": "authenticated", "exp": 253_402_300_799, "role": "authenticated"}
    async with portal(world, jwt.encode(claims, JWT_SECRET)) as socket:
        await works(socket)
        answer = await socket.ask("auth", {"token": jwt.encode(claims, JWT_SECRET)}, answer="auth_success")
        assert answer["expiresAt"] == "9999-12-31T23:59:59.000Z"


@pytest.mark.parametrize("role", ["owner", "admin", "viewer"])
async def test_the_role_is_that_of_the_moment(world: World, role: str) -> None:
    user = str(uuid4())
    token = token_for(user, customer=world.customer_id, role="viewer")
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    async with portal(world, token) as socket:
        better = token_for(user, customer=world.customer_id, role=role)
        assert (await socket.ask("auth", {"token": better}, answer="auth_success"))["role"] == role
        order = {"sessionId": session["id"], "type": "ping"}
        if role == "viewer":
            assert (await socket.ask("send_command", order, answer="error"))["code"] == "FORBIDDEN"
        else:
            command = (await socket.ask("send_command", order, answer="command_queued"))["command"]
            assert expect(await device.read(command["id"]), 200)["command"]["status"] == "queued"
