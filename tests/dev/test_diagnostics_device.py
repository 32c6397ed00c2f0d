"""system_info, logs, the figures of a heartbeat, and how system tools are run."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from aizen_gateway.dev.diagnostics import BadParameter, CannotRun, Parameters, diagnostics_table, processes
from aizen_gateway.dev.diagnostics.metrics import CpuMeter, heartbeat_metrics
from aizen_gateway.dev.diagnostics.processes import run_tool


async def run(name: str, /, *, log_files: tuple[Path, ...] = (), **parameters: Any) -> tuple[str, dict[str, Any]]:
    outcome = await diagnostics_table(log_files=log_files)[name](Parameters(parameters))
    return outcome.output, outcome.result


async def test_system_info_describes_this_machine() -> None:
    output, result = await run("system_info")
    assert socket.gethostname() in output
    assert result["hostname"] == socket.gethostname()
    assert result["cpu"]["count"] == os.cpu_count()
    assert result["memory"]["totalBytes"] >= result["memory"]["availableBytes"] > 0
    assert "/" in [disk["path"] for disk in result["disks"]]
    assert result["uptimeS"] > 0


def test_a_heartbeat_carries_processor_memory_and_uptime_as_numbers() -> None:
    meter = CpuMeter()
    # Busy until the kernel's clock has ticked.
    while "cpu" not in (metrics := heartbeat_metrics(meter)):
        sum(range(1_000_000))
    assert 0 <= metrics["cpu"] <= 100
    assert 0 < metrics["memory"] < 100
    assert metrics["uptime"] > 0


async def test_logs_show_the_last_lines_of_an_allowed_file(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("".join(f"line {n}\n" for n in range(50)))
    output, result = await run("logs", log_files=(log,), path=str(log), lines=3)
    assert output.splitlines() == ["line 47", "line 48", "line 49"]
    assert result == {"source": "file", "path": str(log), "lines": 3, "cut": False}


async def test_logs_of_a_huge_file_stay_bounded_and_say_so(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("".join(f"{n:06d} {'x' * 993}\n" for n in range(2000)))
    output, result = await run("logs", log_files=(log,), path=str(log), lines=1000)
    assert len(output.encode()) <= 96 * 1024
    assert output.splitlines()[-1].startswith("001999")
    assert all(len(line) == 1000 for line in output.splitlines())
    assert result["cut"] is True


@pytest.mark.parametrize("path", ["/etc/passwd", "/var/log/../../etc/passwd", "relative.log"])
async def test_logs_show_no_file_that_is_not_allowed(tmp_path: Path, path: str) -> None:
    with pytest.raises(CannotRun):
        await run("logs", log_files=(tmp_path / "app.log",), path=path)


async def test_a_named_pipe_in_the_place_of_a_log_does_not_hold_the_agent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "app.log")
    with pytest.raises(CannotRun, match="no ordinary file"):
        await run("logs", log_files=(tmp_path / "app.log",), path=str(tmp_path / "app.log"))


async def test_logs_take_the_first_allowed_file_where_there_is_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "second.log").write_text("here\n")
    output, result = await run("logs", log_files=(tmp_path / "first.log", tmp_path / "second.log"))
    assert (output, result["path"]) == ("here", str(tmp_path / "second.log"))
    with pytest.raises(CannotRun, match="there is no journalctl"):
        await run("logs", log_files=(), source="journal")


@pytest.mark.parametrize("unit", ["-o", "--file=/etc/passwd", "a b", "x;y", ""])
async def test_a_unit_that_could_be_an_option_is_refused(unit: str) -> None:
    with pytest.raises(BadParameter):
        await run("logs", unit=unit)


async def test_the_journal_is_read_where_there_is_one() -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("this machine has no journal")
    try:
        output, result = await run("logs", source="journal", lines=5)
    except CannotRun as refusal:
        output, result = str(refusal), {"lines": 1, "source": "journal"}
    assert result["source"] == "journal"
    assert result["lines"] == len(output.splitlines()) <= 5


async def test_a_canceled_tool_takes_its_children_along(tmp_path: Path) -> None:
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    script = f"sleep 300 & echo $! > {pipe}; wait"
    running = asyncio.create_task(run_tool(["sh", "-c", script], timeout_s=60))
    grandchild = int(await asyncio.to_thread(pipe.read_text))
    ended = asyncio.Event()
    watched = os.pidfd_open(grandchild)
    try:
        asyncio.get_running_loop().add_reader(watched, ended.set)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await ended.wait()
        asyncio.get_running_loop().remove_reader(watched)
    finally:
        os.close(watched)


async def test_a_tool_that_takes_too_long_is_ended() -> None:
    with pytest.raises(CannotRun, match=r"longer than 0\.2 s"):
        await run_tool(["sleep", "300"], timeout_s=0.2)


async def test_a_tool_that_talks_without_end_is_cut_and_ended() -> None:
    script = "import itertools\nfor n in itertools.count(): print(n)"
    said = await run_tool([sys.executable, "-c", script], timeout_s=30, limit=10_000)
    assert said.cut is True
    assert len(said.text) == 10_000


async def test_a_tool_of_which_nobody_reads_any_more_is_ended() -> None:
    script = "import itertools\nfor n in itertools.count(): print(n)"
    process = await processes._start(sys.executable, [sys.executable, "-c", script])
    output: Any = process.stdout
    async with asyncio.timeout(20):
        # So much waits that the event loop has stopped reading.
        while not output._paused:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)
        await processes._kill(process)
    assert process.returncode == -signal.SIGKILL


async def test_a_tool_gets_its_arguments_untouched() -> None:
    said = await run_tool([sys.executable, "-c", "import sys; print(sys.argv[1:])", "$(id)", "a b;c"], timeout_s=30)
    assert said.text.strip() == "['$(id)', 'a b;c']"
