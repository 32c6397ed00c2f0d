"""Traces: a span a request for a collector, when the standard variables ask for it (docs/operations.md)."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aizen_gateway.storage.postgres import Database
from aizen_gateway.tracing import Tracing, TracingError
from tests.support.clients import API, JWT_SECRET, Client, World, expect
from tests.support.processes import StartGatewayProcess, StartProcess, finished
from tests.support.sockets import device_socket

_NOWHERE = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing", "REDIS_URL": "redis://127.0.0.1:1/0"}
_TRACE, _PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_OTHER_TRACE = "1bf7651916cd43dd8448eb211c80319c"
_SERVER, _ERROR = 2, 2
# No span is sent before the end.
_LATE = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}


@dataclass(slots=True)
class Collector:
    """Where traces are sent, over OTLP/HTTP. While `open` is not set it takes spans and answers nothing."""

    url: str = ""
    spans: list[dict[str, Any]] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        self.asked.set()
        body = await request.read()
        await self.open.wait()
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_read(span) for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")

    def named(self, name: str) -> dict[str, Any]:
        """The only span of that name."""
        (found,) = (span for span in self.spans if span["name"] == name)
        return found


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def _read(span: Any) -> dict[str, Any]:
    assert span.kind == _SERVER
    assert span.end_time_unix_nano > span.start_time_unix_nano
    return {
        "name": span.name,
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "failed": span.status.code == _ERROR,
        **_values(span.attributes),
    }


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    made.open.set()
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_post("/v1/traces", made.take)
    async with TestServer(app) as server:
        made.url = str(server.make_url("/"))
        yield made
        made.open.set()


async def test_each_request_is_a_span_whose_ids_are_in_its_log_lines(
    start_gateway_process: StartGatewayProcess, collector: Collector, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, AIZEN_INSTANCE_ID="one", AIZEN_ENVIRONMENT="tests", **_LATE
    )
    world = await World.create(gateway.url, http, database)
    device = await world.device()
    anyone = world.anyone()
    missing = f"{API}/device/commands/6f9619ff-8b86-d011-b42d-00c04fc964ff"
    expect(await anyone.call("GET", "/openapi.json", headers=_asked("first", f"00-{_TRACE}-{_PARENT}-01")), 200)
    assert (await device.call("GET", missing, headers=_asked("second"))).status == 404
    assert (await anyone.call("GET", "/needle?needle", headers=_asked("third", "00-nonsense-01"))).status == 404
    # Whoever asks may say that its own trace is not recorded: the ids are in the log all the same.
    expect(await anyone.call("GET", "/version", headers=_asked("fourth", f"00-{_OTHER_TRACE}-{_PARENT}-00")), 200)
    async with device_socket(device):
        pass
    assert await gateway.run.stop() == 0

    assert collector.resource.items() >= {
        ("service.name", "aizen-gateway"),
        ("service.instance.id", "one"),
        ("deployment.environment.name", "tests"),
    }
    first = collector.named("GET /openapi.json")
    assert (first["trace_id"], first["parent"], first["failed"]) == (_TRACE, _PARENT, False)
    assert first["aizen.request_id"] == "first"
    assert first["http.route"] == "/openapi.json"
    assert first["http.request.method"] == "GET"
    assert first["http.response.status_code"] == 200
    assert first["client.address"] == "127.0.0.1"
    second = collector.named(f"GET {API}/device/commands/{{commandId}}")
    assert (second["parent"], second["failed"], second["error.type"]) == ("", False, "COMMAND_NOT_FOUND")
    third = collector.named("GET")
    assert (third["parent"], third["http.response.status_code"]) == ("", 404)
    assert "needle" not in str(collector.spans)
    assert not [span for span in collector.spans if span["trace_id"] == _OTHER_TRACE]
    # A socket's span is its handshake.
    assert collector.named("GET /ws/device")["http.response.status_code"] == 101
    # One a request, and each has its line.
    lines = {line["request_id"]: line for line in gateway.run.entries if line["event"] == "request"}
    assert len(collector.spans) == len(lines) - 1
    for span in collector.spans:
        line = lines[span["aizen.request_id"]]
        assert (line["trace_id"], line["span_id"]) == (span["trace_id"], span["span_id"])
    assert lines["fourth"]["trace_id"] == _OTHER_TRACE


def _asked(request_id: str, traceparent: str | None = None) -> dict[str, str]:
    return {"X-Request-ID": request_id, **({"traceparent": traceparent} if traceparent else {})}


async def test_a_failure_of_the_gateway_s_is_a_span_that_failed(
    start_gateway_process: StartGatewayProcess, collector: Collector, http: ClientSession
) -> None:
    gateway = await start_gateway_process(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **_LATE, **_NOWHERE)
    expect(await Client(http, gateway.url).get("/readyz"), 503)
    # Nothing else makes spans, such as the scrapes of another port.
    assert await gateway.run.stop() == 0
    (span,) = collector.spans
    assert (span["name"], span["failed"], span["error.type"]) == ("GET /readyz", True, "503")


async def test_a_collector_that_hangs_holds_up_neither_requests_nor_the_stop(
    start_gateway_process: StartGatewayProcess, collector: Collector, http: ClientSession
) -> None:
    collector.open.clear()
    gateway = await start_gateway_process(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="10", AIZEN_DRAIN_TIMEOUT="8", **_NOWHERE
    )
    client = Client(http, gateway.url)
    expect(await client.get("/healthz"), 200)
    async with asyncio.timeout(20):
        await collector.asked.wait()
        for _ in range(20):
            expect(await client.get("/healthz"), 200)
    # The exporter by itself would wait longer than the stop may take.
    assert await gateway.run.stop() == 0
    assert "stopped by force" not in gateway.run.text


async def test_a_collector_that_is_away_is_told_in_the_log_and_nothing_else_suffers(
    start_gateway_process: StartGatewayProcess, http: ClientSession
) -> None:
    gateway = await start_gateway_process(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_BSP_SCHEDULE_DELAY="10", **_NOWHERE
    )
    expect(await Client(http, gateway.url).get("/healthz"), 200)
    await gateway.run.said("opentelemetry.exporter")
    expect(await Client(http, gateway.url).get("/healthz"), 200)
    assert await gateway.run.stop() == 0
    # Every line is still one of the gateway's.
    assert gateway.run.entries


@pytest.fixture
def without_the_extra(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a process for which the libraries are not installed."""
    package = tmp_path / "opentelemetry"
    package.mkdir()
    (package / "__init__.py").write_text("raise ModuleNotFoundError('not installed')\n")
    return {**_NOWHERE, "SUPABASE_JWT_SECRET": JWT_SECRET, "AIZEN_PORT": "0", "PYTHONPATH": str(tmp_path)}


async def test_without_the_extra_it_starts_and_makes_no_spans(
    start_process: StartProcess, without_the_extra: Mapping[str, str]
) -> None:
    process = await start_process("serve", environment={**without_the_extra, "OTEL_SERVICE_NAME": "x"})
    assert "trace_id" not in await process.logged("listening")
    assert await process.stop() == 0


async def test_traces_that_are_asked_for_without_the_extra_stop_the_start_with_a_line(
    start_process: StartProcess, without_the_extra: Mapping[str, str]
) -> None:
    asked = {**without_the_extra, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    outcome = await finished(await start_process("serve", environment=asked))
    assert outcome.status == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("aizen-gateway: OTEL_EXPORTER_OTLP_ENDPOINT: ")
    assert "aizen-gateway[otel]" in line


def _tracing(environ: Mapping[str, str]) -> Tracing | None:
    return Tracing.from_env(environ, version="1", instance_id="x", environment="x")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318"},
    ],
)
def test_without_the_variables_there_are_no_traces(environ: dict[str, str]) -> None:
    assert _tracing(environ) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "ftp://collector"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:many"},
    ],
)
def test_what_cannot_be_had_is_told_by_the_variable_s_name(environ: dict[str, str]) -> None:
    with pytest.raises(TracingError, match=f"^{next(iter(environ))}: ") as told:
        _tracing(environ)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "environ", [{"OTEL_TRACES_EXPORTER": "otlp"}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}]
)
async def test_the_service_s_name_and_more_can_be_given(
    environ: dict[str, str], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}v1/traces")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,rack=3")
    tracing = _tracing({**environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url})
    assert tracing is not None
    span = tracing.begin("BREW", "/tea", {}, {})
    span.end(418, "TEAPOT")
    # Twice is once.
    span.end(500)
    await tracing.aclose(10)
    assert collector.resource.items() >= {("service.name", "other"), ("rack", "3"), ("service.version", "1")}
    (sent,) = collector.spans
    assert (sent["name"], sent["http.request.method"]) == ("HTTP /tea", "_OTHER")
    assert (sent["http.response.status_code"], sent["error.type"], sent["failed"]) == (418, "TEAPOT", False)
