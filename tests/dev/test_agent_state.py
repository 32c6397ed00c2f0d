"""The agent's state folder: what was written before a cut is there after it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from aizen_gateway.dev import agent_state
from aizen_gateway.dev.agent_disk import DiskThread, write_atomically
from aizen_gateway.dev.agent_state import (
    AgentState,
    Credentials,
    EntryState,
    JournalFull,
    StateUnusable,
    hash_of_code,
)

ROOT = Path(__file__).resolve().parents[2]
CREDENTIALS = Credentials("dev-1", "s" * 43, str(uuid4()), "2026-01-01T00:00:00.000Z", hash_of_code("ABCDE-FGHJK"))

# Keeps results for ever and names each one once it is kept.
WRITER = """
import sys
from pathlib import Path
from uuid import uuid4
from aizen_gateway.dev.agent_disk import DiskThread, write_atomically
from aizen_gateway.dev.agent_state import AgentState
state = AgentState.open(Path(sys.argv[1]))
while True:
    command = uuid4()
    state.record_result(command, "ping", False, "token", {"status": "success", "output": "x" * 20_000})
    print(command, flush=True)
"""

# Marks a remediation as started, and is killed before it ends.
STARTER = """
import signal, sys
from pathlib import Path
from uuid import UUID
from aizen_gateway.dev.agent_disk import DiskThread, write_atomically
from aizen_gateway.dev.agent_state import AgentState
state = AgentState.open(Path(sys.argv[1]))
state.begin_remediation(UUID(sys.argv[2]), "agent.set_label", "token", 3600)
print("started", flush=True)
signal.pause()
"""


def process(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill(started: subprocess.Popen[str]) -> str:
    started.send_signal(signal.SIGKILL)
    rest, _ = started.communicate()
    return rest


@pytest.mark.parametrize("seen_before_the_cut", [1, 7, 20])
def test_every_result_that_was_kept_survives_a_kill(tmp_path: Path, seen_before_the_cut: int) -> None:
    writer = process(WRITER, str(tmp_path))
    assert writer.stdout is not None
    named = [writer.stdout.readline() for _ in range(seen_before_the_cut)]
    named += kill(writer).splitlines(keepends=True)
    kept = {UUID(line.strip()) for line in named if line.endswith("\n")}
    state = AgentState.open(tmp_path)
    found = {entry.id: entry for entry in state.unsent()}
    assert kept <= found.keys()
    assert all(entry.body == {"status": "success", "output": "x" * 20_000} for entry in found.values())
    assert not list(tmp_path.rglob("*.tmp"))
    state.close()


def test_a_remediation_that_was_under_way_is_known_as_started_after_a_kill(tmp_path: Path) -> None:
    command = uuid4()
    starter = process(STARTER, str(tmp_path), str(command))
    assert starter.stdout is not None
    assert starter.stdout.readline() == "started\n"
    kill(starter)
    state = AgentState.open(tmp_path)
    entry = state.entry(command)
    assert entry is not None
    assert (entry.state, entry.remediation, entry.body) == (EntryState.STARTED, True, None)
    assert state.unsent() == []
    state.close()


def test_credentials_come_back_and_are_readable_for_their_owner_alone(tmp_path: Path) -> None:
    state = AgentState.open(tmp_path / "new" / "folder")
    assert state.credentials() is None
    state.save_credentials(CREDENTIALS)
    state.close()
    again = AgentState.open(tmp_path / "new" / "folder")
    assert again.credentials() == CREDENTIALS
    again.close()
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "new" / "folder").iterdir()}
    assert modes == {"credentials.json": 0o600, "lock": 0o600, "journal": 0o700}
    assert "sss" not in repr(CREDENTIALS)


def test_damaged_credentials_are_told_and_not_replaced(tmp_path: Path) -> None:
    state = AgentState.open(tmp_path)
    (tmp_path / "credentials.json").write_text('{"device_id": ')
    with pytest.raises(StateUnusable, match=r"credentials\.json"):
        state.credentials()
    state.close()


def test_a_folder_belongs_to_one_agent_at_a_time(tmp_path: Path) -> None:
    first = AgentState.open(tmp_path)
    with pytest.raises(StateUnusable, match="another agent"):
        AgentState.open(tmp_path)
    first.close()
    AgentState.open(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateUnusable, match="file"):
        AgentState.open(tmp_path / "file" / "state")


def test_a_settled_result_is_kept_for_a_repeat_and_not_sent_again(tmp_path: Path) -> None:
    state = AgentState.open(tmp_path)
    command = uuid4()
    state.record_result(command, "ping", False, "first", {"status": "success"})
    state.settle(command, "first")
    state.close()
    state = AgentState.open(tmp_path)
    assert state.unsent() == []
    entry = state.entry(command)
    assert entry is not None
    assert entry.body == {"status": "success"}
    state.close()


def test_the_last_word_on_an_older_claim_does_not_settle_the_newer_one(tmp_path: Path) -> None:
    state = AgentState.open(tmp_path)
    command = uuid4()
    state.record_result(command, "ping", False, "first", {"status": "success"})
    state.record_result(command, "ping", False, "second", {"status": "success"})
    state.settle(command, "first")
    assert [entry.claim_token for entry in state.unsent()] == ["second"]
    state.close()


def test_unsent_results_come_in_the_order_in_which_they_were_kept(tmp_path: Path) -> None:
    state = AgentState.open(tmp_path)
    commands = [uuid4() for _ in range(5)]
    for command in commands:
        state.record_result(command, "ping", False, "token", {})
    state.close()
    state = AgentState.open(tmp_path)
    assert [entry.id for entry in state.unsent()] == commands
    state.close()


def test_settled_results_do_not_fill_the_disk(tmp_path: Path) -> None:
    state = AgentState.open(tmp_path)
    for _ in range(110):
        command = uuid4()
        state.record_result(command, "ping", False, "token", {"status": "success"})
        state.settle(command, "token")
    assert len(list((tmp_path / "journal").iterdir())) == 100
    for _ in range(20):
        command = uuid4()
        state.record_result(command, "logs", False, "token", {"output": "x" * 250_000})
        state.settle(command, "token")
    assert sum(file.stat().st_size for file in (tmp_path / "journal").iterdir()) <= 4 * 1024 * 1024
    assert state.entry(command) is not None
    state.close()


def test_a_remediation_is_remembered_longer_than_its_result(tmp_path: Path) -> None:
    state = AgentState.open(tmp_path)
    first = uuid4()
    state.begin_remediation(first, "agent.set_label", "token", 3600)
    state.record_result(first, "agent.set_label", True, "token", {"status": "success"})
    state.settle(first, "token")
    for _ in range(100):
        command = uuid4()
        state.record_result(command, "ping", False, "token", {})
        state.settle(command, "token")
    entry = state.entry(first)
    assert entry is not None
    assert (entry.state, entry.body) == (EntryState.SETTLED, None)
    state.close()


def test_a_remediation_is_forgotten_when_it_can_no_longer_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_state, "_CLOCK_SLACK_S", -1)
    state = AgentState.open(tmp_path)
    command = uuid4()
    state.begin_remediation(command, "agent.set_label", "token", 0)
    state.close()
    state = AgentState.open(tmp_path)
    assert state.entry(command) is None
    assert list((tmp_path / "journal").iterdir()) == []
    state.close()


def test_no_more_remediations_are_begun_than_can_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_state, "_MAX_MARKS", 3)
    state = AgentState.open(tmp_path)
    for _ in range(3):
        state.begin_remediation(uuid4(), "agent.set_label", "token", None)
    with pytest.raises(JournalFull):
        state.begin_remediation(uuid4(), "agent.set_label", "token", None)
    state.close()


def test_a_damaged_entry_counts_as_a_remediation_that_was_started(tmp_path: Path) -> None:
    command = uuid4()
    AgentState.open(tmp_path).close()
    (tmp_path / "journal" / f"{command}.json").write_text("{")
    (tmp_path / "journal" / "stray.json").write_text("{}")
    state = AgentState.open(tmp_path)
    entry = state.entry(command)
    assert entry is not None
    assert (entry.state, entry.remediation) == (EntryState.STARTED, True)
    state.close()


def test_what_a_failed_write_leaves_is_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "folder", b"new")
    assert file.read_bytes() == b"old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_a_result_that_the_disk_refuses_is_still_there_to_send(tmp_path: Path) -> None:
    state = AgentState.open(tmp_path)
    (tmp_path / "journal").rmdir()
    command = uuid4()
    with pytest.raises(FileNotFoundError):
        state.record_result(command, "ping", False, "token", {"status": "success"})
    assert [entry.id for entry in state.unsent()] == [command]
    with pytest.raises(FileNotFoundError):
        state.begin_remediation(uuid4(), "agent.set_label", "token", None)
    state.close()


def test_text_of_any_script_survives_in_the_journal(tmp_path: Path) -> None:
    state = AgentState.open(tmp_path)
    command = uuid4()
    state.record_result(command, "logs", False, "token", {"output": "Käse 漢字 \N{PILE OF POO}"})
    state.close()
    stored = json.loads((tmp_path / "journal" / f"{command}.json").read_bytes())
    assert stored["body"]["output"] == "Käse 漢字 \N{PILE OF POO}"


async def test_calls_of_the_disk_thread_keep_their_order() -> None:
    disk, done = DiskThread(), list[int]()
    for number in range(20):
        await disk(done.append, number)
    disk.close()
    assert done == list(range(20))


def test_a_code_is_the_same_however_it_is_typed() -> None:
    assert hash_of_code("abcde-fghjk") == hash_of_code(" ABCDEFGHJK ")
