"""How a portal comes in: every way to bring a token, and every refusal before and after the upgrade (section 6)."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import aiohttp
import pytest
from aiohttp import ClientSession

from aizen_gateway.api.keys import SERVICES
from tests.support.clients import World, token_for
from tests.support.gateway import RunningGateway, StartGateway, StartWorld
from tests.support.processes import StartGatewayProcess
from tests.support.sockets import SocketClient, open_socket, portal_socket
from tests.support.waiting import TIME

ALLOWED = "https://portal.example.com"
ADDRESSES = ("/ws/customer", "/api/v1/customer/ws")


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def token_of(world: World) -> str:
    return world.owner.headers["Authorization"].removeprefix("Bearer ")


async def refused(http: ClientSession, url: str, **options: object) -> tuple[int, aiohttp.WSServerHandshakeError]:
    """The status with which the handshake is refused."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with open_socket(http, url, **options):
            pass
    return caught.value.status, caught.value


@pytest.mark.parametrize("path", ADDRESSES)
async def test_a_token_in_the_header_opens_the_socket_at_both_addresses(world: World, path: str) -> None:
    async with open_socket(world.http, world.url + path, headers=world.owner.headers) as socket:
        hello = await socket.receive()
        assert hello["type"] == "connected"
        assert hello["payload"].keys() == {"customerId", "connectionId", "serverTime"}
        assert hello["payload"]["customerId"] == world.customer_id
        assert UUID(hello["payload"]["connectionId"])
        assert TIME.fullmatch(hello["payload"]["serverTime"])


async def test_a_token_as_subprotocol_is_never_answered_where_the_version_can_be(world: World) -> None:
    auth = f"auth-{token_of(world)}"
    cases = [(("aizen.v1", auth), "aizen.v1"), ((auth, "odd", "aizen.v1"), "aizen.v1"), ((auth,), auth)]
    for path in ADDRESSES:
        for offered, selected in cases:
            async with open_socket(world.http, world.url + path, protocols=offered) as socket:
                assert socket.ws.protocol == selected
                assert (await socket.receive())["type"] == "connected"


async def test_a_token_in_the_query_opens_the_socket(world: World) -> None:
    for path in ADDRESSES:
        async with open_socket(world.http, f"{world.url}{path}?token={token_of(world)}") as socket:
            assert (await socket.receive())["type"] == "connected"


@pytest.mark.parametrize("path", ADDRESSES)
async def test_the_first_message_may_bring_the_token(world: World, path: str) -> None:
    async with open_socket(world.http, world.url + path, protocols=("aizen.v1",)) as socket:
        assert socket.ws.protocol == "aizen.v1"
        await socket.send("auth", {"token": token_of(world)}, "first-1")
        answer = await socket.receive()
        assert (answer["type"], answer["requestId"]) == ("auth_success", "first-1")
        assert answer["payload"]["customerId"] == world.customer_id
        assert answer["payload"]["userId"] == world.owner.user_id
        assert answer["payload"]["role"] == "owner"
        assert answer["payload"]["expiresAt"].endswith("Z")
        assert (await socket.receive())["type"] == "connected"
        await socket.ask("join_rooms", answer="rooms_joined")


async def test_a_ping_before_the_token_is_answered_and_does_not_count_as_the_first_message(world: World) -> None:
    async with open_socket(world.http, f"{world.url}/ws/customer") as socket:
        await socket.send("ping", request_id="p")
        assert (await socket.receive())["type"] == "pong"
        await socket.send("auth", {"token": token_of(world)})
        assert (await socket.receive())["type"] == "auth_success"


async def test_without_a_first_message_in_time_the_socket_is_closed_4401(
    gateway: RunningGateway, http: ClientSession
) -> None:
    sockets = gateway.app[SERVICES].portal_sockets
    assert sockets.times.first_message == 10
    sockets.times = replace(sockets.times, first_message=0.2)
    async with open_socket(http, f"{gateway.url}/ws/customer") as socket:
        assert await socket.closed() == 4401


@pytest.mark.parametrize("first", ["join_rooms", "subscribe", "send_command", "nonsense"])
async def test_another_first_message_than_auth_is_closed_4401(
    gateway: RunningGateway, http: ClientSession, first: str
) -> None:
    async with open_socket(http, f"{gateway.url}/ws/customer") as socket:
        await socket.send(first, {}, "r")
        answer = await socket.receive()
        assert (answer["type"], answer["requestId"]) == ("error", "r")
        assert answer["payload"]["code"] == "UNAUTHENTICATED"
        assert await socket.closed() == 4401


async def test_a_bad_token_in_the_handshake_is_401_wherever_it_is(gateway: RunningGateway, http: ClientSession) -> None:
    url = f"{gateway.url}/ws/customer"
    bad = token_for(str(uuid4()))[:-4] + "AAAA"
    for options in (
        {"headers": {"Authorization": f"Bearer {bad}"}},
        {"protocols": ("aizen.v1", f"auth-{bad}")},
        {"protocols": (f"auth-{bad}",)},
        {"params": {"token": bad}},
    ):
        status, error = await refused(http, url, **options)
        assert status == 401
        assert error.headers is not None
        assert error.headers["WWW-Authenticate"].startswith("Bearer")
        assert error.headers["X-Request-ID"]


async def test_a_bad_token_in_the_first_message_is_told_and_closed_4401(
    gateway: RunningGateway, http: ClientSession
) -> None:
    async with open_socket(http, f"{gateway.url}/ws/customer") as socket:
        await socket.send("auth", {"token": "nonsense"}, "r")
        answer = await socket.receive()
        assert (answer["type"], answer["requestId"]) == ("error", "r")
        assert answer["payload"]["code"] == "UNAUTHENTICATED"
        assert await socket.closed() == 4401


async def test_an_account_without_a_customer_is_403_before_the_upgrade(
    gateway: RunningGateway, http: ClientSession
) -> None:
    headers = {"Authorization": f"Bearer {token_for(str(uuid4()))}"}
    status, _ = await refused(http, f"{gateway.url}/ws/customer", headers=headers)
    assert status == 403


@pytest.mark.parametrize("path", ADDRESSES)
async def test_a_refusal_before_the_upgrade_says_why(start_world: StartWorld, path: str) -> None:
    world = await start_world(AIZEN_CORS_ORIGINS=ALLOWED)
    stranger = f"Bearer {token_for(str(uuid4()))}"
    cases: list[tuple[dict[str, str], int, str]] = [
        ({"Authorization": "Bearer nonsense"}, 401, "UNAUTHENTICATED"),
        ({"Authorization": stranger}, 403, "NO_CUSTOMER"),
        ({**world.owner.headers, "Origin": "https://evil.example.com"}, 403, "FORBIDDEN"),
        ({"Authorization": world.service.headers["Authorization"]}, 400, "INVALID_REQUEST"),
    ]
    for headers, status, code in cases:
        async with world.http.get(world.url + path, headers=UPGRADE | headers) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (status, code)
            assert error["requestId"] == answer.headers["X-Request-ID"]


async def test_a_first_message_without_a_token_is_told_and_closed_4401(
    gateway: RunningGateway, http: ClientSession
) -> None:
    for payload in (
        {},
        {"token": None},
        {"token": ""},
        {"token": 7},
        {"token": "x" * 20_000},
        {"token": "x", "odd": 1},
    ):
        async with open_socket(http, f"{gateway.url}/ws/customer") as socket:
            await socket.send("auth", payload, "r")
            answer = await socket.receive()
            assert (answer["type"], answer["requestId"]) == ("error", "r")
            assert answer["payload"]["code"] == "INVALID_REQUEST"
            assert await socket.closed() == 4401


async def test_a_service_that_names_no_customer_is_closed_1008_after_the_first_message(world: World) -> None:
    async with open_socket(world.http, f"{world.url}/ws/customer") as socket:
        await socket.send("auth", {"token": world.service.headers["Authorization"].removeprefix("Bearer ")})
        assert (await socket.receive())["payload"]["code"] == "INVALID_REQUEST"
        assert await socket.closed() == 1008


async def test_an_account_without_a_customer_is_closed_4403_after_the_first_message(
    gateway: RunningGateway, http: ClientSession
) -> None:
    async with open_socket(http, f"{gateway.url}/ws/customer") as socket:
        await socket.send("auth", {"token": token_for(str(uuid4()))})
        assert (await socket.receive())["payload"]["code"] == "NO_CUSTOMER"
        assert await socket.closed() == 4403


async def test_a_page_of_another_origin_is_refused(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_CORS_ORIGINS=ALLOWED)
    url = f"{world.url}/ws/customer"
    for origin in ("https://evil.example.com", "null", ALLOWED + ".evil.example.com", "http://portal.example.com"):
        headers = {**world.owner.headers, "Origin": origin}
        assert (await refused(world.http, url, headers=headers))[0] == 403
        # Whoever would bring the token later gets no further either.
        assert (await refused(world.http, url, headers={"Origin": origin}))[0] == 403


async def test_a_page_of_an_allowed_origin_comes_in(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_CORS_ORIGINS=f"https://other.example.com,{ALLOWED}")
    headers = {**world.owner.headers, "Origin": ALLOWED}
    async with open_socket(world.http, f"{world.url}/ws/customer", headers=headers) as socket:
        assert (await socket.receive())["type"] == "connected"


async def test_a_service_names_its_customer(world: World) -> None:
    async with portal_socket(world.service) as socket:
        assert (await socket.ask("join_rooms", answer="rooms_joined"))["rooms"] == ["customer"]
    authorization = {"Authorization": world.service.headers["Authorization"]}
    for named, status in ((None, 400), ("nonsense", 400), (str(uuid4()), 403)):
        headers = authorization | ({"X-Customer-ID": named} if named else {})
        assert (await refused(world.http, f"{world.url}/ws/customer", headers=headers))[0] == status


async def test_a_request_that_is_no_handshake_is_400(world: World) -> None:
    reply = await world.owner.get("/ws/customer")
    assert (reply.status, reply.code) == (400, "INVALID_REQUEST")


async def test_no_token_is_ever_logged(
    start_gateway_process: StartGatewayProcess, world: World, http: ClientSession
) -> None:
    gateway = await start_gateway_process(AIZEN_LOG_LEVEL="debug")
    url, token = f"{gateway.url}/ws/customer", token_of(world)
    other = token_for(str(uuid4()), ttl=1234)
    bad = token[:-4] + "AAAA"
    for good in (
        open_socket(http, url, headers=world.owner.headers),
        open_socket(http, url, protocols=("aizen.v1", f"auth-{token}")),
        open_socket(http, url, protocols=(f"auth-{token}",)),
        open_socket(http, f"{url}?token={token}"),
    ):
        async with good as socket:
            await socket.expect("connected")
            await socket.send("auth", {"token": other})
            assert (await socket.expect("error"))["payload"]["code"] == "FORBIDDEN"
            await socket.send("auth", {"token": bad})
            assert (await socket.expect("error"))["payload"]["code"] == "UNAUTHENTICATED"
    await refused(http, url, headers={"Authorization": f"Bearer {bad}"})
    await refused(http, url, protocols=("odd", f"auth-{bad}"))
    await refused(http, url, protocols=(f"auth-{bad}", "odd"))
    await refused(http, f"{url}?token={bad}")
    async with open_socket(http, url) as socket:
        await first_message(socket, bad)
    assert await gateway.run.stop() == 0
    assert any(
        entry.get("route") == "/ws/customer" and entry.get("close_code") == 1000 for entry in gateway.run.entries
    )
    for secret in (token, other, bad, token.split(".")[2], other.split(".")[2]):
        assert secret not in gateway.run.text


async def first_message(socket: SocketClient, token: str) -> None:
    await socket.send("auth", {"token": token})
    await socket.closed()


async def test_two_instances_share_customers_but_not_sockets(world: World, start_gateway: StartGateway) -> None:
    other = await start_gateway()
    async with portal_socket(world.owner) as here, portal_socket(world.owner, url=other.url) as there:
        for socket in (here, there):
            await socket.ask("join_rooms", answer="rooms_joined")
        await world.owner.provision("device-everywhere")
        first, second = await here.expect("device_status"), await there.expect("device_status")
        assert first == second
