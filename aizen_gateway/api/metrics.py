"""Prometheus numbers about HTTP, in a registry of the application's own.

Labels come from the route table, the known methods and the statuses, so that their number never grows with devices,
customers or what scanners ask for.
"""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.process_collector import ProcessCollector

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Long polls of 30 s and the bound of 50 s on a request are inside the range.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class HttpMetrics:
    """Counts and times requests. `registry` takes further collectors of the same application."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("aizen_http_requests", "HTTP requests answered.", labels, registry=self.registry)
        self._seconds = Histogram(
            "aizen_http_request_duration_seconds",
            "Seconds from the request's headers to its answer.",
            labels[:2],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        Info("aizen_build", "What is running.", registry=self.registry).info({"version": version})
        ProcessCollector(registry=self.registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. `route` is the template of the matched route, or one word for all others."""
        method = method if method in _METHODS else "OTHER"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    async def handle(self, request: web.Request) -> web.Response:
        """`GET /metrics`, for the address that is not public."""
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


METRICS = web.AppKey("METRICS", HttpMetrics)
