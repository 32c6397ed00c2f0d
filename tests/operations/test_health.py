"""Health endpoints, on a real process, while its servers come and go (contract section 5)."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime

from aiohttp import ClientSession

from aizen_gateway import __version__
from tests.support.clients import Client, Reply, expect
from tests.support.outages import crash, hung
from tests.support.processes import GatewayProcess, StartGatewayProcess
from tests.support.servers import FreshPostgres, FreshValkey
from tests.support.waiting import eventually

# Each check has 2 s and both run at once; the rest is what a busy machine takes.
_BOUND_S = 3.5
NOWHERE = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing", "REDIS_URL": "redis://127.0.0.1:1/0"}


async def ready_as(client: Client, *, ready: bool) -> Reply:
    """Ask until readiness is so."""
    return await eventually(lambda: client.get("/readyz"), lambda reply: reply.body["ready"] is ready)


async def test_health_asks_nobody(start_gateway_process: StartGatewayProcess, http: ClientSession) -> None:
    gateway = await start_gateway_process(**NOWHERE)
    body = expect(await Client(http, gateway.url).get("/healthz"), 200)
    assert body.keys() == {"status", "timestamp"}
    assert body["status"] == "ok"
    assert datetime.fromisoformat(body["timestamp"]).utcoffset() is not None


async def test_readiness_names_both_servers_that_are_away(
    start_gateway_process: StartGatewayProcess, http: ClientSession
) -> None:
    gateway = await start_gateway_process(**NOWHERE)
    body = expect(await Client(http, gateway.url).get("/readyz"), 503)
    assert body["ready"] is False
    assert body["checks"] == {"database": False, "redis": False}
    assert body["errors"].keys() == {"database", "redis"}


async def test_a_gateway_with_both_servers_is_ready(
    start_gateway_process: StartGatewayProcess, http: ClientSession
) -> None:
    gateway = await start_gateway_process()
    body = expect(await Client(http, gateway.url).get("/readyz"), 200)
    assert body == {"ready": True, "checks": {"database": True, "redis": True}}


async def test_the_version_is_told_alone(start_gateway_process: StartGatewayProcess, http: ClientSession) -> None:
    gateway = await start_gateway_process(**NOWHERE)
    assert expect(await Client(http, gateway.url).get("/version"), 200) == {"version": __version__}


async def test_readiness_follows_a_valkey_that_goes_and_comes(
    start_gateway_process: StartGatewayProcess, fresh_valkey: FreshValkey, http: ClientSession
) -> None:
    valkey = await fresh_valkey()
    gateway = await start_gateway_process(REDIS_URL=valkey.url)
    client = Client(http, gateway.url)
    await ready_as(client, ready=True)
    await crash(valkey)
    body = (await ready_as(client, ready=False)).body
    assert body["checks"] == {"database": True, "redis": False}
    assert body["errors"].keys() == {"redis"}
    await valkey.restart()
    expect(await ready_as(client, ready=True), 200)


async def test_readiness_follows_a_postgresql_that_goes_and_comes(
    start_gateway_process: StartGatewayProcess, fresh_postgres: FreshPostgres, http: ClientSession
) -> None:
    postgres = await fresh_postgres()
    gateway = await start_gateway_process(DATABASE_URL=postgres.url)
    client = Client(http, gateway.url)
    await ready_as(client, ready=True)
    await crash(postgres)
    body = (await ready_as(client, ready=False)).body
    assert body["checks"] == {"database": False, "redis": True}
    assert body["errors"].keys() == {"database"}
    await postgres.restart()
    expect(await ready_as(client, ready=True), 200)


async def _asks_in_time(gateway: GatewayProcess, http: ClientSession, failing: str) -> None:
    """Several ask at once: none may wait for another's check."""
    async with asyncio.timeout(_BOUND_S):
        replies = await asyncio.gather(*(Client(http, gateway.url).get("/readyz") for _ in range(4)))
    for reply in replies:
        assert expect(reply, 503)["checks"][failing] is False


async def test_readiness_answers_in_time_about_a_valkey_that_hangs(
    start_gateway_process: StartGatewayProcess, fresh_valkey: FreshValkey, http: ClientSession
) -> None:
    valkey = await fresh_valkey()
    gateway = await start_gateway_process(REDIS_URL=valkey.url)
    client = Client(http, gateway.url)
    await ready_as(client, ready=True)
    with hung(valkey):
        await _asks_in_time(gateway, http, "redis")
    expect(await ready_as(client, ready=True), 200)


async def test_readiness_answers_in_time_about_a_postgresql_that_hangs(
    start_gateway_process: StartGatewayProcess, fresh_postgres: FreshPostgres, http: ClientSession
) -> None:
    postgres = await fresh_postgres()
    gateway = await start_gateway_process(DATABASE_URL=postgres.url)
    client = Client(http, gateway.url)
    await ready_as(client, ready=True)
    with hung(postgres):
        await _asks_in_time(gateway, http, "database")
        await _asks_in_time(gateway, http, "database")
    expect(await ready_as(client, ready=True), 200)


async def test_metrics_are_not_on_the_public_port(
    start_gateway_process: StartGatewayProcess, http: ClientSession
) -> None:
    gateway = await start_gateway_process(AIZEN_METRICS_BIND="127.0.0.1:0", **NOWHERE)
    assert (await Client(http, gateway.url).get("/metrics")).status == 404
    metrics = (await gateway.run.logged("listening"))["metrics"]
    assert metrics != gateway.url
    async with http.get(f"{metrics}/metrics") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        text = await response.text()
    assert 'aizen_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert re.search(rf'^aizen_build_info{{.*version="{re.escape(__version__)}".*}} 1.0$', text, re.MULTILINE)
    # Nothing but metrics is there.
    async with http.get(f"{metrics}/healthz") as response:
        assert response.status == 404


async def test_without_an_address_for_them_metrics_are_nowhere(
    start_gateway_process: StartGatewayProcess, http: ClientSession
) -> None:
    gateway = await start_gateway_process(**NOWHERE)
    assert "metrics" not in await gateway.run.logged("listening")
    assert (await Client(http, gateway.url).get("/metrics")).status == 404
