"""Bodies of results fit the contract, whatever a command says."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aizen_gateway.dev.agent_result import MAX_BODY_BYTES, result_body
from aizen_gateway.dev.diagnostics import Outcome
from aizen_gateway.domain.values import MAX_ERROR_CHARACTERS, MAX_OUTPUT_CHARACTERS, ResultStatus

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


def body(output: str = "", findings: dict[str, Any] | None = None, error: str | None = None) -> dict[str, Any]:
    outcome = Outcome(output, findings or {})
    return result_body(ResultStatus.SUCCESS, executed_at=AT, duration_ms=5, outcome=outcome, error=error)


def size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


def test_a_small_result_is_sent_as_it_is() -> None:
    assert body("fine", {"reachable": True}) == {
        "status": "success",
        "output": "fine",
        "result": {"reachable": True},
        "executedAt": "2026-01-31T12:00:00.000Z",
        "duration": 5,
    }


def test_an_output_is_cut_at_the_limit_and_says_so() -> None:
    sent = body("x" * (MAX_OUTPUT_CHARACTERS + 1))
    assert len(sent["output"]) == MAX_OUTPUT_CHARACTERS
    assert sent["result"] == {"agentCutOutputCharacters": MAX_OUTPUT_CHARACTERS + 1}


@pytest.mark.parametrize("character", ["\N{PILE OF POO}", "\x01", '"', "\0", "\ud800", "漢"])
def test_no_output_makes_a_body_that_is_too_large(character: str) -> None:
    sent = body(character * 300_000, {"rows": ["r" * 1000] * 100})
    assert size(sent) <= MAX_BODY_BYTES
    assert len(sent["output"]) > 20_000


def test_findings_that_are_too_large_are_left_out_whole() -> None:
    sent = body("text", {"rows": ["r" * 1000] * 300})
    assert list(sent["result"]) == ["agentDroppedBytes"]
    assert sent["output"] == "text"


def test_an_error_is_cut_at_its_own_limit() -> None:
    assert len(body(error="e" * 20_000)["error"]) == MAX_ERROR_CHARACTERS


@given(st.text(st.characters(), max_size=200).map(lambda text: text * 3000), st.text(st.characters(), max_size=20_000))
def test_every_body_is_json_within_the_limit(output: str, error: str) -> None:
    sent = body(output, {"k": "v" * 1000}, error)
    assert size(sent) <= MAX_BODY_BYTES
    assert json.loads(json.dumps(sent, ensure_ascii=False).encode()) == sent
