"""`aizen-gateway dev`, run as a newcomer runs it: the story, its ways to end, and what it says when it cannot go on."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from aizen_gateway.cli import main
from aizen_gateway.dev.demo_print import Teller
from aizen_gateway.storage.postgres import Database
from tests.support.clients import World
from tests.support.demo import ROOT, Run, begun, command, dev, fact, started, told

DIAGNOSTICS = ("ping", "dns", "port_check", "interfaces", "system_info")


@pytest.fixture
def folder(server_dir: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=server_dir) as directory:
        Path(directory).chmod(0o711)
        yield Path(directory, "data")


@pytest.fixture
def servers(database_url: str, redis_url: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url}


async def test_the_story_is_told_in_plain_lines_and_all_of_it_succeeds(folder: Path, servers: dict[str, str]) -> None:
    text = await told(folder, **servers)
    for diagnostic in (*DIAGNOSTICS, "agent.set_label"):
        assert fact(text, diagnostic).startswith("  + "), text
    assert "3 of 3 echoes from 127.0.0.1" in fact(text, "ping")
    assert "localhost is " in fact(text, "dns")
    assert re.search(r"port \d+ of 127\.0\.0\.1 is open", fact(text, "port_check"))
    assert "waits for approval" in fact(text, "owner proposes")
    assert re.search(r"portal sees +command_update: ping is succeeded$", text, re.MULTILINE)
    assert re.search(r"portal sees +approval_requested: agent\.set_label is pending_approval$", text, re.MULTILINE)
    assert "403 SELF_APPROVAL" in fact(text, "owner approves")
    assert re.search("sha256:[0-9a-f]{64}", fact(text, "admin approves"))
    assert re.search(r"command\.approved +agent\.set_label +admin$", text, re.MULTILINE)
    assert "\x1b" not in text
    assert_nothing_is_given_away(folder, text, servers)


def assert_nothing_is_given_away(folder: Path, text: str, servers: dict[str, str]) -> None:
    """No secret is in a log, and no file is readable by others."""
    credentials = json.loads((folder / "agent" / "credentials.json").read_text())
    code = fact(text, "device").split()[-1]
    passwords = [url.split("@")[0].rpartition(":")[2] for url in servers.values()]
    secrets = [credentials["device_secret"], (folder / "jwt-secret").read_text(), code, *passwords]
    logs = (folder / "gateway.log").read_text() + (folder / "agent.log").read_text()
    assert "signed_in" in logs
    assert [secret for secret in secrets if secret in logs] == []
    for file in ("jwt-secret", "identities.json", "gateway.log", "agent.log", "agent/credentials.json"):
        assert (folder / file).stat().st_mode & 0o077 == 0


@pytest.mark.timeout(120)
async def test_a_second_run_on_embedded_servers_finds_everything_and_a_fresh_one_nothing(folder: Path) -> None:
    first, second = await begun(folder), await told(folder)
    assert "activation code" in fact(first, "device")
    assert "registered in an earlier run" in fact(second, "device")
    assert "signed in with the secret that it keeps" in fact(second, "agent")
    device = fact(first, "device").split()[2]
    assert device in fact(second, "device")
    fresh = await begun(folder, "--fresh")
    assert "activation code" in fact(fresh, "device")
    assert device not in fresh


@pytest.mark.timeout(120)
async def test_a_device_without_its_secret_or_its_database_is_registered_again(
    folder: Path, servers: dict[str, str], database: Database
) -> None:
    device = fact(await begun(folder, **servers), "device").split()[2]
    await database.execute("truncate aizen.customers cascade")
    emptied = await begun(folder, **servers)
    shutil.rmtree(folder / "agent")
    lost = await begun(folder, **servers)
    rotating = ("device", "rotate-secret", device)
    assert (await asyncio.to_thread(CliRunner().invoke, main, rotating, env=servers)).exit_code == 0
    rotated = await begun(folder, **servers)
    assert f"{device} provisioned, activation code" in emptied
    assert f"{device}: its secret is void, new activation code" in lost
    assert f"{device}: its secret is void, new activation code" in rotated
    for text in (emptied, lost, rotated):
        assert "registered with the code" in fact(text, "agent")


@pytest.mark.parametrize("moment", ["PostgreSQL", "customer", "device", "session"])
async def test_ctrl_c_at_any_moment_ends_everything(folder: Path, moment: str) -> None:
    async with dev(folder) as run:
        await run.until(moment)
        os.killpg(run.process.pid, signal.SIGINT)
        assert await run.end() == 128 + signal.SIGINT, run.text
        assert run.left() == []
        assert "Stopping" in run.text
        assert "Traceback" not in run.text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
@pytest.mark.parametrize("moment", ["^Starting", "PostgreSQL", "customer", "device", "Running"])
async def test_a_killed_run_leaves_nothing_and_the_next_one_works(folder: Path, moment: str) -> None:
    async with dev(folder) as run:
        await run.until(moment)
        run.process.kill()
        await run.process.wait()
        assert await run.all_gone()
    if moment == "Running":
        await told(folder)


async def test_a_closed_terminal_ends_everything(folder: Path, servers: dict[str, str]) -> None:
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *command("dev", "--data-dir", str(folder)),
        cwd=ROOT,
        env=os.environ | servers | {"AIZEN_PORT": "0", "TEST_MARK": str(folder), "TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    seen = b""
    try:
        while b"Running." not in seen:
            seen += await asyncio.to_thread(os.read, master, 65536)
        os.close(master)
        process.send_signal(signal.SIGHUP)
    except BaseException:
        process.kill()
        raise
    await process.wait()
    assert Run(process, str(folder), folder).left() == []
    assert "✓" in seen.decode()


async def test_a_reader_that_goes_away_ends_everything(folder: Path, servers: dict[str, str]) -> None:
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *command("dev", "--data-dir", str(folder)),
        cwd=ROOT,
        env=os.environ | servers | {"AIZEN_PORT": "0", "TEST_MARK": str(folder)},
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    os.close(writer)
    await asyncio.to_thread(os.read, reader, 1)
    os.close(reader)
    _, complaints = await process.communicate()
    assert process.returncode == 1
    assert complaints == b""
    assert Run(process, str(folder), folder).left() == []


async def test_it_runs_until_it_is_asked_to_stop_and_the_lines_to_go_on_by_hand_work(
    folder: Path, servers: dict[str, str]
) -> None:
    async with dev(folder, **servers) as run:
        await run.until("Running")
        start = next(number for number, line in enumerate(run.lines) if line.startswith("API="))
        end = next(number for number, line in enumerate(run.lines) if line.startswith("What operators do"))
        pasted = "\n".join([*run.lines[start:end], 'echo "{\\"next\\":\\"$SESSION\\"}"'])
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-eu"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await shell.communicate(pasted.encode())
        answers = [json.loads(line) for line in said.splitlines()]
        assert shell.returncode == 0
        assert not [answer for answer in answers if "error" in answer]
        status, command, session, approvals, decided, transcript, closed, following = answers
        assert status["device"]["status"] == "online"
        assert command["command"]["type"] == "http_check"
        assert command["command"]["id"] in [each["id"] for each in session["session"]["commands"]]
        assert decided["command"]["id"] == approvals["approvals"][0]["command"]["id"]
        assert transcript["entries"][0]["event"] == "session.opened"
        assert closed["session"]["status"] == "completed"
        assert following["next"] != closed["session"]["id"]
        (agent,) = [each for each in run.left() if "agent" in each.cmdline()]
        assert fact(run.text, "device").split()[-1] not in agent.cmdline()
        assert not {"DATABASE_URL", "REDIS_URL", "SUPABASE_JWT_SECRET"} & agent.environ().keys()
        assert len(run.left()) == 2
        run.process.terminate()
        assert await run.end() == 0
        assert run.left() == []
    assert not (folder / "environment").exists()


async def test_a_second_run_on_the_folder_is_refused_and_the_end_of_the_gateway_is_told(
    folder: Path, servers: dict[str, str]
) -> None:
    async with dev(folder, **servers) as run:
        await run.until("Running")
        async with dev(folder, **servers) as second:
            assert await second.end() == 1
            assert f"process {run.process.pid} runs on {folder} already" in second.text
        (gateway,) = [found for found in run.left() if "serve" in found.cmdline()]
        gateway.kill()
        assert await run.end() == 1
        assert "the gateway ended with status -9" in run.text
        assert str(folder / "gateway.log") in run.text
        assert run.left() == []


async def test_a_taken_port_is_told_with_the_variable_that_changes_it(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with dev(folder, AIZEN_PORT=str(port)) as run:
            assert await run.end() == 1
            assert f"AIZEN_PORT: port {port} on 127.0.0.1 is taken by process {os.getpid()}" in run.text


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SUPABASE_URL": "https://x.supabase.co"}, "SUPABASE_URL: tokens for the story's users can only be signed"),
        ({"AIZEN_PORT": "many"}, "AIZEN_PORT: must be a port"),
        ({"AIZEN_UNIX_SOCKET": "/nowhere"}, "AIZEN_UNIX_SOCKET: the story is told over host and port"),
        ({"DATABASE_URL": "postgresql://u:hidden@127.0.0.1:1/x"}, "DATABASE_URL: the database cannot be used"),
        ({"REDIS_URL": "redis://:hidden@127.0.0.1:1"}, "REDIS_URL: Redis cannot be used"),
    ],
)
async def test_a_wrong_environment_is_told_in_one_line(
    folder: Path, servers: dict[str, str], variables: dict[str, str], said: str
) -> None:
    async with dev(folder, **servers | variables) as run:
        assert await run.end() == 1
        assert said in run.text
        assert "hidden" not in run.text
        assert "Traceback" not in run.text


@pytest.mark.parametrize("columns", ["24", "80"])
def test_nothing_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    teller = Teller(terminal)
    teller.row("agent.set_label", "label set to 'a label of some length'", note="reached it in 5 ms, took 3 ms")
    teller.table([("09:43:25.683", "command.submitted", "agent.set_label", "probe-ee2f48")])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert max(cell_len(line) for line in plain.splitlines()) <= int(columns)
    assert "agent" in plain


def test_what_a_device_says_cannot_move_the_cursor() -> None:
    stream = io.StringIO()
    Teller(stream).row("system_info", "host\x1b[2J\r\nname")
    assert stream.getvalue() == "  + system_info      host\ufffd[2J\ufffd\ufffdname\n"


async def test_the_agent_command_registers_with_a_code_from_the_environment(world: World, folder: Path) -> None:
    code = (await world.owner.provision("probe-1"))["activationCode"]
    options = ["--gateway", world.url, "--device-id", "probe-1", "--state-dir", str(folder)]
    async with started(folder, "agent", *options, AIZEN_ACTIVATION_CODE=code) as run:
        await run.until("heartbeat")
        assert (await world.owner.status("probe-1"))["status"] == "online"
        run.process.terminate()
        assert await run.end() == 0
        assert code not in run.text
    assert (await world.owner.status("probe-1"))["status"] == "offline"


async def test_an_agent_that_is_turned_away_says_why_with_a_status_of_its_own(world: World, folder: Path) -> None:
    options = ["--gateway", world.url, "--device-id", "probe-1", "--state-dir", str(folder)]
    async with started(folder, "agent", *options) as run:
        assert await run.end() == 3
        assert run.text == "aizen-gateway: this device has not registered yet, and has no activation code to do so"
