"""How an instance stops: what is under way gets its answer, nothing takes longer than allowed (contract section 7)."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientSession, TCPConnector, UnixConnector
from redis.asyncio import Redis

from aizen_gateway.storage.postgres import Database
from tests.support.clients import API, Client, World, expect
from tests.support.inside import waits
from tests.support.processes import GatewayProcess, StartGatewayProcess, StartProcess, finished
from tests.support.waiting import eventually

NOWHERE = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing", "REDIS_URL": "redis://127.0.0.1:1/0"}
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_STOPS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def notify_socket(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        yield channel


async def _refuses(url: str) -> None:
    """Return once no new connection gets an answer."""
    async with ClientSession(connector=TCPConnector(force_close=True)) as fresh:

        async def refused() -> bool:
            try:
                async with fresh.get(f"{url}/healthz"):
                    return False
            except ClientConnectionError:
                return True

        await eventually(refused, bool)


@pytest.mark.parametrize("number", _STOPS)
async def test_an_idle_instance_stops_at_once_with_status_0(
    start_gateway_process: StartGatewayProcess, http: ClientSession, number: signal.Signals
) -> None:
    gateway = await start_gateway_process()
    # A connection that is kept alive, and idle, holds nothing up.
    expect(await Client(http, gateway.url).get("/healthz"), 200)
    gateway.run.signal(number)
    started = monotonic()
    assert await gateway.run.ended() == 0
    assert monotonic() - started < 3
    events = [entry["event"] for entry in gateway.run.entries]
    assert events.index("draining") < events.index("stopped")


async def test_long_polls_under_way_are_answered_when_it_stops(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database, valkey: Redis
) -> None:
    gateway = await start_gateway_process()
    world = await World.create(gateway.url, http, database)
    devices = [await world.device() for _ in range(3)]
    polls = [asyncio.create_task(device.post(f"{API}/device/commands/claim", {"waitMs": 30_000})) for device in devices]
    for device in devices:
        await waits(valkey, device.device_id)
    started = monotonic()
    assert await gateway.run.stop() == 0
    assert monotonic() - started < 5
    for poll in polls:
        reply = await poll
        assert expect(reply, 200) == {"commands": []}
        # The next request must not come here.
        assert reply.headers["Connection"] == "close"


async def _send_head(gateway: GatewayProcess, path: str, token: str, length: int) -> _Streams:
    """Send a request's headers, and return once they have been read and its body is being waited for."""
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Device-Token: {token}\r\n"
        f"Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    return reader, writer


async def test_a_body_that_is_still_coming_is_taken_and_answered_when_it_stops(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process()
    device = await (await World.create(gateway.url, http, database)).device()
    body = json.dumps({"status": "online", "metrics": {"cpu": 1}}).encode()
    reader, writer = await _send_head(gateway, f"{API}/device/heartbeat", device.token, len(body))
    writer.write(body[:5])
    gateway.run.signal(signal.SIGTERM)
    await _refuses(gateway.url)
    writer.write(body[5:])
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"acknowledged":true' in answer
    assert await gateway.run.ended() == 0


async def test_a_change_under_way_is_done_and_answered_when_it_stops(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process()
    world = await World.create(gateway.url, http, database)
    device = await world.device()
    session = await world.owner.open_session(device.device_id)
    async with database.unit() as connection:
        # The submission waits for the session's row.
        await connection.execute("select from aizen.sessions where id = $1 for update", session["id"])
        submission = asyncio.create_task(world.owner.submit(session["id"]))
        await _waits_for_row(database)
        gateway.run.signal(signal.SIGTERM)
        await _refuses(gateway.url)
    command = await submission
    assert await gateway.run.ended() == 0
    row = await database.fetchrow("select status from aizen.commands where id = $1", command["id"])
    assert row["status"] == "queued"
    # What it changed has been told to Redis and is off its list.
    assert await database.fetch("select from aizen.outbox") == []


async def _waits_for_row(database: Database) -> None:
    waiting = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    await eventually(lambda: database.fetch(waiting), bool)


async def test_readiness_is_off_and_calls_go_on_until_the_drain_delay_is_over(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process(AIZEN_DRAIN_DELAY="2")
    world = await World.create(gateway.url, http, database)
    gateway.run.signal(signal.SIGTERM)
    await gateway.run.logged("draining")
    async with ClientSession(connector=TCPConnector(force_close=True)) as fresh:
        client = Client(fresh, gateway.url)
        body = (await eventually(lambda: client.get("/readyz"), lambda reply: reply.status == 503)).body
        assert body["ready"] is False
        assert body["checks"] == {"database": True, "redis": True}
        assert body["errors"] == {"gateway": "draining"}
        expect(await client.get("/healthz"), 200)
        expect(await world.owner.get(f"{API}/customer/devices"), 200)
    await _refuses(gateway.url)
    assert await gateway.run.ended() == 0


@pytest.mark.parametrize("number", _STOPS)
async def test_a_second_signal_stops_at_once(
    start_gateway_process: StartGatewayProcess, number: signal.Signals
) -> None:
    gateway = await start_gateway_process(AIZEN_DRAIN_DELAY="25", **NOWHERE)
    gateway.run.signal(signal.SIGTERM)
    await gateway.run.logged("draining")
    started = monotonic()
    gateway.run.signal(number)
    assert await gateway.run.ended() == 128 + number
    assert monotonic() - started < 2


async def test_a_client_that_never_finishes_does_not_hold_the_process(
    start_gateway_process: StartGatewayProcess, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process(AIZEN_DRAIN_TIMEOUT="2")
    device = await (await World.create(gateway.url, http, database)).device()
    _, writer = await _send_head(gateway, f"{API}/device/heartbeat", device.token, 1000)
    writer.write(b"{")
    started = monotonic()
    assert await gateway.run.stop() == 0
    assert monotonic() - started < 3
    writer.close()
    await gateway.run.logged("unanswered requests are broken off", connections=1)


async def test_servers_that_hang_do_not_hold_the_process(
    start_gateway_process: StartGatewayProcess, http: ClientSession, tmp_path: Path
) -> None:
    # They take connections and say nothing, for ever.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        gateway = await start_gateway_process(
            DATABASE_URL=f"postgresql://x@127.0.0.1:{port}/x", REDIS_URL=f"redis://127.0.0.1:{port}/0"
        )
        expect(await Client(http, gateway.url).get("/readyz"), 503)
        started = monotonic()
        assert await gateway.run.stop() == 0
        assert monotonic() - started < 8


async def test_a_service_manager_is_told_when_it_is_ready_alive_and_stopping(
    start_gateway_process: StartGatewayProcess, notify_socket: socket.socket
) -> None:
    loop = asyncio.get_running_loop()

    async def told() -> bytes:
        return await asyncio.wait_for(loop.sock_recv(notify_socket, 100), 10)

    gateway = await start_gateway_process(NOTIFY_SOCKET=notify_socket.getsockname(), WATCHDOG_USEC="500000", **NOWHERE)
    messages: list[bytes] = []
    while messages.count(b"WATCHDOG=1") < 3:
        messages.append(await told())
    assert messages.count(b"READY=1") == 1
    gateway.run.signal(signal.SIGTERM)
    while (message := await told()) == b"WATCHDOG=1":
        pass
    assert message == b"STOPPING=1"
    assert await gateway.run.ended() == 0


async def test_nothing_is_said_before_it_listens(start_process: StartProcess, notify_socket: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {
            "SUPABASE_JWT_SECRET": "a secret of sixteen and more",
            "AIZEN_PORT": str(taken.getsockname()[1]),
            "NOTIFY_SOCKET": notify_socket.getsockname(),
            **NOWHERE,
        }
        assert (await finished(await start_process("serve", environment=environment))).status == 1
    with pytest.raises(BlockingIOError):
        notify_socket.recv(100)


async def test_a_socket_of_the_service_manager_replaces_host_and_port(
    start_gateway_process: StartGatewayProcess, http: ClientSession
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed, socket.create_server(("127.0.0.1", 0)) as taken:
        port = passed.getsockname()[1]
        gateway = await start_gateway_process(
            descriptor=passed.fileno(), AIZEN_PORT=str(taken.getsockname()[1]), **NOWHERE
        )
        assert gateway.url == f"http://127.0.0.1:{port}"
        expect(await Client(http, gateway.url).get("/healthz"), 200)
        assert await gateway.run.stop() == 0
        # The manager's socket lives on: clients queue for the next process.
        with socket.create_connection(("127.0.0.1", port)):
            pass


async def test_descriptors_that_are_meant_for_another_process_are_left_alone(
    start_gateway_process: StartGatewayProcess, http: ClientSession
) -> None:
    gateway = await start_gateway_process(LISTEN_FDS="1", LISTEN_PID="1", **NOWHERE)
    expect(await Client(http, gateway.url).get("/healthz"), 200)


async def test_a_unix_socket_replaces_host_and_port(start_gateway_process: StartGatewayProcess, tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.sock")
    for _ in range(2):
        # The second finds what the first, killed, has left.
        gateway = await start_gateway_process(AIZEN_UNIX_SOCKET=path, **NOWHERE)
        async with ClientSession(connector=UnixConnector(path)) as local:
            expect(await Client(local, "http://localhost").get("/healthz"), 200)
        await gateway.run.kill()


async def _cannot_listen(start_process: StartProcess, **variables: str) -> dict[str, Any]:
    environment = {"SUPABASE_JWT_SECRET": "a secret of sixteen and more", "AIZEN_PORT": "0", **NOWHERE, **variables}
    process = await start_process("serve", environment=environment)
    assert await process.ended() == 1
    return await process.logged("cannot listen")


async def test_a_port_in_use_is_told_in_a_line(start_process: StartProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = await _cannot_listen(start_process, AIZEN_PORT=port)
        assert port in line["reason"]
        assert "in use" in line["reason"]


async def test_a_port_in_use_for_metrics_is_told_in_a_line(start_process: StartProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = await _cannot_listen(start_process, AIZEN_METRICS_BIND=f"127.0.0.1:{port}")
        assert line["reason"].startswith("metrics: ")
        assert port in line["reason"]


async def test_a_unix_socket_in_use_is_not_taken_over(start_process: StartProcess, tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.sock")
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(path)
        taken.listen()
        line = await _cannot_listen(start_process, AIZEN_UNIX_SOCKET=path)
        assert path in line["reason"]
