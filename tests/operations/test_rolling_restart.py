"""Instances behind nginx are replaced one after another while everybody works, and nobody notices (section 7)."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from io import BytesIO

import pytest
from aiohttp import ClientSession, TCPConnector

from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, Client, World
from tests.support.nginx import StartNginx
from tests.support.processes import StartGatewayProcess
from tests.support.programs import WITH_INSTALLATION, stable_port
from tests.support.traffic import Traffic
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(WITH_INSTALLATION)

_TIMES = 2
_BACK_WITHIN_S = 5.0
_CLIENTS = 50
_NO_LIMITS = {f"AIZEN_RATE_LIMIT_{of}": "0" for of in ("DEVICE", "CUSTOMER", "AUTH", "SOCKET")}
_NOWHERE = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing", "REDIS_URL": "redis://127.0.0.1:1/0"}


def _any_certificate() -> ClientSession:
    return ClientSession(connector=TCPConnector(ssl=False, limit=0))


async def test_a_rolling_restart_drops_nothing(
    start_gateway_process: StartGatewayProcess, start_nginx: StartNginx, database: Database
) -> None:
    ports = [stable_port(), stable_port()]
    instances = [await start_gateway_process(AIZEN_PORT=str(port), **_NO_LIMITS) for port in ports]
    nginx = await start_nginx(ports)
    async with _any_certificate() as http:
        traffic = Traffic(await World.create(nginx.url, http, database))
        async with traffic.flowing(each=3):
            for _ in range(_TIMES):
                for number, port in enumerate(ports):
                    await traffic.goes_on()
                    assert await instances[number].run.stop() == 0
                    instances[number] = await start_gateway_process(AIZEN_PORT=str(port), **_NO_LIMITS)
            await traffic.goes_on()
            await traffic.submit_no_more()
            await eventually(lambda: _everybody_heard(traffic), bool, within=30)
    assert traffic.failures == []
    # What was accepted was run, once each.
    assert traffic.runs == dict.fromkeys(traffic.accepted, 1)
    statuses = await database.fetch("select distinct status from aizen.commands")
    assert [row["status"] for row in statuses] == ["succeeded"]
    # Nobody missed an event, or heard one twice, or in another order.
    heard = {tuple(hearing.ids) for hearing in traffic.hearings}
    assert len(heard) == 1
    assert all(len(ids) == len(set(ids)) for ids in heard)
    # Every socket was somewhere, and came back.
    assert all(hearing.sockets > _TIMES for hearing in traffic.hearings)
    assert max(traffic.absences) < _BACK_WITHIN_S


async def _everybody_heard(traffic: Traffic) -> bool:
    return all(hearing.succeeded() == traffic.accepted for hearing in traffic.hearings)


async def test_whoever_connects_while_it_stops_is_answered_or_refused(
    start_gateway_process: StartGatewayProcess,
) -> None:
    port = stable_port()
    gateway = await start_gateway_process(AIZEN_PORT=str(port), **_NOWHERE)
    outcomes: Counter[str] = Counter()
    busy = asyncio.Event()

    async def connect_until_refused() -> None:
        while not outcomes["refused"]:
            outcomes[await _fresh_request(port)] += 1
            if outcomes.total() > 4 * _CLIENTS:
                busy.set()

    clients = [asyncio.create_task(connect_until_refused()) for _ in range(_CLIENTS)]
    await busy.wait()
    gateway.run.signal(signal.SIGTERM)
    await asyncio.gather(*clients)
    assert await gateway.run.ended() == 0
    assert outcomes.keys() == {"HTTP/1.1 200 OK", "refused"}


async def _fresh_request(port: int) -> str:
    """What comes of a request on a connection of its own."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return "refused"
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        return (await reader.readline()).decode().strip()
    except ConnectionError as error:
        return repr(error)
    finally:
        writer.transport.abort()


async def test_a_request_on_a_kept_connection_is_answered_while_it_stops(
    start_gateway_process: StartGatewayProcess,
) -> None:
    gateway = await start_gateway_process(**_NOWHERE)
    port = int(gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heads: list[str] = []
    # As a proxy that is always busy: there is no moment at which nothing is on its way.
    while not heads or "connection: close" not in heads[-1]:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        assert heads[-1].startswith("http/1.1 200 ")
        await reader.readexactly(int(heads[-1].partition("content-length: ")[2].split()[0]))
        if len(heads) == 10:
            gateway.run.signal(signal.SIGTERM)
    assert len(heads) > 10
    assert await reader.read() == b""
    writer.close()
    assert await gateway.run.ended() == 0


async def test_what_nginx_itself_answers_has_the_form_of_the_contract(
    start_gateway_process: StartGatewayProcess, start_nginx: StartNginx
) -> None:
    ports = [stable_port(), stable_port()]
    gateway = await start_gateway_process(AIZEN_PORT=str(ports[0]), **_NOWHERE)
    nginx = await start_nginx(ports)
    async with _any_certificate() as http:
        client = Client(http, nginx.url)
        # The other instance is not there at all.
        replies = [await client.get("/healthz", X_Request_ID=f"call-{number}") for number in range(4)]
        assert [reply.status for reply in replies] == [200] * 4
        assert [reply.headers["X-Request-ID"] for reply in replies] == [f"call-{number}" for number in range(4)]
        body = BytesIO(bytes(2 * 1024 * 1024))
        async with http.post(f"{nginx.url}/healthz", data=body, headers={"X-Request-ID": "large"}) as large:
            assert (large.status, large.headers["X-Request-ID"]) == (413, "large")
            error = (await large.json())["error"]
            assert (error["code"], error["requestId"]) == ("PAYLOAD_TOO_LARGE", "large")
        assert await gateway.run.stop() == 0
        away = await client.post(f"{API}/device/heartbeat", {"status": "online"})
        assert (away.status, away.code) == (503, "UNAVAILABLE")
        assert away.headers["Retry-After"] == "1"
        assert away.body["error"]["requestId"] == away.headers["X-Request-ID"]
