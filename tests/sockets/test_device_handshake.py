"""How a device comes in: every way to bring a token, and every refusal before the upgrade (section 6)."""

from __future__ import annotations

from uuid import UUID

import aiohttp
import pytest
from aiohttp import ClientSession

from tests.support.clients import API, Client, World, expect
from tests.support.gateway import StartWorld
from tests.support.processes import StartGatewayProcess
from tests.support.pushes import pushed
from tests.support.raw_socket import RawSocket
from tests.support.sockets import PATIENCE, open_socket
from tests.support.waiting import TIME

ADDRESSES = ("/ws/device", "/api/v1/device/ws")


async def refused(device: Client, query: str = "", **headers: str) -> tuple[int, str, dict[str, object]]:
    """The status, the error's code and its details with which the handshake is refused."""
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    async with device.http.get(f"{device.url}/ws/device{query}", headers=upgrade) as answer:
        assert answer.status != 101, "it was let in"
        assert answer.content_type == "application/json"
        error = (await answer.json())["error"]
        assert error["requestId"] == answer.headers["X-Request-ID"]
        return answer.status, error["code"], error["details"]


async def test_the_greeting_tells_what_the_device_must_know(world: World) -> None:
    device = await world.device()
    async with open_socket(world.http, f"{world.url}/ws/device", headers={"X-Device-Token": device.token}) as socket:
        hello = await socket.receive()
        assert hello["type"] == "connected"
        payload = hello["payload"]
        assert payload.keys() == {"deviceId", "connectionId", "serverTime", "heartbeatIntervalMs", "prefetch"}
        assert payload["deviceId"] == device.device_id
        assert UUID(payload["connectionId"])
        assert TIME.fullmatch(payload["serverTime"])
        assert (payload["heartbeatIntervalMs"], payload["prefetch"]) == (30_000, 1)


async def test_the_greeting_tells_the_interval_of_the_setting(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_HEARTBEAT_INTERVAL="7")
    device = await world.device()
    headers = {"X-Device-Token": device.token}
    async with open_socket(world.http, f"{world.url}/ws/device?prefetch=4", headers=headers) as socket:
        payload = (await socket.receive())["payload"]
        assert (payload["heartbeatIntervalMs"], payload["prefetch"]) == (7_000, 4)


async def test_each_header_of_rest_opens_the_socket_at_both_addresses(world: World) -> None:
    device = await world.device()
    token = device.token
    for headers in ({"X-Device-Token": token}, {"X-Device-Session": token}, {"Authorization": f"Bearer {token}"}):
        for path in ADDRESSES:
            async with open_socket(world.http, world.url + path, headers=headers) as socket:
                assert (await socket.receive())["payload"]["deviceId"] == device.device_id


async def test_a_token_as_subprotocol_is_never_answered_where_the_version_can_be(world: World) -> None:
    device = await world.device()
    auth, headers = f"auth-{device.token}", {"X-Device-Token": device.token}
    cases: list[tuple[tuple[str, ...], dict[str, str], str | None]] = [
        (("aizen.v1", auth), {}, "aizen.v1"),
        ((auth, "something.else", "aizen.v1"), {}, "aizen.v1"),
        (("aizen.v1",), headers, "aizen.v1"),
        ((auth,), {}, auth),
        (("mqtt",), headers, None),
    ]
    for path in ADDRESSES:
        for offered, given, selected in cases:
            async with open_socket(world.http, world.url + path, headers=given, protocols=offered) as socket:
                assert socket.ws.protocol == selected
                assert (await socket.receive())["payload"]["deviceId"] == device.device_id


async def test_a_token_in_the_query_opens_the_socket(world: World) -> None:
    device = await world.device()
    for path in ADDRESSES:
        async with open_socket(world.http, f"{world.url}{path}?token={device.token}") as socket:
            assert (await socket.receive())["payload"]["deviceId"] == device.device_id


async def test_the_upgrade_carries_the_request_id_and_agrees_to_no_compression(world: World) -> None:
    device = await world.device()
    headers = {"X-Device-Token": device.token, "X-Request-ID": "from-the-field-1"}
    async with world.http.ws_connect(f"{world.url}/ws/device", headers=headers, compress=15) as ws:
        assert not ws.compress
        assert ws._response.headers["X-Request-ID"] == "from-the-field-1"


async def test_a_bad_token_is_refused_before_the_upgrade(world: World) -> None:
    device = await world.device()
    bad: list[dict[str, str]] = [
        {},
        {"X_Device_Token": "no-token-of-ours"},
        {"X_Device_Token": device.token[:-1]},
        {"X_Device_Token": device.token + "A"},
        {"X_Device_Session": "no-token-of-ours"},
        {"Authorization": "Bearer no-token-of-ours"},
        {"Authorization": f"Basic {device.token}"},
        {"Authorization": world.owner.headers["Authorization"]},
        {"Sec_WebSocket_Protocol": "aizen.v1, auth-no-token-of-ours"},
        {"Sec_WebSocket_Protocol": "aizen.v1, auth-"},
        {"Sec_WebSocket_Protocol": f"aizen.v1, {device.token}"},
    ]
    for headers in bad:
        assert await refused(world.anyone(), **headers) == (401, "UNAUTHENTICATED", {}), headers
    for query in ("?token=no-token-of-ours", "?token="):
        assert await refused(world.anyone(), query) == (401, "UNAUTHENTICATED", {})
    # Whoever has no token learns nothing of the options.
    assert (await refused(world.anyone(), "?prefetch=11"))[0] == 401


async def test_a_token_that_was_logged_out_is_refused(world: World) -> None:
    device = await world.device()
    expect(await device.post(f"{API}/device/logout", {}), 204)
    assert (await refused(device, X_Device_Token=device.token))[:2] == (401, "UNAUTHENTICATED")


async def test_an_option_out_of_its_bounds_is_refused_and_named(world: World) -> None:
    device = await world.device()
    cases = [("prefetch", value) for value in ("-1", "11", "1.5", "many", "", "%C2%B2")]
    cases += [("visibilityTimeout", value) for value in ("", "-1", "0", "999", "3600001", "1e4", "1" * 20)]
    for name, value in cases:
        status, code, details = await refused(device, f"?{name}={value}", X_Device_Token=device.token)
        assert (status, code) == (400, "INVALID_REQUEST"), value
        fields = details["fields"]
        assert isinstance(fields, dict)
        assert fields.keys() == {name}


async def test_an_option_at_its_bounds_is_taken(world: World) -> None:
    device = await world.device()
    headers = {"X-Device-Token": device.token}
    for query in ("?prefetch=0", "?prefetch=10", "?visibilityTimeout=1000", "?visibilityTimeout=3600000"):
        async with open_socket(world.http, f"{world.url}/ws/device{query}", headers=headers) as socket:
            assert (await socket.receive())["type"] == "connected"


async def test_a_request_without_an_upgrade_is_refused(world: World) -> None:
    device = await world.device()
    reply = await device.get("/ws/device")
    assert (reply.status, reply.code) == (400, "INVALID_REQUEST")
    assert (await device.post("/ws/device")).code == "METHOD_NOT_ALLOWED"


async def test_half_a_handshake_is_refused_and_takes_nothing_over(world: World) -> None:
    device = await world.device()
    for missing in ("Sec_WebSocket_Key", "Sec_WebSocket_Version"):
        assert (await refused(device, X_Device_Token=device.token, **{missing: ""}))[:2] == (400, "INVALID_REQUEST")
    assert (await world.owner.status(device.device_id))["connection"] != "websocket"


async def test_a_device_over_its_limit_is_refused_and_told_when(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_RATE_LIMIT_DEVICE="2")
    device = await world.device()
    headers = {"X-Device-Token": device.token}
    async with open_socket(world.http, f"{world.url}/ws/device", headers=headers) as socket:
        await socket.expect("connected")
    # An opened socket is one call, however much the gateway looks on its behalf.
    async with open_socket(world.http, f"{world.url}/ws/device", headers=headers) as socket:
        await socket.expect("connected")
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await world.http.ws_connect(f"{world.url}/ws/device", headers=headers)
    assert caught.value.status == 429
    assert caught.value.headers is not None
    assert int(caught.value.headers["Retry-After"]) >= 1


async def test_what_is_sent_right_behind_the_handshake_is_not_lost(world: World) -> None:
    device = await world.device()
    headers = {"X-Device-Token": device.token}
    async with world.http.ws_connect(f"{world.url}/ws/device", headers=headers) as ws:
        await ws.send_str('{"type": "heartbeat", "requestId": "at-once", "payload": {"status": "error"}}')
        frames = [await ws.receive_json(timeout=PATIENCE) for _ in range(2)]
    assert [frame["type"] for frame in frames] == ["connected", "heartbeat_ack"]


async def test_no_token_is_in_any_log_line(start_gateway_process: StartGatewayProcess, world: World) -> None:
    process = await start_gateway_process(AIZEN_LOG_LEVEL="debug")
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    await world.owner.submit(session["id"])
    socket_url = f"{process.url}/ws/device"
    token = device.token
    async with ClientSession() as http:
        for options in (
            {"headers": {"X-Device-Token": token}},
            {"headers": {"Authorization": f"Bearer {token}"}},
            {"protocols": ("aizen.v1", f"auth-{token}")},
            {"protocols": (f"auth-{token}",)},
            {"headers": {"X-Device-Token": token}, "protocols": (f"auth-{token}x", "mqtt")},
        ):
            async with open_socket(http, socket_url, **options) as socket:
                await socket.expect("connected")
        async with open_socket(http, f"{socket_url}?token={token}") as socket:
            claimed = await pushed(socket)
            await socket.ws.send_bytes(token.encode())
            assert await socket.closed() == 1003
        for bad in (f"{socket_url}?token={token}&prefetch=x", f"{socket_url}?token={token}x"):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(bad)
        broken = await RawSocket.open(process.url, f"/ws/device?token={token}")
        await broken.send(b"\xff\xff" + token.encode())
        await broken.gone()
        broken.cut()
    assert await process.run.stop() == 0
    told = [entry.get("close_code") for entry in process.run.entries if entry.get("route") == "/ws/device"]
    assert {1000, 1003} <= set(told)
    assert token not in process.run.text
    assert device.secret not in process.run.text
    assert claimed["claimToken"] not in process.run.text


async def test_the_token_of_one_device_opens_no_other_devices_socket(world: World) -> None:
    first, other = await world.device(), await world.device()
    # What comes before the dot names the device.
    forged = first.token.replace(f"{first.device_id}.", f"{other.device_id}.")
    assert forged != first.token
    assert (await refused(other, X_Device_Token=forged))[:2] == (401, "UNAUTHENTICATED")
