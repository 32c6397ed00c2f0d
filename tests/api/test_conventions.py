"""What holds for every call (contract section 1), asked of whole gateways over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from aiohttp import ClientSession
from structlog.testing import capture_logs

from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, JWT_SECRET, Client, Reply, World, expect, token_for
from tests.support.gateway import StartGateway, StartWorld
from tests.support.processes import StartGatewayProcess
from tests.support.supabase import SupabaseProject, signed, user_claims
from tests.support.waiting import TIME

CUSTOMER = f"{API}/customer"
DEVICE = f"{API}/device"
PROVISION = f"{CUSTOMER}/devices/provision"
PORTAL = "https://portal.example"
STRANGER = "https://elsewhere.example"


@dataclass(frozen=True, slots=True)
class Raw:
    """A client that sends bytes as they are."""

    client: Client

    async def post(self, path: str, data: Any, kind: str | None = "application/json", **headers: str) -> Reply:
        """POST `data`, which may be an async iterator for a chunked body, as `kind` (None sends no Content-Type)."""
        merged = {**self.client.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if kind is not None:
            merged["Content-Type"] = kind
        skipped = () if kind is not None else ("Content-Type",)
        async with self.client.http.post(
            self.client.url + path, data=data, headers=merged, skip_auto_headers=skipped
        ) as response:
            is_json = response.content_type == "application/json"
            return Reply(response.status, await response.json() if is_json else None, response.headers.copy())


def assert_error(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """An answer in the one shape of all errors. Returns its details."""
    assert reply.status == status, reply
    assert reply.headers["Content-Type"].startswith("application/json")
    assert set(reply.body) == {"error"}
    error = reply.body["error"]
    assert set(error) == {"code", "message", "details", "requestId"}
    assert error["code"] == code
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["requestId"] == reply.headers["X-Request-ID"]
    details: dict[str, Any] = error["details"]
    assert isinstance(details, dict)
    return details


async def exchanged(url: str, sent: bytes) -> tuple[int, dict[str, str], Any]:
    """Send bytes as they are; return status, headers in lower case and JSON of the answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(sent)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    body = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    await writer.wait_closed()
    return int(head[0].split()[1]), headers, json.loads(body)


async def nothing_happened(world: World) -> None:
    assert expect(await world.owner.get(f"{CUSTOMER}/devices"), 200)["total"] == 0


# Request ids


async def test_a_good_request_id_comes_back_on_successes_and_failures(world: World) -> None:
    for given in ("a", "x" * 128, "Trace-1:2.3_4", str(uuid4())):
        for path in (f"{CUSTOMER}/devices", f"{CUSTOMER}/devices/nowhere-1/status", "/nowhere", "/healthz"):
            reply = await world.owner.call("GET", path, headers={"X-Request-ID": given})
            assert reply.headers["X-Request-ID"] == given
            if reply.status >= 400:
                assert reply.body["error"]["requestId"] == given


async def test_any_other_request_id_is_replaced_by_a_uuid(world: World) -> None:
    seen = set()
    for given in ("", " ", "a b", "x" * 129, "a/b", "\u00e9", "a,b", "<script>", None):
        headers = {} if given is None else {"X-Request-ID": given}
        reply = await world.owner.call("GET", f"{CUSTOMER}/devices", headers=headers)
        made = reply.headers["X-Request-ID"]
        assert UUID(made).version == 4
        assert str(UUID(made)) == made
        seen.add(made)
    assert len(seen) == 9


async def test_a_request_id_of_raw_bytes_is_replaced_too(world: World) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-ID: \xff\xfe\r\n\r\n"
    _, headers, _ = await exchanged(world.url, request)
    assert UUID(headers["x-request-id"]).version == 4


# Errors


async def test_every_status_from_400_on_has_the_one_shape(
    start_world: StartWorld, supabase: SupabaseProject, database: Database
) -> None:
    supabase.status = 500
    world = await start_world(SUPABASE_URL=supabase.url, AIZEN_RATE_LIMIT_CUSTOMER="40")
    owner, raw = world.owner, Raw(world.owner)
    await world.device("edge-1")
    session = (await owner.open_session("edge-1"))["id"]
    one = {"deviceId": "edge-1", "type": "diagnostic"}
    assert_error(await owner.get(f"{CUSTOMER}/devices?limit=0"), 400, "INVALID_REQUEST")
    assert_error(await world.anyone().get(f"{CUSTOMER}/devices"), 401, "UNAUTHENTICATED")
    assert_error(await world.viewer.post(PROVISION, {"deviceId": "edge-2"}), 403, "FORBIDDEN")
    assert_error(await owner.get("/nowhere"), 404, "NOT_FOUND")
    assert_error(await owner.get(f"{CUSTOMER}/devices/nowhere-1/status"), 404, "DEVICE_NOT_FOUND")
    assert_error(await owner.call("PUT", f"{CUSTOMER}/devices"), 405, "METHOD_NOT_ALLOWED")
    details = assert_error(await owner.post(f"{CUSTOMER}/sessions", one), 409, "SESSION_ACTIVE")
    assert details == {"sessionId": session}
    assert_error(await raw.post(PROVISION, b" " * 70_000), 413, "PAYLOAD_TOO_LARGE")
    assert_error(await raw.post(PROVISION, b"{}", "text/plain"), 415, "UNSUPPORTED_MEDIA_TYPE")
    for priority, status in ((1, 201), (2, 422)):
        path, body = f"{CUSTOMER}/sessions/{session}/commands", {"type": "ping", "priority": priority}
        reply = await owner.call("POST", path, body, headers={"Idempotency-Key": "key"})
        assert reply.status == status
    assert_error(reply, 422, "IDEMPOTENCY_KEY_REUSED")
    bearer = {"Authorization": f"Bearer {supabase.es256(owner.user_id)}"}
    away = await world.anyone().call("GET", f"{CUSTOMER}/devices", headers=bearer)
    assert_error(away, 503, "UNAVAILABLE")
    assert int(away.headers["Retry-After"]) >= 1
    await database.execute("alter table aizen.audit rename to mislaid")
    with capture_logs():
        failed = await owner.post(PROVISION, {"deviceId": "edge-2"})
    assert_error(failed, 500, "INTERNAL_ERROR")
    assert not {"audit", "relation", "insert", "traceback"} & set(str(failed.body).lower().split())
    refused = [await owner.get(f"{CUSTOMER}/system") for _ in range(40)][-1]
    assert_error(refused, 429, "RATE_LIMITED")
    assert int(refused.headers["Retry-After"]) >= 1


async def test_unknown_routes_are_404_for_every_method_and_odd_path(world: World) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in (
            "/",
            "/api",
            f"{API}/",
            f"{CUSTOMER}",
            f"{CUSTOMER}/devices/",
            f"{CUSTOMER}//devices",
            "/%2e%2e/x",
        ):
            assert_error(await world.owner.call(method, path), 404, "NOT_FOUND")
    assert (await world.owner.call("HEAD", "/nowhere")).status == 404


async def test_a_method_that_a_route_lacks_is_405_and_allow_names_those_it_has(world: World) -> None:
    for method, path, allowed in (
        ("DELETE", f"{CUSTOMER}/devices", "GET"),
        ("GET", PROVISION, "DELETE, PATCH, POST"),  # A device may be called that.
        ("PUT", f"{CUSTOMER}/devices/edge-1", "DELETE, PATCH"),
        ("GET", f"{CUSTOMER}/devices/edge-1", "DELETE, PATCH"),
        ("POST", f"{CUSTOMER}/devices/edge-1/status", "GET"),
        ("PATCH", f"{CUSTOMER}/sessions", "GET, POST"),
        ("GET", f"{DEVICE}/auth", "POST"),
        ("TRACE", f"{CUSTOMER}/devices", "GET"),
    ):
        reply = await world.owner.call(method, path)
        assert_error(reply, 405, "METHOD_NOT_ALLOWED")
        assert reply.headers["Allow"] == allowed


# Bodies


BAD_BODIES = {
    "cut off": b'{"deviceId": "edge-1"',
    "single quotes": b"{'deviceId': 'edge-1'}",
    "a comment": b'{"deviceId": "edge-1" /* here */}',
    "a trailing comma": b'{"deviceId": "edge-1",}',
    "two values": b'{"deviceId": "edge-1"} {}',
    "a list": b'[{"deviceId": "edge-1"}]',
    "a string": b'"edge-1"',
    "null": b"null",
    "a number": b"1",
    "no UTF-8": b'{"deviceId": "edge-1", "name": "\xff"}',
    "UTF-16": '{"deviceId": "edge-1"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"deviceId": "edge-1"}',
    "a raw control character": b'{"deviceId": "edge-1", "name": "a\nb"}',
    "NaN": b'{"deviceId": "edge-1", "x": NaN}',
    "infinity": b'{"deviceId": "edge-1", "x": -Infinity}',
    "a number beyond all doubles": b'{"deviceId": "edge-1", "x": 1e400}',
    "an integer beyond 2^53": b'{"deviceId": "edge-1", "x": 9007199254740993}',
    "one below -2^53": b'{"deviceId": "edge-1", "x": -9007199254740993}',
    "an integer without end": b'{"deviceId": "edge-1", "x": ' + b"9" * 10_000 + b"}",
    "a doubled name": b'{"deviceId": "edge-1", "deviceId": "edge-1"}',
    "one doubled by an escape": b'{"deviceId": "edge-1", "device\\u0049d": "edge-2"}',
    "one doubled deep inside": b'{"deviceId": "edge-1", "x": [{"a": 1, "a": 1}]}',
    "no end of nesting": b'{"deviceId": "edge-1", "x": ' + b"[" * 30_000,
}


async def test_a_body_that_two_parsers_could_read_differently_is_400_and_does_nothing(world: World) -> None:
    raw = Raw(world.owner)
    for name, body in BAD_BODIES.items():
        details = assert_error(await raw.post(PROVISION, body), 400, "INVALID_REQUEST")
        assert details["fields"], name
    await nothing_happened(world)


async def test_devices_are_held_to_the_same_json(world: World) -> None:
    device = Raw(await world.device("edge-1"))
    for body in (
        b'{"status": "online", "status": "error"}',
        b'{"status": "online", "metrics": {"cpu": 1e999}}',
        b'{"status": "online", "diagnostics": {"n": 9007199254740993}}',
        b'{"status": "online"',
        b"[]",
    ):
        assert_error(await device.post(f"{DEVICE}/heartbeat", body), 400, "INVALID_REQUEST")
    assert (await world.owner.status("edge-1"))["lastHeartbeat"] is None


async def test_nul_and_lone_surrogates_in_free_text_become_the_replacement_character(world: World) -> None:
    raw = Raw(world.owner)
    body = rb'{"deviceId": "edge-1", "name": "a\u0000b", "location": "x\ud800y\udc00\ud83d\ude00"}'
    expect(await raw.post(PROVISION, body), 201)
    (device,) = expect(await world.owner.get(f"{CUSTOMER}/devices"), 200)["devices"]
    assert (device["name"], device["location"]) == ("a\ufffdb", "x\ufffdy\ufffd\U0001f600")
    session = await world.owner.open_session("edge-1")
    body = rb'{"type": "ping", "parameters": {"a\u0000": ["\udfff", {"\u0000": 1}]}}'
    reply = await raw.post(f"{CUSTOMER}/sessions/{session['id']}/commands", body)
    assert expect(reply, 201)["command"]["parameters"] == {"a\ufffd": ["\ufffd", {"\ufffd": 1}]}
    for search in ("%00", "%EF%BF%BD"):
        found = expect(await world.owner.get(f"{CUSTOMER}/devices?search={search}"), 200)
        assert found["total"] == 1
    assert (await world.owner.get(f"{CUSTOMER}/sessions?deviceId=%00")).status == 200


async def test_integers_up_to_2_to_the_53_come_back_as_they_were(world: World) -> None:
    await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    parameters = {"most": 2**53, "least": -(2**53), "ratio": 0.1, "whole": 1.0, "tiny": 5e-324, "zero": -0.0}
    command = await world.owner.submit(session["id"], "ping", parameters=parameters)
    assert json.dumps(command["parameters"]) == json.dumps(parameters)
    assert json.dumps((await world.owner.command(command))["parameters"]) == json.dumps(parameters)


async def test_an_unknown_field_is_400_on_the_customer_api_and_named(world: World) -> None:
    reply = await world.owner.post(PROVISION, {"deviceId": "edge-1", "colour": "red", "size": 1})
    details = assert_error(reply, 400, "INVALID_REQUEST")
    assert set(details["fields"]) == {"colour", "size"}
    await nothing_happened(world)
    await world.owner.provision("edge-1")
    for path in ("suspend", "resume", "rotate-secret"):
        reply = await world.owner.post(f"{CUSTOMER}/devices/edge-1/{path}", {"why": "because"})
        assert set(assert_error(reply, 400, "INVALID_REQUEST")["fields"]) == {"why"}


async def test_an_unknown_field_is_ignored_on_the_device_api(world: World) -> None:
    device = await world.device("edge-1")
    expect(await device.heartbeat(firmware="9.9", nested={"a": [1]}), 200)
    assert await device.claim(colour="red") == []
    body = {"deviceId": "edge-1", "deviceSecret": device.secret, "model": "X"}
    expect(await world.anyone().post(f"{DEVICE}/auth", body), 200)


async def test_every_wrong_field_is_named_at_once(world: World) -> None:
    reply = await world.owner.post(f"{CUSTOMER}/sessions", {"type": 5, "description": [], "x": 1})
    fields = assert_error(reply, 400, "INVALID_REQUEST")["fields"]
    assert set(fields) == {"deviceId", "type", "description", "x"}
    assert fields["deviceId"] == ["Missing data for required field."]
    assert all(isinstance(problem, str) for problems in fields.values() for problem in problems)


async def test_a_missing_body_counts_as_an_empty_object_where_every_field_is_optional(world: World) -> None:
    device = await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    command = await world.owner.submit(session["id"])
    nothing_sent = Raw(device)
    assert expect(await nothing_sent.post(f"{DEVICE}/commands/claim", None, None), 200)["commands"]
    raw = Raw(world.owner)
    cancel = f"{CUSTOMER}/sessions/{session['id']}/commands/{command['id']}/cancel"
    for kind in (None, "text/plain", "application/json"):
        expect(await raw.post(cancel, b"", kind), 200)
    missing = await raw.post(PROVISION, None, None)
    assert set(assert_error(missing, 400, "INVALID_REQUEST")["fields"]) == {"deviceId"}


async def test_a_body_of_64_kib_passes_and_one_byte_more_is_413(world: World) -> None:
    raw = Raw(world.owner)

    def sized(size: int) -> bytes:
        return b'{"deviceId": "edge-1"' + b" " * (size - 22) + b"}"

    async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 20_000):
            yield body[start : start + 20_000]

    over = sized(64 * 1024 + 1)
    for body in (over, in_pieces(over)):
        details = assert_error(await raw.post(PROVISION, body), 413, "PAYLOAD_TOO_LARGE")
        assert details == {"limitBytes": 64 * 1024}
    await nothing_happened(world)
    for body in (sized(64 * 1024), in_pieces(sized(64 * 1024))):
        expect(await raw.post(PROVISION, body), 201)


async def test_a_body_is_refused_by_the_length_it_declares_before_it_comes(world: World) -> None:
    head = (
        f"POST {PROVISION} HTTP/1.1\r\nHost: a\r\nAuthorization: {world.owner.headers['Authorization']}\r\n"
        "Content-Type: application/json\r\nContent-Length: 10000000000\r\nConnection: close\r\n\r\n"
    )
    status, _, body = await exchanged(world.url, head.encode())
    assert (status, body["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_result_may_have_256_kib(world: World) -> None:
    device = await world.device("edge-1")
    session = await world.owner.open_session("edge-1")
    await world.owner.submit(session["id"])
    (claimed,) = await device.claim()
    result = {
        "claimToken": claimed["claimToken"],
        "status": "success",
        "executedAt": "2026-01-02T03:04:05Z",
        "duration": 1,
        "output": "",
    }
    room = 256 * 1024 - len(json.dumps(result))
    raw, path = Raw(device), f"{DEVICE}/commands/{claimed['id']}/result"
    over = await raw.post(path, json.dumps({**result, "output": "x" * (room + 1)}).encode())
    assert assert_error(over, 413, "PAYLOAD_TOO_LARGE") == {"limitBytes": 256 * 1024}
    expect(await raw.post(path, json.dumps({**result, "output": "x" * room}).encode()), 200)
    heartbeat = json.dumps({"status": "online", "diagnostics": "x" * 70_000}).encode()
    assert_error(await raw.post(f"{DEVICE}/heartbeat", heartbeat), 413, "PAYLOAD_TOO_LARGE")


async def test_a_body_that_is_not_json_in_utf8_is_415(world: World) -> None:
    raw, body = Raw(world.owner), b'{"deviceId": "edge-1"}'
    for kind in (
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/xml",
        "application/jsonp",
        "nonsense",
    ):
        assert_error(await raw.post(PROVISION, body, kind), 415, "UNSUPPORTED_MEDIA_TYPE")
    assert_error(await raw.post(PROVISION, body, Content_Encoding="br"), 415, "UNSUPPORTED_MEDIA_TYPE")
    await nothing_happened(world)
    for kind in ("application/json", "APPLICATION/JSON", "application/json;charset=UTF-8"):
        expect(await raw.post(PROVISION, body, kind), 201)


# Times


async def test_every_time_is_utc_with_milliseconds(world: World) -> None:
    device = await world.device("edge-1")
    await device.heartbeat(metrics={"cpu": 1})
    session = await world.owner.open_session("edge-1")
    await world.owner.submit(session["id"])
    (claimed,) = await device.claim()
    expect(await device.report(claimed, executedAt="2026-01-02T05:04:05.6789+02:00"), 200)
    await world.owner.submit(session["id"], "restart_service")
    paths = ["devices", "devices/edge-1/status", "approvals", "audit"]
    paths += [f"sessions/{session['id']}", f"sessions/{session['id']}/transcript"]
    seen = [claimed, *[expect(await world.owner.get(f"{CUSTOMER}/{path}"), 200) for path in paths]]
    times = list(times_in(seen))
    assert len(times) > 30
    assert [time for time in times if not TIME.fullmatch(time)] == []
    assert "2026-01-02T03:04:05.678Z" in times


def times_in(value: Any) -> Any:
    """Every text that begins as a time does."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from times_in(item)
    elif isinstance(value, str) and value[:2] == "20" and value[4:5] == "-" and value[10:11] == "T":
        yield value


# CORS


async def preflight(world: World, path: str, origin: str, method: str, headers: str = "") -> Reply:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    if headers:
        asked["Access-Control-Request-Headers"] = headers
    return await world.anyone().call("OPTIONS", path, headers=asked)


async def test_a_page_of_an_allowed_origin_may_use_every_customer_and_device_route(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_CORS_ORIGINS=f"{PORTAL}, https://other.example:8443")
    document = expect(await world.anyone().get("/openapi.json"), 200)
    asked = "authorization,content-type,idempotency-key,x-customer-id,x-device-token,x-request-id"
    for path, methods in document["paths"].items():
        if not path.startswith(API):
            continue
        concrete = path.replace("{deviceId}", "edge-1").replace("{sessionId}", str(uuid4()))
        concrete = concrete.replace("{commandId}", str(uuid4()))
        for method in methods:
            for origin in (PORTAL, "https://other.example:8443"):
                reply = await preflight(world, concrete, origin, method.upper(), asked)
                assert reply.status == 200, (method, path)
                assert reply.headers["Access-Control-Allow-Origin"] == origin
                assert method.upper() in reply.headers["Access-Control-Allow-Methods"]
                allowed = reply.headers["Access-Control-Allow-Headers"].lower()
                assert all(name in allowed for name in asked.split(","))
                assert "Access-Control-Allow-Credentials" not in reply.headers


async def test_such_a_page_reads_successes_failures_and_the_headers_it_needs(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_CORS_ORIGINS=PORTAL)
    origin = {"Origin": PORTAL}
    replies = [
        await world.owner.call("GET", f"{CUSTOMER}/devices", headers=origin),
        await world.anyone().call("GET", f"{CUSTOMER}/devices", headers=origin),
        await world.owner.call("GET", f"{CUSTOMER}/devices/nowhere-1/status", headers=origin),
        await world.owner.call("POST", PROVISION, {"deviceId": "a b"}, headers=origin),
        await world.owner.call("GET", "/nowhere", headers=origin),
        await world.owner.call("PUT", f"{CUSTOMER}/devices", headers=origin),
    ]
    assert [reply.status for reply in replies] == [200, 401, 404, 400, 404, 405]
    for reply in replies:
        assert reply.headers["Access-Control-Allow-Origin"] == PORTAL
        exposed = {name.strip().lower() for name in reply.headers["Access-Control-Expose-Headers"].split(",")}
        assert {"x-request-id", "retry-after", "idempotent-replay"} <= exposed
        assert "Origin" in reply.headers["Vary"]


async def test_a_page_of_another_origin_gets_no_leave(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_CORS_ORIGINS=PORTAL)
    for origin in (STRANGER, "null", f"{PORTAL}.evil.example", f"{PORTAL}:8443", PORTAL.replace("https", "http")):
        refused = await preflight(world, f"{CUSTOMER}/sessions", origin, "POST", "authorization")
        assert_error(refused, 403, "FORBIDDEN")
        assert "Access-Control-Allow-Origin" not in refused.headers
        for path in (f"{CUSTOMER}/devices", "/nowhere"):
            reply = await world.owner.call("GET", path, headers={"Origin": origin})
            assert "Access-Control-Allow-Origin" not in reply.headers


async def test_a_preflight_for_what_is_not_offered_is_403(start_world: StartWorld) -> None:
    world = await start_world(AIZEN_CORS_ORIGINS=PORTAL)
    assert_error(await preflight(world, f"{CUSTOMER}/sessions", PORTAL, "TRACE"), 403, "FORBIDDEN")
    assert_error(await preflight(world, f"{CUSTOMER}/sessions", PORTAL, "POST", "x-secret"), 403, "FORBIDDEN")


async def test_without_origins_no_page_gets_leave(world: World) -> None:
    assert (await preflight(world, f"{CUSTOMER}/sessions", PORTAL, "POST")).status in (403, 405)
    reply = await world.owner.call("GET", f"{CUSTOMER}/devices", headers={"Origin": PORTAL})
    assert "Access-Control-Allow-Origin" not in reply.headers


# Secrets and logs


async def test_no_token_secret_or_code_is_in_any_line_or_error_of_a_whole_story(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    process = await start_gateway_process(AIZEN_LOG_LEVEL="debug")
    world = await World.create(process.url, http, database)
    code = (await world.owner.provision("edge-1"))["activationCode"]
    wrong_code, wrong_secret = "ABCDE-FGHJK", "not-the-secret-of-anybody-0123456789-ABCDEFG"
    forged = signed(JWT_SECRET[::-1], "HS256", user_claims(world.owner.user_id))
    anyone, register, auth = world.anyone(), f"{DEVICE}/register", f"{DEVICE}/auth"
    replies = [await anyone.post(register, {"deviceId": "edge-1", "activationCode": wrong_code})]
    registered = expect(await anyone.post(register, {"deviceId": "edge-1", "activationCode": code}), 201)
    secret = registered["deviceSecret"]
    replies.append(await anyone.post(auth, {"deviceId": "edge-1", "deviceSecret": wrong_secret}))
    replies.append(await anyone.post(auth, {"deviceId": secret, "deviceSecret": ["x", secret]}))
    token = expect(await anyone.post(auth, {"deviceId": "edge-1", "deviceSecret": secret}), 200)["token"]
    jwt = token_for(world.owner.user_id)
    spoiled = token[:-1] + ("A" if token[-1] != "A" else "B")
    replies += [
        await anyone.get(f"{CUSTOMER}/devices?token={jwt}"),
        await anyone.get(f"{CUSTOMER}/devices?access_token={token}", Authorization=f"Bearer {forged}"),
        await anyone.get(f"/{jwt}"),
        await anyone.get(f"/api/v1/{token}/{secret}"),
        await anyone.get(f"{CUSTOMER}/devices/{secret}/status", Authorization=f"Bearer {jwt}"),
        await anyone.post(f"{DEVICE}/heartbeat", {"status": "online"}, X_Device_Token=spoiled),
        await anyone.post(f"{DEVICE}/heartbeat", {"status": token}, X_Device_Token=token),
        await anyone.post(f"{DEVICE}/commands/claim", {"limit": secret}, X_Device_Session=token),
        await anyone.post(PROVISION, {"deviceId": token, "name": [jwt]}, Authorization=f"Bearer {jwt}"),
        await anyone.get(f"{CUSTOMER}/audit", Authorization=f"Basic {jwt}", User_Agent=f"agent {jwt}"),
        await anyone.get("/healthz", X_Request_ID=jwt[:128]),
        await Raw(anyone).post(auth, f'{{"deviceId": "edge-1", "deviceSecret": "{secret}"'.encode()),
    ]
    device = {"X-Device-Token": token}
    await anyone.call("POST", f"{DEVICE}/logout", {}, headers=device)
    secrets = {
        "the code": code,
        "the code as it may be typed": code.replace("-", ""),
        "a wrong code": wrong_code,
        "the secret": secret,
        "a wrong secret": wrong_secret,
        "the token": token.rpartition(".")[2],
        "a spoiled token": spoiled.rpartition(".")[2],
        "a user's token": jwt.rpartition(".")[2],
        "a forged token": forged.rpartition(".")[2],
        "the key of all": JWT_SECRET,
    }
    assert [reply.status for reply in replies if reply.status < 400] == [200]
    bodies = json.dumps([reply.body for reply in replies])
    assert [name for name, value in secrets.items() if value in bodies] == []
    assert await process.run.stop() == 0
    assert [name for name, value in secrets.items() if value in process.run.text] == []
    assert len([entry for entry in process.run.entries if entry["event"] == "request"]) >= len(replies)


async def test_every_line_of_a_request_carries_its_id_its_customer_and_its_device(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    process = await start_gateway_process()
    world = await World.create(process.url, http, database)
    device = await world.device("edge-1")
    marked = {"X-Request-ID": "marked"}
    await world.owner.call("GET", f"{CUSTOMER}/devices", headers=marked)
    line = await process.run.logged("request", request_id="marked")
    assert (line["customer_id"], line["method"], line["status"]) == (world.customer_id, "GET", 200)
    assert line["route"] == f"{CUSTOMER}/devices"
    for path, body in ((f"{DEVICE}/heartbeat", {"status": "online"}), (f"{DEVICE}/commands/claim", {})):
        expect(await device.call("POST", path, body, headers={"X-Request-ID": path.replace("/", ".")}), 200)
        line = await process.run.logged("request", request_id=path.replace("/", "."))
        assert (line.get("device_id"), line.get("customer_id")) == ("edge-1", world.customer_id)
    body = {"deviceId": "edge-1", "deviceSecret": "wrong"}
    await world.anyone().call("POST", f"{DEVICE}/auth", body, headers={"X-Request-ID": "refused"})
    await process.run.logged("request", request_id="refused")
    lines = [entry for entry in process.run.entries if entry.get("request_id") == "refused"]
    assert [entry["event"] for entry in lines][-1] == "request"
    assert len(lines) >= 2
    assert lines[-1]["error_code"] == "INVALID_CREDENTIALS"


# Documents


async def test_the_documents_and_health_are_public_and_nothing_else_is(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with ClientSession() as http:
        anyone = Client(http, gateway.url)
        for path in ("/healthz", "/readyz", "/version", "/openapi.json", "/docs"):
            assert (await anyone.get(path)).status == 200, path
        for path in ("/metrics", "/api", "/admin", "/favicon.ico"):
            assert_error(await anyone.get(path), 404, "NOT_FOUND")


@pytest.mark.parametrize("header", ["X-Device-Token", "X-Device-Session", "Authorization"])
async def test_a_device_may_show_its_token_in_any_of_three_headers(world: World, header: str) -> None:
    device = await world.device("edge-1")
    value = f"Bearer {device.token}" if header == "Authorization" else device.token
    reply = await world.anyone().call("POST", f"{DEVICE}/heartbeat", {"status": "online"}, headers={header: value})
    expect(reply, 200)


@pytest.mark.parametrize("origins", ["", "https://portal.example"])
async def test_options_is_no_method_of_a_client_that_is_no_browser(start_world: StartWorld, origins: str) -> None:
    world = await start_world(AIZEN_CORS_ORIGINS=origins)
    for path in (f"{API}/customer/devices", "/healthz"):
        reply = await world.owner.call("OPTIONS", path)
        assert (reply.status, reply.code) == (405, "METHOD_NOT_ALLOWED")
        assert "GET" in reply.headers["Allow"]
