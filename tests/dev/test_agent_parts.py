"""The agent's smaller parts, which need no gateway: configuration, waiting times, reading a claim, the label."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from aizen_gateway.dev.agent import AgentConfig
from aizen_gateway.dev.agent_api import Backoff
from aizen_gateway.dev.agent_work import Claimed
from aizen_gateway.dev.diagnostics import BadParameter, Outcome, Parameters
from aizen_gateway.dev.remediation import remediations_table


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://127.0.0.1"},
        {"base_url": "127.0.0.1:3001"},
        {"base_url": "http://127.0.0.1:99999"},
        {"device_id": "x"},
        {"device_id": "a/../b"},
        {"poll_wait_ms": 30_001},
        {"visibility_timeout_ms": 999},
        {"concurrency": 0},
        {"stop_grace_ms": 0},
        {"connectivity_targets": ("example.com",)},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        AgentConfig(**{"device_id": "dev-1", "state_dir": tmp_path, **wrong})


def test_an_activation_code_is_not_shown(tmp_path: Path) -> None:
    assert "ABCDE" not in repr(AgentConfig("dev-1", tmp_path, activation_code="ABCDE-FGHJK"))


@pytest.mark.parametrize(
    ("base_url", "target"),
    [
        ("http://127.0.0.1:3001", "127.0.0.1:3001"),
        ("https://gateway.example", "gateway.example:443"),
        ("http://[::1]:3001/", "[::1]:3001"),
    ],
)
def test_the_gateway_is_a_target_for_connectivity(tmp_path: Path, base_url: str, target: str) -> None:
    assert AgentConfig("dev-1", tmp_path, base_url=base_url).gateway_target == target


def test_waiting_times_double_up_to_the_cap_and_start_again_after_a_success() -> None:
    backoff = Backoff(1.0, 8.0)
    for longest in (1, 2, 4, 8, 8, 8):
        assert longest / 2 <= backoff.next() <= longest
    backoff.reset()
    assert backoff.next() <= 1


def test_what_the_gateway_asks_to_wait_is_honoured_within_reason() -> None:
    backoff = Backoff(1.0, 8.0)
    assert 20 <= backoff.next(20) <= 24
    assert backoff.next(10**9) <= 3604
    assert backoff.next(0) <= 8


def claim(**changes: Any) -> dict[str, Any]:
    whole = {
        "id": str(uuid4()),
        "type": "ping",
        "parameters": {"host": "localhost"},
        "claimToken": "token",
        "leaseMs": 30_000,
        "timeoutMs": 5000,
        "digest": "sha256:00",
        "timestamp": "2026-01-31T12:00:00.000Z",
        "expiresAt": "2026-01-31T13:00:00.000Z",
        "somethingNew": 1,
    }
    return {**whole, **changes}


async def test_a_claim_is_read_with_its_times_in_seconds() -> None:
    claimed = Claimed.parse(claim(), 60_000)
    assert (claimed.lease_s, claimed.timeout_s, claimed.lives_s) == (30, 5, 3600)
    assert "token" not in repr(claimed)


@pytest.mark.parametrize(
    "wrong",
    [{"id": "../x"}, {"id": 1}, {"type": 1}, {"parameters": []}, {"claimToken": None}, {"leaseMs": "1"}],
)
async def test_what_is_no_claim_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a claimed command"):
        Claimed.parse(claim(**wrong), 60_000)
    with pytest.raises(ValueError, match="not a claimed command"):
        Claimed.parse("text", 60_000)


def contents(folder: Path) -> list[str]:
    return [file.read_text() for file in folder.iterdir()]


async def set_label(folder: Path, **parameters: Any) -> Outcome:
    return await remediations_table(folder)["agent.set_label"](Parameters(parameters))


async def test_a_label_is_really_written(tmp_path: Path) -> None:
    assert (await set_label(tmp_path, label="Kasse 1")).result == {"label": "Kasse 1", "previous": None}
    assert (await set_label(tmp_path, label="Käse 2")).result == {"label": "Käse 2", "previous": "Kasse 1"}
    assert contents(tmp_path) == ["Käse 2"]


@pytest.mark.parametrize(
    "wrong", [{}, {"label": ""}, {"label": "a\nb"}, {"label": "x" * 65}, {"label": 1}, {"label": "a", "path": "/etc/x"}]
)
async def test_a_label_that_is_none_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        await set_label(tmp_path, **wrong)
    assert contents(tmp_path) == []


async def test_a_label_whose_writing_was_canceled_too_late_is_reported_as_written(tmp_path: Path) -> None:
    setting = asyncio.create_task(set_label(tmp_path, label="new"))
    await asyncio.sleep(0)  # until it waits for the disk
    setting.cancel()
    assert (await setting).result["label"] == "new"
    assert (tmp_path / "label").read_text() == "new"
