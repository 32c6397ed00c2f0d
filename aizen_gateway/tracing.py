"""OpenTelemetry traces, for those who ask for them: a server span a request, joined with the log by its ids.

The standard variables switch them on and say where they go; without them nothing of the libraries is needed here, for
they are an extra (`aizen-gateway[otel]`). Spans are sent by a thread of their own, from a queue that drops when it is
full: neither a slow collector nor one that is away holds up a request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanKind

_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_LIBRARIES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
_SPOKEN = "http/protobuf"
_SERVICE = "aizen-gateway"
# The methods that conventions name; others are words of strangers.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
_FAILED = 500


class TracingError(Exception):
    """Traces are asked for and cannot be made; the text is a line that names the variable."""


class ServerSpan:
    """The span of one request. `trace_id` and `span_id` are hex, as W3C writes them."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.span_id = f"{context.span_id:016x}"

    def end(self, status: int | None, error_code: str | None = None) -> None:
        """Say how the request ended: its HTTP status, None when it had none, and the code of an error.

        Only the first call counts.
        """
        if not self._span.is_recording():
            return
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if status is None or status >= _FAILED:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)
            self._span.set_attribute("error.type", error_code or str(status))
        elif error_code is not None:
            self._span.set_attribute("error.type", error_code)
        self._span.end()


class Tracing:
    """Makes spans and sends them."""

    def __init__(self, provider: TracerProvider, propagator: TextMapPropagator, kind: SpanKind) -> None:
        self._provider = provider
        self._propagator = propagator
        self._kind = kind
        self._tracer = provider.get_tracer("aizen_gateway")

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, version: str, instance_id: str, environment: str) -> Self | None:
        """Traces as the variables of OpenTelemetry say, None when none asks for them.

        The last three describe this instance in each span's resource; `OTEL_SERVICE_NAME` and
        `OTEL_RESOURCE_ATTRIBUTES` may say otherwise. The SDK reads its further variables (headers, sampler, queue)
        from the process's own environment. Raises `TracingError`.
        """
        if not asked_for(environ):
            return None
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        own = {
            "service.name": _SERVICE,
            "service.version": version,
            "service.instance.id": instance_id,
            "deployment.environment.name": environment,
        }
        resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        # At the exit nothing is waited for: `aclose` has sent what there was.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider, TraceContextTextMapPropagator(), SpanKind.SERVER)

    def begin(
        self, method: str, route: str | None, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> ServerSpan:
        """Begin the span of a request, a child of the one that its `traceparent` names.

        `route` is the template of the matched route, None when there is none: a path may hold anything.
        """
        known = method in _METHODS
        told = {"http.request.method": method if known else "_OTHER", **attributes}
        if route is not None:
            told["http.route"] = route
        name = method if known else "HTTP"
        return ServerSpan(
            self._tracer.start_span(
                name if route is None else f"{name} {route}",
                context=self._propagator.extract(headers),
                kind=self._kind,
                attributes=told,
            )
        )

    async def aclose(self, within: float) -> None:
        """Send the spans that wait, for `within` seconds at the most."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop may be gone by now
                loop.call_soon_threadsafe(sent.set)

        # No thread of a pool: those are waited for when the process ends.
        threading.Thread(target=send, name="traces-close", daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(sent.wait(), within)


def asked_for(environ: Mapping[str, str]) -> bool:
    """Whether the variables ask for traces. Raises `TracingError` when they do and there can be none."""
    given = {name: value.strip() for name, value in environ.items() if value.strip()}
    exporter = given.get(_EXPORTER)
    endpoint = next((name for name in _ENDPOINTS if name in given), None)
    off = given.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none"
    if off or (exporter is None and endpoint is None):
        return False
    if exporter not in (None, "otlp"):
        raise TracingError(f"{_EXPORTER}: must be otlp or none, not {exporter[:60]!r}")
    protocol = next((name for name in _PROTOCOLS if name in given), None)
    if protocol is not None and given[protocol] != _SPOKEN:
        raise TracingError(f"{protocol}: must be {_SPOKEN}, not {given[protocol][:60]!r}")
    if endpoint is not None and not _is_address(given[endpoint]):
        raise TracingError(f"{endpoint}: must be http://host:port or https://host:port")
    if not _is_installed():
        raise TracingError(f"{endpoint or _EXPORTER}: traces need an extra: pip install 'aizen-gateway[otel]'")
    return True


def _is_installed() -> bool:
    try:
        return all(find_spec(name) for name in _LIBRARIES)
    except ImportError:
        return False


def _is_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False
