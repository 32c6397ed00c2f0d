"""The reference agent against a real gateway: everything it owes is delivered, whatever goes away in between."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import redis

from aizen_gateway.dev.agent import NotWelcome
from aizen_gateway.dev.agent_state import AgentState
from tests.support.agents import Launch, Silence, approved, ended, provisioned
from tests.support.clients import World
from tests.support.gateway import RunningGateway, StartGateway

ROOT = Path(__file__).resolve().parents[2]

# An agent in a process of its own, which says what it does, one JSON object a line.
PROCESS = """
import asyncio, json, sys
from pathlib import Path
from aizen_gateway.dev.agent import AgentConfig, run_agent
url, device_id, code, folder = sys.argv[1:]
config = AgentConfig(device_id, Path(folder), url, activation_code=code, visibility_timeout_ms=1000)
say = lambda event, fields: print(json.dumps([event, dict(fields)]), flush=True)
asyncio.run(run_agent(config, stop=asyncio.Event(), announce=say))
"""


@pytest.fixture(params=[True, False], ids=["socket", "polling"])
def use_socket(request: pytest.FixtureRequest) -> bool:
    """Every promise holds whichever way the agent talks with the gateway."""
    return bool(request.param)


async def test_every_kind_of_diagnostic_runs_and_reports(world: World, launch: Launch) -> None:
    code, session = await provisioned(world, "all-kinds")
    port = int(world.url.rsplit(":", 1)[1])
    wanted: dict[str, dict[str, Any]] = {
        "ping": {"host": "127.0.0.1", "count": 1},
        "traceroute": {"host": "127.0.0.1"},
        "dns": {"name": "localhost"},
        "port_check": {"host": "127.0.0.1", "port": port},
        "http_check": {"url": f"{world.url}/healthz"},
        "interfaces": {},
        "routes": {},
        "arp": {},
        "connectivity": {},
        "bandwidth": {"url": f"{world.url}/openapi.json"},
        "system_info": {},
    }
    commands = {kind: await world.owner.submit(session, kind, parameters=said) for kind, said in wanted.items()}
    launch("all-kinds", activation_code=code)
    results = {kind: (await ended(world, command))["result"] for kind, command in commands.items()}
    failures = {kind: result["error"] for kind, result in results.items() if result["status"] != "success"}
    # A machine may allow no ICMP; then the reason says so.
    assert not failures or ("ping" in failures and "ICMP" in failures.pop("ping") and not failures)
    assert results["port_check"]["result"]["open"] == [port]
    assert results["http_check"]["result"]["status"] == 200
    assert all(result["output"] for kind, result in results.items() if kind != "ping")


async def test_a_device_shows_online_with_real_figures_and_offline_when_its_agent_stops(
    world: World, launch: Launch
) -> None:
    code, _ = await provisioned(world, "figures")
    agent = launch("figures", activation_code=code)
    await agent.says("heartbeat")
    status = await world.owner.status("figures")
    assert status["status"] == "online"
    assert {"cpu", "memory", "uptime"} <= status["metrics"].keys()
    await agent.end()
    assert (await world.owner.status("figures"))["status"] == "offline"


async def test_an_approved_change_is_made_once_and_another_type_is_refused(
    world: World, launch: Launch, tmp_path: Path
) -> None:
    code, session = await provisioned(world, "changes")
    label = await approved(world, session, type="agent.set_label", parameters={"label": "Kasse 1"})
    other = await approved(world, session, type="restart_dhcp", parameters={})
    launch("changes", activation_code=code)
    assert (await ended(world, label))["result"]["result"] == {"label": "Kasse 1", "previous": None}
    assert (tmp_path / "changes" / "label").read_text() == "Kasse 1"
    refused = await ended(world, other)
    assert (refused["status"], refused["result"]["error"]) == ("failed", "unsupported on this device")


async def test_a_change_other_than_the_approved_one_is_not_made(
    world: World, launch: Launch, tmp_path: Path, database_url: str
) -> None:
    code, session = await provisioned(world, "forged")
    label = await approved(world, session, type="agent.set_label", parameters={"label": "approved"})
    connection = await asyncpg.connect(database_url)
    try:
        forged = "update aizen.commands set parameters = $1 where id = $2"
        await connection.execute(forged, json.dumps({"label": "forged"}), UUID(label["id"]))
    finally:
        await connection.close()
    launch("forged", activation_code=code)
    found = await ended(world, label)
    assert found["status"] == "failed"
    assert "digest" in found["result"]["error"]
    assert not (tmp_path / "forged" / "label").exists()


async def test_a_change_that_was_cut_off_is_not_made_again(world: World, launch: Launch, tmp_path: Path) -> None:
    code, session = await provisioned(world, "cut-off")
    label = await approved(world, session, type="agent.set_label", parameters={"label": "x"})
    state = AgentState.open(tmp_path / "cut-off")
    state.begin_remediation(UUID(label["id"]), "agent.set_label", "an earlier claim", 3600)
    state.close()
    launch("cut-off", activation_code=code)
    found = await ended(world, label)
    assert found["status"] == "failed"
    assert found["result"]["error"].startswith("interrupted")
    assert not (tmp_path / "cut-off" / "label").exists()


async def test_a_lease_is_kept_while_the_work_goes_on_and_a_cancel_ends_it(
    world: World, launch: Launch, silence: Silence
) -> None:
    code, session = await provisioned(world, "long-work")
    command = await silence.check(world, session)
    agent = launch("long-work", activation_code=code, visibility_timeout_ms=1000)
    await agent.says("lease_extended", times=3, command_id=command["id"])
    assert (await world.owner.command(command))["attempt"] == 1
    assert (await world.owner.cancel(command)).status == 200
    found = await ended(world, command)
    assert (found["status"], found["result"]["status"]) == ("canceled", "canceled")


async def test_work_that_takes_too_long_is_reported_in_time(world: World, launch: Launch, silence: Silence) -> None:
    code, session = await provisioned(world, "too-long")
    command = await silence.check(world, session, timeoutMs=2000)
    launch("too-long", activation_code=code)
    found = await ended(world, command)
    assert (found["status"], found["result"]["status"]) == ("timed_out", "timeout")


async def test_a_lost_session_is_opened_again(world: World, launch: Launch, redis_url: str) -> None:
    code, session = await provisioned(world, "signed-out")
    agent = launch("signed-out", activation_code=code)
    await agent.says("signed_in")
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    command = await world.owner.submit(session, "interfaces")
    assert (await ended(world, command))["status"] == "succeeded"
    await agent.says("signed_in", times=2)


async def test_a_result_that_could_not_be_sent_is_sent_by_the_next_run(
    world: World, launch: Launch, gateway: RunningGateway, start_gateway: StartGateway, silence: Silence
) -> None:
    code, session = await provisioned(world, "outage")
    doomed = await start_gateway()
    command = await silence.check(world, session)
    agent = launch("outage", activation_code=code, base_url=doomed.url)
    await agent.says("started")
    await doomed.stop()
    silence.ended.set()
    await agent.says("finished")
    await agent.says("send_again_later")
    await agent.end()
    launch("outage", base_url=gateway.url)
    found = await ended(world, command)
    assert (found["status"], found["attempt"]) == ("succeeded", 1)


async def test_a_diagnostic_is_handed_back_when_the_agent_stops(world: World, launch: Launch, silence: Silence) -> None:
    code, session = await provisioned(world, "handed-back")
    command = await silence.check(world, session)
    agent = launch("handed-back", activation_code=code)
    await agent.says("started")
    await agent.end()
    found = await world.owner.command(command)
    assert (found["status"], found["attempt"]) == ("queued", 0)
    assert not [task for task in asyncio.all_tasks() if "aizen_gateway/dev/" in repr(task)]


async def test_a_killed_agent_takes_its_work_up_again_after_a_restart(
    world: World, launch: Launch, tmp_path: Path, silence: Silence
) -> None:
    code, session = await provisioned(world, "killed")
    command = await silence.check(world, session)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROCESS, world.url, "killed", code, str(tmp_path / "killed")),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if json.loads(line)[0] == "started":
            break
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    again = launch("killed")
    await again.says("started", command_id=command["id"])
    silence.ended.set()
    found = await ended(world, command)
    assert (found["status"], found["attempt"]) == ("succeeded", 2)


async def test_a_wrong_code_ends_the_agent_after_one_try(world: World, launch: Launch) -> None:
    await provisioned(world, "wrong-code")
    agent = launch("wrong-code", activation_code="AAAAA-AAAAA")
    with pytest.raises(NotWelcome, match="INVALID_ACTIVATION_CODE"):
        await agent.result()
