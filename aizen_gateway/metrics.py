"""The gateway's numbers for Prometheus, in a registry of the application's own: their names are chosen in one place.

No label grows with devices, customers or what scanners ask for: labels are words of the gateway's own tables.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = CONTENT_TYPE_LATEST
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Long polls of 30 s and the bound of 50 s on a request are inside the range.
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# From a push within milliseconds to what waited for a device that was away.
_COMMAND_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0)
_MOMENT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Requests(Collector):
    """HTTP requests by method, route and status, and their times: two list operations each, since it is done so often.

    The library's own counters take a lock and look through their labels and buckets each time.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], int] = {}
        # By method and route: how many fell into each bucket, the last for all beyond, and their sum.
        self._times: dict[tuple[str, str], tuple[list[int], list[float]]] = {}

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. `route` is the template of the matched route, or one word for all others."""
        if method not in METHODS:
            method = "OTHER"
        key = (method, route, status)
        self._counts[key] = self._counts.get(key, 0) + 1
        times = self._times.get(key[:2])
        if times is None:
            times = self._times[key[:2]] = ([0] * (len(_REQUEST_S) + 1), [0.0])
        times[0][bisect_left(_REQUEST_S, seconds)] += 1
        times[1][0] += seconds

    def collect(self) -> Iterator[Metric]:
        """For the registry, when somebody asks."""
        counts = CounterMetricFamily(
            "aizen_http_requests", "HTTP requests answered.", labels=("method", "route", "status")
        )
        for (method, route, status), number in self._counts.items():
            counts.add_metric((method, route, str(status)), number)
        yield counts
        times = HistogramMetricFamily(
            "aizen_http_request_duration_seconds",
            "Seconds from the request's headers to its answer.",
            labels=("method", "route"),
        )
        bounds = [*map(floatToGoString, _REQUEST_S), "+Inf"]
        for names, (buckets, total) in self._times.items():
            times.add_metric(names, list(zip(bounds, accumulate(buckets), strict=True)), total[0])
        yield times


class Metrics:
    """Counters, gauges and histograms by the name of what they tell. Times are seconds."""

    def __init__(self, version: str, build: str) -> None:
        self.registry = registry = CollectorRegistry()
        Info("aizen_build", "What is running.", registry=registry).info({"version": version, "build": build})
        ProcessCollector(registry=registry)

        self.requests = Requests()
        registry.register(self.requests)

        self.sockets = Gauge("aizen_sockets", "Open sockets by kind.", ("kind",), registry=registry)
        self.sockets_closed = Counter(
            "aizen_sockets_closed",
            "Sockets that ended, by the gateway's close code; 1013 are those dropped for not reading.",
            ("code",),
            registry=registry,
        )
        self.fanout_seconds = Histogram(
            "aizen_fanout_seconds",
            "Seconds from publishing to hearing it: this instance's own messages to itself.",
            buckets=_MOMENT_S,
            registry=registry,
        )
        self.channels = Gauge(
            "aizen_subscriber_channels", "Channels that the subscriber has joined.", registry=registry
        )

        self.claims = Counter("aizen_commands_claimed", "Commands handed out.", registry=registry)
        self.redeliveries = Counter("aizen_commands_redelivered", "Commands handed out again.", registry=registry)
        self.ended = Counter(
            "aizen_commands_ended",
            "Commands that ended, by status; undeliverable are the dead letters.",
            ("status",),
            registry=registry,
        )
        self.claim_seconds = Histogram(
            "aizen_command_claim_latency_seconds",
            "Seconds from submission to the first claim.",
            buckets=_COMMAND_S,
            registry=registry,
        )
        self.result_seconds = Histogram(
            "aizen_command_result_latency_seconds",
            "Seconds from submission to the result.",
            buckets=_COMMAND_S,
            registry=registry,
        )
        self.open_commands = Gauge(
            "aizen_commands_open", "Commands that have not ended, of all instances, by status.", ("status",),
            registry=registry,
        )  # fmt: skip

        self.outbox_waiting = Gauge("aizen_outbox_waiting", "Changes that are not dispatched yet.", registry=registry)
        self.outbox_oldest = Gauge("aizen_outbox_oldest_seconds", "Age of the oldest of them.", registry=registry)
        self.left_to_relay = Counter(
            "aizen_outbox_left_to_relay", "Changes that could not be dispatched at once.", registry=registry
        )
        self.loop_lag = Histogram(
            "aizen_event_loop_lag_seconds",
            "How late the event loop came back to a task that slept.",
            buckets=_MOMENT_S,
            registry=registry,
        )
        self.tasks = Gauge("aizen_asyncio_tasks", "Tasks of the event loop.", registry=registry)
        self.database_connections = Gauge(
            "aizen_database_connections", "PostgreSQL connections by state.", ("state",), registry=registry
        )
        self.redis_calls = Gauge("aizen_redis_calls", "Calls that Redis has not answered yet.", registry=registry)
        self.redis_seconds = Histogram(
            "aizen_redis_script_seconds",
            "Seconds of a script's run in Redis, the way there and back included.",
            buckets=_MOMENT_S,
            registry=registry,
        )

    def show_connections(self, kinds: Mapping[str, Callable[[], float]]) -> None:
        """Read the number of open sockets of each kind whenever it is asked for."""
        for kind, count in kinds.items():
            self.sockets.labels(kind).set_function(count)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
