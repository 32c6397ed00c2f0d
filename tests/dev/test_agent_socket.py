"""The reference agent on its socket: what is under way outlives the line, and without a socket it polls."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from aizen_gateway.api.errors import STATUS
from aizen_gateway.dev import agent_socket
from aizen_gateway.dev.agent import AgentConfig, NotWelcome
from tests.support.agents import Agent, Launch, Silence, approved, ended, provisioned
from tests.support.clients import World, expect
from tests.support.gateway import RunningGateway, StartGateway
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

SOCKET = "/ws/device"
ARRIVING = {"/api/v1/device/register", "/api/v1/device/auth", SOCKET}
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def connection(world: World, device_id: str, expected: str) -> None:
    """Return once the customer sees the device connected like this."""
    await eventually(lambda: world.owner.status(device_id), lambda seen: bool(seen["connection"] == expected))


async def events(world: World, session: str, command: dict[str, Any]) -> list[str]:
    """What happened to a command, in order."""
    entries = await world.owner.transcript(session)
    return [entry["event"] for entry in entries if entry.get("commandId") == command["id"]]


def pauses(agent: Agent) -> list[float]:
    """The seconds it wanted to wait, each time that it had no socket."""
    return [
        float(str(fields["again_in_s"])) for event, fields in agent.said if event in ("socket_ended", "socket_refused")
    ]


async def test_everything_goes_over_the_socket_while_there_is_one(world: World, launch: Launch, proxy: Proxy) -> None:
    code, session = await provisioned(world, "all-over-it")
    agent = launch("all-over-it", activation_code=code, base_url=proxy.url)
    await agent.says("heartbeat")
    await connection(world, "all-over-it", "websocket")
    command = await world.owner.submit(session, "interfaces")
    found = await ended(world, command)
    assert (found["status"], found["attempt"]) == ("succeeded", 1)
    await agent.says("reported", command_id=command["id"], status="succeeded")
    assert set(proxy.asked) == ARRIVING
    assert {"cpu", "memory"} <= (await world.owner.status("all-over-it"))["metrics"].keys()


async def test_work_under_way_outlives_the_line_and_its_result_arrives(
    world: World, launch: Launch, proxy: Proxy, silence: Silence
) -> None:
    code, session = await provisioned(world, "cut-line")
    command = await silence.check(world, session)
    agent = launch("cut-line", activation_code=code, base_url=proxy.url)
    await agent.says("started", command_id=command["id"])
    proxy.cut()
    await agent.says("socket_ended")
    await agent.says("socket_open", times=2)
    silence.ended.set()
    found = await ended(world, command)
    assert (found["status"], found["attempt"]) == ("succeeded", 1)
    assert agent.times("started") == 1
    assert f"/api/v1/device/commands/{command['id']}/result" not in proxy.asked


async def test_a_lease_is_kept_on_the_next_socket(world: World, launch: Launch, proxy: Proxy, silence: Silence) -> None:
    code, session = await provisioned(world, "kept-lease")
    command = await silence.check(world, session)
    agent = launch("kept-lease", activation_code=code, base_url=proxy.url, visibility_timeout_ms=2000)
    await agent.says("lease_extended", command_id=command["id"])
    proxy.cut()
    await agent.says("lease_extended", times=3, command_id=command["id"])
    silence.ended.set()
    found = await ended(world, command)
    assert (found["status"], found["attempt"]) == ("succeeded", 1)
    assert not any(path.endswith("/claim") for path in proxy.asked[proxy.asked.index(SOCKET) :])


async def test_a_result_whose_acknowledgement_was_lost_is_sent_again_and_counts_once(
    world: World, launch: Launch, proxy: Proxy, silence: Silence
) -> None:
    code, session = await provisioned(world, "lost-ack")
    command = await silence.check(world, session)
    agent = launch("lost-ack", activation_code=code, base_url=proxy.url)
    await agent.says("started", command_id=command["id"])
    proxy.mute()
    silence.ended.set()
    assert (await ended(world, command))["status"] == "succeeded"
    assert not agent.times("reported")
    proxy.cut()
    await agent.says("reported", command_id=command["id"], status="succeeded", late=False)
    assert agent.times("started") == 1
    assert (await events(world, session, command)).count("command.succeeded") == 1


@pytest.mark.parametrize("moment", ["claimed", "started", "finished"])
async def test_a_change_is_made_once_wherever_the_line_is_cut(
    world: World, launch: Launch, proxy: Proxy, tmp_path: Path, moment: str
) -> None:
    device_id = f"change-{moment}"
    code, session = await provisioned(world, device_id)
    agent = launch(device_id, activation_code=code, base_url=proxy.url)
    await agent.says("socket_open")

    def cut_once() -> None:
        del agent.when[moment]
        proxy.cut()

    agent.when[moment] = cut_once
    command = await approved(world, session, type="agent.set_label", parameters={"label": "Kasse 1"})
    found = await ended(world, command)
    assert (found["status"], found["attempt"]) == ("succeeded", 1)
    assert found["result"]["result"] == {"label": "Kasse 1", "previous": None}
    assert agent.times("started") == 1
    await agent.says("socket_open", times=2)


async def test_a_pushed_cancel_ends_the_work_at_once(world: World, launch: Launch, silence: Silence) -> None:
    code, session = await provisioned(world, "canceled")
    command = await silence.check(world, session)
    agent = launch("canceled", activation_code=code)
    await agent.says("started", command_id=command["id"])
    expect(await world.owner.cancel(command, reason="wrong device"), 200)
    await agent.says("finished", status="canceled", reason="canceled: wrong device")
    assert (await ended(world, command))["status"] == "canceled"
    assert not agent.times("lease_extended")


async def test_work_goes_on_at_another_instance_when_one_goes_away(
    world: World, launch: Launch, proxy: Proxy, start_gateway: StartGateway, silence: Silence, gateway: RunningGateway
) -> None:
    code, session = await provisioned(world, "moves")
    proxy.target = (await start_gateway()).url
    agent = launch("moves", activation_code=code, base_url=proxy.url)
    command = await silence.check(world, session)
    await agent.says("started", command_id=command["id"])
    proxy.target = gateway.url
    proxy.cut()
    await agent.says("socket_open", times=2)
    second = await start_gateway()
    proxy.target = second.url
    await gateway.stop()
    await agent.says("socket_ended", reason="closed 1001")
    await agent.says("socket_open", times=3)
    silence.ended.set()
    await agent.says("reported", command_id=command["id"], status="succeeded")
    assert agent.times("started") == 1


async def test_the_socket_comes_back_when_the_gateway_was_gone_for_a_while(
    world: World, launch: Launch, proxy: Proxy, gateway: RunningGateway
) -> None:
    code, session = await provisioned(world, "gone-for-a-while")
    agent = launch("gone-for-a-while", activation_code=code, base_url=proxy.url)
    await agent.says("socket_open")
    # Nothing listens there.
    proxy.target = "http://127.0.0.1:1"
    proxy.cut()
    await agent.says("socket_refused", times=4)
    proxy.target = gateway.url
    await agent.says("socket_open", times=2)
    command = await world.owner.submit(session, "interfaces")
    assert (await ended(world, command))["status"] == "succeeded"


async def test_a_suspended_device_stays_away_and_comes_back_when_it_may(world: World, launch: Launch) -> None:
    code, session = await provisioned(world, "suspended")
    agent = launch("suspended", activation_code=code, away_ms=400)
    await agent.says("socket_open")
    expect(await world.owner.post("/api/v1/customer/devices/suspended/suspend", {}), 200)
    await agent.says("socket_ended", reason="closed 4403", polling=True)
    await agent.says("trouble", reason="the device is suspended")
    expect(await world.owner.post("/api/v1/customer/devices/suspended/resume", {}), 200)
    await agent.says("socket_open", times=2)
    session = (await world.owner.open_session("suspended"))["id"]
    command = await world.owner.submit(session, "interfaces")
    assert (await ended(world, command))["status"] == "succeeded"


async def test_a_session_that_ends_is_replaced_by_signing_in_again(
    world: World, launch: Launch, start_gateway: StartGateway
) -> None:
    code, _ = await provisioned(world, "short-session")
    brief = await start_gateway(AIZEN_DEVICE_SESSION_TTL="2", AIZEN_DEVICE_SESSION_MAX_AGE="2")
    agent = launch("short-session", activation_code=code, base_url=brief.url)
    await agent.says("socket_ended", reason="closed 4401")
    await agent.says("signed_in", times=2)
    await agent.says("socket_open", times=2)


async def test_an_agent_whose_secret_was_rotated_ends(world: World, launch: Launch) -> None:
    code, _ = await provisioned(world, "rotated")
    agent = launch("rotated", activation_code=code)
    await agent.says("socket_open")
    expect(await world.owner.post("/api/v1/customer/devices/rotated/rotate-secret", {}), 200)
    with pytest.raises(NotWelcome, match="INVALID_CREDENTIALS"):
        await agent.result()
    assert agent.times("socket_ended", reason="closed 4401")


async def test_a_copy_of_a_device_is_not_fought_with(
    world: World, launch: Launch, tmp_path: Path, proxy: Proxy
) -> None:
    code, session = await provisioned(world, "copied")
    original = launch("copied", activation_code=code, base_url=proxy.url)
    await original.says("heartbeat")
    shutil.copytree(tmp_path / "copied", tmp_path / "the-copy")
    copy = launch("copied", name="the-copy")
    await original.says("superseded")
    await original.says("socket_ended", reason="closed 4409", polling=False)
    asked = len(proxy.asked)
    commands = [await world.owner.submit(session, "interfaces") for _ in range(3)]
    for command in commands:
        await ended(world, command)
    assert copy.times("started") == 3
    assert original.times("claimed") == 0
    assert len(proxy.asked) == asked


async def test_a_device_whose_copy_is_gone_comes_back(world: World, launch: Launch, tmp_path: Path) -> None:
    code, _ = await provisioned(world, "comes-back")
    original = launch("comes-back", activation_code=code, away_ms=300)
    await original.says("heartbeat")
    shutil.copytree(tmp_path / "comes-back", tmp_path / "its-copy")
    copy = launch("comes-back", name="its-copy")
    await original.says("superseded")
    await copy.end()
    await original.says("socket_open", times=2)


async def test_a_device_behind_a_proxy_that_knows_no_sockets_polls_and_tries_again_now_and_then(
    world: World, launch: Launch, proxy: Proxy
) -> None:
    code, session = await provisioned(world, "behind-a-proxy")
    proxy.no_sockets = FORBIDDEN
    agent = launch("behind-a-proxy", activation_code=code, base_url=proxy.url, socket_retry_ms=1000)
    await agent.says("socket_refused", reason="answered 403 instead of a socket", polling=True)
    command = await world.owner.submit(session, "interfaces")
    assert (await ended(world, command))["status"] == "succeeded"
    await connection(world, "behind-a-proxy", "polling")
    proxy.no_sockets = None
    await agent.says("socket_open")
    await connection(world, "behind-a-proxy", "websocket")


async def test_sockets_that_fail_again_and_again_while_calls_are_answered_are_given_a_rest(
    world: World, launch: Launch, proxy: Proxy
) -> None:
    code, session = await provisioned(world, "no-luck")
    proxy.no_sockets = b""
    agent = launch("no-luck", activation_code=code, base_url=proxy.url, poll_wait_ms=0)
    while pauses(agent)[-1:] < [200]:
        await agent.says("socket_refused", times=agent.times("socket_refused") + 1)
    assert len(pauses(agent)) >= 3
    command = await world.owner.submit(session, "interfaces")
    assert (await ended(world, command))["status"] == "succeeded"


async def test_a_redirect_does_not_take_the_token_elsewhere(world: World, launch: Launch, proxy: Proxy) -> None:
    strangers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: strangers.append(writer), "127.0.0.1", 0)
    elsewhere = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    proxy.no_sockets = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n".encode()
    async with server:
        code, session = await provisioned(world, "redirected")
        agent = launch("redirected", activation_code=code, base_url=proxy.url)
        await agent.says("socket_refused")
        command = await world.owner.submit(session, "interfaces")
        assert (await ended(world, command))["status"] == "succeeded"
        assert strangers == []


async def test_an_agent_that_talks_too_much_slows_down(
    world: World, launch: Launch, start_gateway: StartGateway
) -> None:
    code, _ = await provisioned(world, "talks-much")
    strict = await start_gateway(AIZEN_RATE_LIMIT_SOCKET="3")
    agent = launch("talks-much", activation_code=code, base_url=strict.url, heartbeat_ms=10)
    await agent.says("socket_ended", reason="closed 4429", polling=True)
    assert pauses(agent)[0] >= 60


async def test_a_socket_that_answers_nothing_is_given_up(
    world: World, launch: Launch, proxy: Proxy, silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_socket, "_ANSWER_S", 0.5)
    code, session = await provisioned(world, "half-dead")
    command = await silence.check(world, session)
    agent = launch("half-dead", activation_code=code, base_url=proxy.url)
    await agent.says("started", command_id=command["id"])
    proxy.mute()
    silence.ended.set()
    await agent.says("reported", command_id=command["id"])
    await agent.says("socket_ended")
    await agent.says("socket_open", times=2)


async def test_what_is_pushed_beyond_what_runs_at_a_time_waits_for_its_turn(
    world: World, launch: Launch, proxy: Proxy, silence: Silence
) -> None:
    code, session = await provisioned(world, "one-at-a-time")
    first = await silence.check(world, session)
    agent = launch("one-at-a-time", activation_code=code, base_url=proxy.url, concurrency=1)
    await agent.says("started", command_id=first["id"])
    proxy.cut()
    await agent.says("socket_open", times=2)
    second = await world.owner.submit(session, "interfaces")
    await agent.says("claimed", command_id=second["id"])
    assert not agent.times("started", command_id=second["id"])
    silence.ended.set()
    assert (await ended(world, second))["status"] == "succeeded"
    assert (await ended(world, first))["status"] == "succeeded"


async def test_what_waits_for_its_turn_is_canceled_and_handed_back_without_being_begun(
    world: World, launch: Launch, proxy: Proxy, silence: Silence
) -> None:
    code, session = await provisioned(world, "waits")
    first = await silence.check(world, session)
    agent = launch("waits", activation_code=code, base_url=proxy.url, concurrency=1)
    await agent.says("started", command_id=first["id"])
    proxy.cut()
    await agent.says("socket_open", times=2)
    second = await world.owner.submit(session, "interfaces")
    await agent.says("claimed", command_id=second["id"])
    expect(await world.owner.cancel(second), 200)
    assert (await ended(world, second))["status"] == "canceled"
    third = await world.owner.submit(session, "interfaces")
    await agent.says("claimed", command_id=third["id"])
    await agent.end()
    found = await world.owner.command(third)
    assert (found["status"], found["attempt"]) == ("queued", 0)
    assert agent.times("started") == 1


async def test_the_largest_result_fits_into_a_frame(world: World, launch: Launch, proxy: Proxy, tmp_path: Path) -> None:
    log = tmp_path / "long.log"
    log.write_text('"' * 119 + "\n" + ('"' * 119 + "\n") * 5000)
    code, session = await provisioned(world, "talkative")
    command = await world.owner.submit(session, "logs", parameters={"lines": 1000})
    launch("talkative", activation_code=code, base_url=proxy.url, log_files=(log,))
    found = await ended(world, command)
    assert found["status"] == "succeeded", found["result"]
    assert len(found["result"]["output"]) > 90_000
    assert set(proxy.asked) == ARRIVING


def test_refusals_over_the_socket_are_those_of_rest() -> None:
    for code, status in agent_socket._REFUSALS.items():
        assert STATUS[code] == status
    assert {code for code, status in STATUS.items() if status == 429 or status >= 500} == agent_socket._PASSING


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("http://127.0.0.1:3001", "ws://127.0.0.1:3001/ws/device?prefetch=2&visibilityTimeout=60000"),
        ("https://gateway.example/", "wss://gateway.example/ws/device?prefetch=2&visibilityTimeout=60000"),
        ("HTTPS://gateway.example/at", "wss://gateway.example/at/ws/device?prefetch=2&visibilityTimeout=60000"),
    ],
)
def test_the_socket_is_where_the_gateway_is(tmp_path: Path, base_url: str, expected: str) -> None:
    assert AgentConfig("dev-1", tmp_path, base_url=base_url).socket_url == expected


def test_no_more_is_asked_for_than_a_socket_may_push(tmp_path: Path) -> None:
    assert "prefetch=10&" in AgentConfig("dev-1", tmp_path, concurrency=40).socket_url
