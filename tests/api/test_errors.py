"""Every failure is answered in the contract's shape, and tells nothing that it should not (contract section 1)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest
from aiohttp import ClientResponse, web
from structlog.testing import capture_logs

from aizen_gateway.api.endpoint import Auth, Call, Route, endpoint
from aizen_gateway.api.errors import STATUS
from aizen_gateway.api.keys import ORIGIN
from aizen_gateway.api.metrics import METRICS
from aizen_gateway.api.responses import json_response
from aizen_gateway.domain.errors import GatewayError, RateLimited
from aizen_gateway.logs import with_context

from .bare import PORTAL, Client, bare_app, exchange, served, serving


def expected_failures(cls: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    if cls.__module__ == GatewayError.__module__:
        yield cls
    for child in cls.__subclasses__():
        yield from expected_failures(child)


async def failing(request: web.Request) -> web.StreamResponse:
    raise RuntimeError("password=hunter2 in select * from aizen.devices")


async def limited(request: web.Request) -> web.StreamResponse:
    raise RateLimited(retry_after=7)


async def teapot(request: web.Request) -> web.StreamResponse:
    raise web.HTTPConflict(text="<b>inner words</b>")


async def tell_origin(request: web.Request) -> web.StreamResponse:
    origin = request[ORIGIN]
    return web.json_response({"id": origin.request_id, "ip": origin.ip, "agent": origin.user_agent})


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    app = bare_app(failing=failing, limited=limited, teapot=teapot, origin=tell_origin)
    async with serving(app) as client:
        yield client


async def error_of(response: ClientResponse) -> dict[str, Any]:
    assert response.content_type == "application/json"
    body = await response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "details", "requestId"}
    assert isinstance(error["details"], dict)
    assert error["requestId"] == response.headers["X-Request-ID"]
    return error


def test_every_expected_failure_has_a_status() -> None:
    codes = {cls.code for cls in expected_failures() if "code" in vars(cls)}
    assert codes == set(STATUS)
    assert all(400 <= status < 600 for status in STATUS.values())


async def test_an_unforeseen_failure_is_500_and_tells_nothing(client: Client) -> None:
    with capture_logs(processors=[with_context]) as lines:
        response = await client.post("/failing", headers={"X-Request-ID": "trace-1"})
    assert response.status == 500
    error = await error_of(response)
    assert error["code"] == "INTERNAL_ERROR"
    assert "hunter2" not in await response.text()
    told = [line for line in lines if line["log_level"] == "error"]
    assert [line["request_id"] for line in told] == ["trace-1"]
    assert isinstance(told[0]["exc_info"], RuntimeError)


async def test_an_expected_failure_carries_its_code_and_when_to_come_back(client: Client) -> None:
    response = await client.post("/limited")
    assert (response.status, response.headers["Retry-After"]) == (429, "7")
    assert (await error_of(response))["code"] == "RATE_LIMITED"


async def test_what_the_framework_refuses_gets_a_code_of_the_contract(client: Client) -> None:
    response = await client.post("/teapot")
    assert response.status == 400
    error = await error_of(response)
    assert error["code"] == "INVALID_REQUEST"
    assert "inner words" not in error["message"]


async def test_an_unknown_route_is_404(client: Client) -> None:
    response = await client.get("/api/v1/nothing?token=secret")
    assert response.status == 404
    assert (await error_of(response))["code"] == "NOT_FOUND"


async def test_a_wrong_method_is_405_and_names_the_right_ones(client: Client) -> None:
    response = await client.put("/api/v1/customer/sessions")
    assert response.status == 405
    assert response.headers["Allow"] == "GET, OPTIONS, POST"
    assert (await error_of(response))["code"] == "METHOD_NOT_ALLOWED"


async def test_no_token_is_401_before_the_body_is_looked_at(client: Client) -> None:
    response = await client.post("/api/v1/device/heartbeat", data=b"not json")
    assert response.status == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert (await error_of(response))["code"] == "UNAUTHENTICATED"


async def test_a_bad_body_names_every_wrong_field(client: Client) -> None:
    response = await client.post("/api/v1/device/register", json={"deviceId": "a b"})
    assert response.status == 400
    error = await error_of(response)
    assert error["code"] == "INVALID_REQUEST"
    assert set(error["details"]["fields"]) == {"deviceId", "activationCode"}


@pytest.mark.parametrize("given", ["a", "x" * 128, "A-1.b:c_d"])
async def test_a_request_id_of_the_right_form_comes_back(client: Client, given: str) -> None:
    response = await client.get("/healthz", headers={"X-Request-ID": given})
    assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "é"])
async def test_another_request_id_is_replaced(client: Client, given: str) -> None:
    response = await client.get("/healthz", headers={"X-Request-ID": given})
    assert UUID(response.headers["X-Request-ID"]).version == 4


async def test_an_origin_holds_what_can_be_stored(client: Client) -> None:
    headers = {"User-Agent": "agent\t" + "x" * 600, "X-Forwarded-For": "1.2.3.4", "X-Request-ID": "r"}
    told = await (await client.post("/origin", headers=headers)).json()
    assert told == {"id": "r", "ip": "127.0.0.1", "agent": ("agent\ufffd" + "x" * 600)[:512]}


async def test_a_request_is_logged_once_by_its_template_and_without_its_query(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with capture_logs(processors=[with_context]) as lines:
        await client.get("/api/v1/customer/nothing?token=secret", headers={"X-Request-ID": "one"})
        await client.post("/api/v1/device/commands/claim?token=secret", headers={"Authorization": "Bearer \u00e9"})
    assert [(line["route"], line["status"]) for line in lines] == [
        ("unmatched", 404),
        ("/api/v1/device/commands/claim", 401),
    ]
    assert lines[0]["request_id"] == "one"
    assert "secret" not in repr(lines)


async def test_pages_of_an_allowed_origin_may_read_failures_of_every_kind(client: Client) -> None:
    headers = {"Origin": PORTAL}
    answers = [
        await client.get("/nothing", headers=headers),
        await client.put("/api/v1/customer/devices", headers=headers),
        await client.post("/api/v1/device/register", json={}, headers=headers),
        await client.get("/healthz", headers=headers),
    ]
    for response in answers:
        assert response.headers["Access-Control-Allow-Origin"] == PORTAL
        assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]
        assert "Origin" in response.headers["Vary"]


async def test_pages_of_another_origin_may_read_the_documents_alone(client: Client) -> None:
    headers = {"Origin": "https://elsewhere.example"}
    assert "Access-Control-Allow-Origin" in (await client.get("/openapi.json", headers=headers)).headers
    for path in ("/nothing", "/api/v1/customer/devices/a/b"):
        assert "Access-Control-Allow-Origin" not in (await client.get(path, headers=headers)).headers


async def test_a_preflight_of_an_allowed_origin_passes_with_the_headers_of_the_contract(client: Client) -> None:
    asked = "authorization, content-type, idempotency-key, x-customer-id, x-request-id"
    headers = {"Origin": PORTAL, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    response = await client.options("/api/v1/customer/sessions", headers=headers)
    assert response.status == 200
    assert response.headers["Access-Control-Allow-Origin"] == PORTAL
    assert response.headers["Access-Control-Max-Age"] == "600"
    assert response.headers["X-Request-ID"]


async def test_a_preflight_of_another_origin_is_403_in_the_shape_of_all_errors(client: Client) -> None:
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    response = await client.options("/api/v1/customer/sessions", headers=headers)
    assert response.status == 403
    assert (await error_of(response))["code"] == "FORBIDDEN"


async def test_a_request_that_takes_too_long_is_503_and_may_be_repeated() -> None:
    ended = asyncio.Event()

    async def stuck(call: Call[None]) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return json_response({})

    route = Route("POST", "/stuck", stuck, Auth.NONE, "Never answers", "device")
    async with serving(bare_app(request_timeout_s=0.05, stuck=endpoint(route))) as client:
        response = await client.post("/stuck")
        assert response.status == 503
        assert response.headers["Retry-After"]
        assert (await error_of(response))["code"] == "UNAVAILABLE"
        assert ended.is_set()


async def test_a_handler_goes_on_when_its_client_has_left() -> None:
    begun, left, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        begun.set()
        await left.wait()
        finished.set()
        return web.Response()

    async with served(bare_app(slow=slow)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await begun.wait()
        writer.close()
        await writer.wait_closed()
        left.set()
        await finished.wait()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /healthz HTTP/9.9x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon here\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_the_same_shape_and_an_id(garbage: bytes) -> None:
    with capture_logs() as lines:
        async with served(bare_app()) as port:
            head, _, body = (await exchange(port, garbage)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400 ")
    error = json.loads(body)["error"]
    assert error["code"] == "INVALID_REQUEST"
    assert f"X-Request-ID: {error['requestId']}".encode() in head
    assert [line["event"] for line in lines] == ["malformed_request"]


async def test_an_expectation_nobody_knows_is_400_in_the_same_shape() -> None:
    asked = b"GET /healthz HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\nConnection: close\r\n\r\n"
    async with served(bare_app()) as port:
        head, _, body = (await exchange(port, asked)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    error = json.loads(body)["error"]
    assert error["code"] == "INVALID_REQUEST"
    assert f"X-Request-ID: {error['requestId']}".encode() in head


async def test_health_answers_to_head(client: Client) -> None:
    for path in ("/healthz", "/version"):
        response = await client.head(path)
        assert (response.status, await response.read()) == (200, b"")


async def test_numbers_are_labelled_by_template_however_many_paths_are_asked_for() -> None:
    app = bare_app()
    async with serving(app) as client:
        for number in range(20):
            await client.get(f"/nothing/{number}")
        for method in ("PROPFIND", "LOCK", "MKCOL"):
            await client.request(method, "/healthz")
    shown = app[METRICS].text().decode()
    lines = [line for line in shown.splitlines() if line.startswith("aizen_http_requests_total")]
    assert len(lines) == 2
    assert 'aizen_build_info{build="test",version="1.2.3"} 1.0' in shown
