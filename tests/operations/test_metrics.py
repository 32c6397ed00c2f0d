"""The numbers of an instance, and the dashboard and alerts that are made of them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from aizen_gateway.api.metrics import METRICS
from aizen_gateway.app import GATEWAY
from aizen_gateway.domain.clock import from_ms
from aizen_gateway.domain.values import NOWHERE, OPERATOR
from aizen_gateway.metrics import Metrics
from aizen_gateway.realtime.bus import Bus
from aizen_gateway.services.dispatch import Dispatcher
from aizen_gateway.services.gauges import Gauges
from aizen_gateway.services.transitions import expire_session
from aizen_gateway.storage.device_sessions import DeviceSessions, SessionRules
from aizen_gateway.storage.events import EventStream
from aizen_gateway.storage.postgres import Database
from aizen_gateway.storage.queue import Queue
from aizen_gateway.storage.redis_store import RedisOptions, RedisStore
from aizen_gateway.storage.rows import session_of
from tests.support.clients import API, World, expect
from tests.support.gateway import RunningGateway
from tests.support.inside import redis_ms
from tests.support.line import Line
from tests.support.portal import Newsroom, raw_portal
from tests.support.raw_socket import text_of
from tests.support.sockets import device_socket, portal_socket
from tests.support.waiting import eventually

DOCS = Path(__file__).parents[2] / "docs"
# Prometheus makes these of one histogram or counter.
_ENDINGS = re.compile(r"_(bucket|sum|count)$")
_OPEN = ("queued", "claimed", "pending_approval", "cancel_requested")


def names_of(metrics: Metrics) -> set[str]:
    """Every name that a query may use."""
    return {sample.name for family in metrics.registry.collect() for sample in family.samples} | {
        f"{family.name}{'_total' if family.type == 'counter' else ''}" for family in metrics.registry.collect()
    }


@pytest.mark.parametrize("file", ["grafana/aizen-gateway.json", "prometheus/alerts.yml"])
def test_dashboard_and_alerts_ask_only_for_numbers_that_there_are(file: str) -> None:
    known = {_ENDINGS.sub("", name) for name in names_of(Metrics("1", "2"))}
    asked = {_ENDINGS.sub("", name) for name in re.findall(r"\baizen_[a-z_]+", (DOCS / file).read_text("utf-8"))}
    assert asked
    assert asked <= known


def test_the_dashboard_is_json_with_a_query_in_every_panel() -> None:
    dashboard = json.loads((DOCS / "grafana" / "aizen-gateway.json").read_text("utf-8"))
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


def number(gateway: RunningGateway, name: str, **labels: str) -> float:
    """The number of that name now, 0 while there is none."""
    return gateway.app[METRICS].registry.get_sample_value(name, labels) or 0


async def comes(gateway: RunningGateway, name: str, least: float = 1, **labels: str) -> None:
    """Wait for the number to be at least that."""

    async def read() -> float:
        return number(gateway, name, **labels)

    await eventually(read, lambda found: found >= least)


@pytest.fixture
async def gauges(database: Database, redis_url: str) -> AsyncIterator[tuple[Metrics, Gauges]]:
    """The numbers of a database that no instance works on."""
    store, metrics = RedisStore.connect(RedisOptions(redis_url)), Metrics("1", "2")
    yield metrics, Gauges(metrics, database, store, Bus(store, "nobody"))
    await store.close()


async def test_requests_are_counted_and_timed_by_route_and_status(world: World, gateway: RunningGateway) -> None:
    for _ in range(3):
        expect(await world.anyone().get("/version"), 200)
    assert (await world.owner.get(f"{API}/customer/sessions/{uuid4()}")).status == 404
    assert (await world.anyone().get(f"/{uuid4()}")).status == 404
    counted = "aizen_http_requests_total"
    version = {"method": "GET", "route": "/version"}
    assert number(gateway, counted, status="200", **version) == 3
    assert number(gateway, "aizen_http_request_duration_seconds_count", **version) == 3
    assert number(gateway, "aizen_http_request_duration_seconds_bucket", le="+Inf", **version) == 3
    assert number(gateway, counted, method="GET", route=f"{API}/customer/sessions/{{sessionId}}", status="404") == 1
    assert number(gateway, counted, method="GET", route="unmatched", status="404") == 1


async def test_redeliveries_and_dead_letters_are_counted(line: Line, gateway: RunningGateway) -> None:
    await line.submit(maxDeliveries=2)
    for _ in range(2):
        (claimed,) = await line.device.claim(visibilityTimeout=1000, waitMs=20_000)
    assert claimed["attempt"] == 2
    assert number(gateway, "aizen_commands_claimed_total") == 2
    assert number(gateway, "aizen_commands_redelivered_total") == 1
    # How long it waited is told of the first claim alone.
    assert number(gateway, "aizen_command_claim_latency_seconds_count") == 1
    await comes(gateway, "aizen_commands_ended_total", status="undeliverable")


async def test_the_depth_of_the_queue_is_shown(line: Line, gauges: tuple[Metrics, Gauges]) -> None:
    metrics, counting = gauges
    await line.claimed()
    await line.submit("restart_dhcp")
    for _ in range(3):
        await line.submit()
    await counting.count()
    depth = {status: metrics.registry.get_sample_value("aizen_commands_open", {"status": status}) for status in _OPEN}
    assert depth == {"queued": 3, "claimed": 1, "pending_approval": 1, "cancel_requested": 0}


async def test_the_lag_of_the_outbox_is_shown(gauges: tuple[Metrics, Gauges], database: Database) -> None:
    metrics, counting = gauges
    value = metrics.registry.get_sample_value
    await counting.count()
    assert (value("aizen_outbox_waiting"), value("aizen_outbox_oldest_seconds")) == (0, 0)
    await database.execute(
        "insert into aizen.outbox (subject, subject_id, change, created_at)"
        " select 'command', gen_random_uuid(), 'x', now() - age * interval '1 minute' from generate_series(1, 3) age"
    )
    await counting.count()
    assert value("aizen_outbox_waiting") == 3
    assert 180 <= (value("aizen_outbox_oldest_seconds") or 0) < 240


async def test_what_ends_while_redis_is_away_is_counted_and_so_is_what_is_left_to_do(
    line: Line, database: Database, valkey: Redis
) -> None:
    for _ in range(3):
        await line.submit()
    async with database.transaction(from_ms(await redis_ms(valkey)), NOWHERE) as transaction:
        row = await transaction.fetchrow("select * from aizen.sessions where id = $1", UUID(line.session_id))
        assert row is not None
        await expire_session(transaction, session_of(row), OPERATOR)
    away, metrics = RedisStore.connect(RedisOptions("redis://127.0.0.1:1/0")), Metrics("1", "2")
    sessions = DeviceSessions(away, SessionRules(ttl_s=1, max_age_s=1, rate=0))
    await Dispatcher(database, Queue(away, sessions), EventStream(away), sessions, metrics).dispatch(
        transaction.changes
    )
    await away.close()
    assert metrics.registry.get_sample_value("aizen_commands_ended_total", {"status": "expired"}) == 3
    # The session and its commands.
    assert metrics.registry.get_sample_value("aizen_outbox_left_to_relay_total") == 4


async def test_the_event_loop_s_lag_is_measured(gateway: RunningGateway) -> None:
    async def late() -> float:
        """How often it was late by more than half a second."""
        lag = "aizen_event_loop_lag_seconds"
        return number(gateway, f"{lag}_count") - number(gateway, f"{lag}_bucket", le="0.5")

    await comes(gateway, "aizen_event_loop_lag_seconds_count", 2)
    before = await late()
    time.sleep(0.9)  # noqa: ASYNC251 - that is the point
    await eventually(late, lambda found: found > before)


async def test_fan_out_is_timed_and_channels_are_counted(world: World, gateway: RunningGateway) -> None:
    await comes(gateway, "aizen_fanout_seconds_count")
    before = number(gateway, "aizen_subscriber_channels")
    async with portal_socket(world.owner) as portal:
        await portal.ask("join_rooms", answer="rooms_joined")
        await comes(gateway, "aizen_subscriber_channels", before + 1)


async def test_what_postgresql_and_redis_are_used_for_at_the_moment_is_shown(
    world: World, gateway: RunningGateway
) -> None:
    await world.device()
    await comes(gateway, "aizen_database_connections", state="free")
    async with gateway.app[GATEWAY].database.unit():
        await comes(gateway, "aizen_database_connections", state="used")
    slow = asyncio.create_task(gateway.app[GATEWAY].store.call("BLPOP", "nothing", "1"))
    await comes(gateway, "aizen_redis_calls")
    assert await slow is None
    assert number(gateway, "aizen_asyncio_tasks") > 5


async def test_a_portal_that_is_dropped_for_not_reading_is_counted(
    world: World, gateway: RunningGateway, stream: EventStream
) -> None:
    news = Newsroom(stream, UUID(world.customer_id))
    async with raw_portal(gateway.url, world.owner.headers, receive_buffer=4096) as frozen:
        await frozen.send(text_of("join_rooms"))
        await comes(gateway, "aizen_sockets", kind="customer")

        async def dropped() -> float:
            await news.tell(20, filling="x" * 60_000)
            return number(gateway, "aizen_sockets_closed_total", code="1013")

        assert await eventually(dropped, bool) == 1


async def test_a_command_s_life_is_counted(world: World, gateway: RunningGateway) -> None:
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    await world.owner.submit(session["id"])
    (claimed,) = await device.claim()
    expect(await device.report(claimed), 200)
    value = gateway.app[METRICS].registry.get_sample_value
    assert value("aizen_commands_claimed_total") == 1
    assert value("aizen_commands_ended_total", {"status": "succeeded"}) == 1
    assert value("aizen_command_claim_latency_seconds_count") == 1
    assert value("aizen_command_result_latency_seconds_count") == 1
    assert value("aizen_redis_script_seconds_count")


async def test_sockets_are_counted_while_they_are_open_and_by_how_they_end(
    world: World, gateway: RunningGateway
) -> None:
    device = await world.device()
    value = gateway.app[METRICS].registry.get_sample_value
    async with device_socket(device) as first:
        assert value("aizen_sockets", {"kind": "device"}) == 1
        async with device_socket(device):
            assert await first.closed() == 4409

    async def superseded() -> float | None:
        return value("aizen_sockets_closed_total", {"code": "4409"})

    assert await eventually(superseded, bool) == 1


async def _one_of_everything(world: World, mark: str) -> None:
    """Requests, commands and sockets of a customer of its own, with words in them that only strangers would choose."""
    line = await Line.open(await world.another())
    await line.device.report(await line.claimed())
    await line.world.owner.status(line.device.device_id)
    await line.world.owner.get(f"{API}/customer/sessions/{mark}")
    await line.world.anyone().call("GET", f"/{mark}?{mark}", headers={"X-Request-ID": mark, "User-Agent": mark})
    await line.world.anyone().call("PROPFIND", "/healthz")
    async with device_socket(line.device) as socket:
        await socket.ws.close(code=3000 + len(mark))
    async with portal_socket(line.world.owner) as portal:
        await portal.ask(mark, answer="error")


async def test_no_label_grows_with_devices_customers_or_what_strangers_say(
    world: World, gateway: RunningGateway
) -> None:
    def series() -> set[str]:
        shown = gateway.app[METRICS].text().decode().splitlines()
        return {line.rpartition(" ")[0] for line in shown if not line.startswith("#")}

    async def closed() -> int:
        return int(number(gateway, "aizen_sockets_closed_total", code="1000"))

    await _one_of_everything(world, "a")
    await eventually(closed, lambda count: count == 2)
    gauges = gateway.app[GATEWAY].gauges
    await gauges.count()
    gauges.look()
    before = series()
    for mark in ("bb", "ccc"):
        await _one_of_everything(world, mark)
    await eventually(closed, lambda count: count == 6)
    assert series() == before
