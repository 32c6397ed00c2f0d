"""What is said to a service manager and taken from it: readiness, status, signs of life, sockets (section 7)."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector

from aizen_gateway.cli.systemd import watched
from aizen_gateway.dev import child
from aizen_gateway.storage.postgres import Database
from tests.support.clients import JWT_SECRET, Client, World, expect
from tests.support.processes import ROOT, StartGatewayProcess
from tests.support.programs import WITH_INSTALLATION, program, stable_port
from tests.support.sockets import portal_socket
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(WITH_INSTALLATION)

_NOWHERE = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing", "REDIS_URL": "redis://127.0.0.1:1/0"}
# A service manager that asks for a sign of life every 0.2 s.
_WATCHDOG = {"WATCHDOG_USEC": "400000"}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        yield channel


async def _told(manager: socket.socket) -> str:
    return (await asyncio.wait_for(asyncio.get_running_loop().sock_recv(manager, 1000), 30)).decode()


async def _tells(manager: socket.socket, message: str) -> list[str]:
    """Wait for `message`, and return what was told before it, signs of life aside."""
    before: list[str] = []
    while (said := await _told(manager)) != message:
        before += [said] if said != "WATCHDOG=1" else []
    return before


def _unread(manager: socket.socket) -> int:
    """How many messages wait; they are taken away."""
    count = 0
    try:
        while manager.recv(1000):
            count += 1
    except BlockingIOError:
        return count
    raise AssertionError("an empty message")


async def test_the_manager_shows_what_is_served_what_waits_and_that_it_drains(
    start_gateway_process: StartGatewayProcess, manager: socket.socket, http: ClientSession, database: Database
) -> None:
    gateway = await start_gateway_process(NOTIFY_SOCKET=manager.getsockname(), AIZEN_DRAIN_DELAY="3", **_WATCHDOG)
    assert await _tells(manager, "READY=1") == []
    assert await _tells(manager, "STATUS=serving, open sockets: 0, requests under way: 0") == []
    device = await (world := await World.create(gateway.url, http, database)).device()
    async with portal_socket(world.owner):
        poll = asyncio.create_task(device.claim(waitMs=30_000))
        await _tells(manager, "STATUS=serving, open sockets: 1, requests under way: 1")
        gateway.run.signal(signal.SIGTERM)
        assert await _tells(manager, "STOPPING=1") == []
        assert await _tells(manager, "STATUS=draining") == []
        # Until new connections are refused all goes on.
        assert await _tells(manager, "STATUS=draining, open sockets: 1, requests under way: 1") == []
        assert await poll == []
    assert await gateway.run.ended() == 0


async def test_signs_of_life_go_on_while_it_drains(
    start_gateway_process: StartGatewayProcess, manager: socket.socket
) -> None:
    gateway = await start_gateway_process(
        NOTIFY_SOCKET=manager.getsockname(), AIZEN_DRAIN_DELAY="20", **_WATCHDOG, **_NOWHERE
    )
    gateway.run.signal(signal.SIGTERM)
    await _tells(manager, "STOPPING=1")
    for _ in range(3):
        await _tells(manager, "WATCHDOG=1")


async def test_a_process_that_stands_still_gives_no_sign_of_life(
    start_gateway_process: StartGatewayProcess, manager: socket.socket
) -> None:
    gateway = await start_gateway_process(NOTIFY_SOCKET=manager.getsockname(), **_WATCHDOG, **_NOWHERE)
    for _ in range(3):
        await _tells(manager, "WATCHDOG=1")
    gateway.run.signal(signal.SIGSTOP)
    # What it said before it stood still.
    await asyncio.sleep(0.1)
    _unread(manager)
    await asyncio.sleep(1.0)
    assert _unread(manager) == 0
    gateway.run.signal(signal.SIGCONT)
    await _tells(manager, "WATCHDOG=1")


async def test_a_blocked_event_loop_gives_no_sign_of_life(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", _WATCHDOG["WATCHDOG_USEC"])
    async with watched():
        await _tells(manager, "WATCHDOG=1")
        time.sleep(1.0)  # noqa: ASYNC251 - that is the point
        assert _unread(manager) == 0
        await _tells(manager, "WATCHDOG=1")


async def test_systemd_s_own_activation_starts_it_on_the_first_connection(http: ClientSession, tmp_path: Path) -> None:
    port, other, log = stable_port(), stable_port(), tmp_path / "log"
    variables = {**_NOWHERE, "SUPABASE_JWT_SECRET": JWT_SECRET, "AIZEN_PORT": str(other), "PYTHONPATH": str(ROOT)}
    settings = [f"--setenv={name}={value}" for name, value in variables.items()]
    command = [program("systemd-socket-activate"), f"--listen=127.0.0.1:{port}", *settings]
    process = child.spawn(
        [*command, sys.executable, "-P", "-m", "aizen_gateway", "serve"],
        log=log,
        death_signal=signal.SIGTERM,
        account=None,
        environment={},
    )
    try:
        await eventually(lambda: asyncio.to_thread(log.read_text), lambda text: "Listening on" in text)
        assert "aizen_gateway" not in log.read_text()
        expect(await Client(http, f"http://127.0.0.1:{port}").get("/healthz"), 200)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", other)
    finally:
        status = await child.stop(process, [signal.SIGTERM], 20)
    assert status == 0, log.read_text()


async def test_a_restart_refuses_no_connection_when_the_manager_holds_the_socket(
    start_gateway_process: StartGatewayProcess,
) -> None:
    outcomes: Counter[int] = Counter()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as passed:
        url = f"http://127.0.0.1:{passed.getsockname()[1]}"

        async def connect_again_and_again(http: ClientSession) -> None:
            while True:
                # Raises when it is refused or broken off, which ends the test.
                async with http.get(f"{url}/healthz") as answer:
                    outcomes[answer.status] += 1

        gateway = await start_gateway_process(descriptor=passed.fileno(), **_NOWHERE)
        async with ClientSession(connector=TCPConnector(force_close=True)) as http:
            clients = [asyncio.create_task(connect_again_and_again(http)) for _ in range(10)]
            for _ in range(2):
                await _goes_on(outcomes)
                assert await gateway.run.stop() == 0
                gateway = await start_gateway_process(descriptor=passed.fileno(), **_NOWHERE)
            await _goes_on(outcomes)
            for client in clients:
                client.cancel()
            ends = await asyncio.gather(*clients, return_exceptions=True)
        assert {type(end) for end in ends} == {asyncio.CancelledError}, ends
        assert outcomes.keys() == {200}


async def _goes_on(outcomes: Counter[int]) -> None:
    """Wait until another few clients have been answered."""

    async def answered() -> int:
        return outcomes[200]

    enough = outcomes[200] + 50
    await eventually(answered, lambda count: count >= enough, within=30)
