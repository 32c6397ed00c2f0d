"""The judge of `scripts/chaos`: what it lets pass, and that it sees every kind of wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from .ledger import BROKEN, GAVE_UP, RECOVERS_S, Call, Delivery, Disturbance, Ledger, Stored

_BEGAN, _HEALED = 100.0, 110.0
_OUTAGE = Disturbance("an outage", _BEGAN, frozenset({"one"}), frozenset({"two"}), frozenset({"heartbeat"}), _HEALED)
_UNAVAILABLE = Call("submit", "one", 101.0, 102.0, 503, "UNAVAILABLE", retry_after=True)
_BROKEN = Call("claim", "two", 99.0, 101.0, BROKEN)
_RESULT = {"status": "success", "output": "out", "error": None, "result": {"a": 1}, "duration": 5}
_DIAGNOSTIC = Delivery("id", "diagnostic", 1, "token-1", 1_000, "out")
_REMEDIATION = replace(_DIAGNOSTIC, kind="remediation")
_STORED = Stored("succeeded", "diagnostic", 1, {**_RESULT, "receivedAt": "now", "late": False})


def of_call(call: Call, disturbance: Disturbance = _OUTAGE) -> list[str]:
    """What is wrong about one call in an outage."""
    ledger = Ledger([disturbance])
    ledger.call(call)
    return ledger.violations


def lived(*deliveries: Delivery, taken: bool = True, kind: str = "diagnostic") -> Ledger:
    """A ledger with one command that was submitted, delivered so, each time for a second, and reported."""
    ledger = Ledger()
    ledger.submitted("id", kind, "key")
    for delivery in deliveries or (_DIAGNOSTIC,):
        ledger.delivered(delivery, delivery.granted_ms + 1_000)
    if taken:
        ledger.taken("id", _RESULT)
    return ledger


def judged(ledger: Ledger, stored: Stored | None = _STORED, **more: Stored) -> str:
    """What is wrong about the commands, in one text."""
    truth: Mapping[str, Stored] = ({} if stored is None else {"id": stored}) | more
    ledger.judge(truth)
    return "\n".join(ledger.violations)


def test_an_outage_excuses_503_and_broken_connections_where_they_belong() -> None:
    assert of_call(_UNAVAILABLE) == []
    assert of_call(_BROKEN) == []
    assert of_call(replace(_UNAVAILABLE, started=_HEALED + RECOVERS_S - 1, ended=_HEALED + RECOVERS_S)) == []


@pytest.mark.parametrize(
    "call",
    [
        replace(_UNAVAILABLE, retry_after=False),
        replace(_UNAVAILABLE, code="SOMETHING"),
        replace(_UNAVAILABLE, instance="two"),
        replace(_UNAVAILABLE, kind="heartbeat"),
        replace(_UNAVAILABLE, started=98.0, ended=99.0),
        replace(_UNAVAILABLE, started=_HEALED + RECOVERS_S + 0.1, ended=_HEALED + RECOVERS_S + 0.2),
        replace(_BROKEN, instance="one"),
        replace(_BROKEN, started=_HEALED + 0.1, ended=_HEALED + 0.2),
        replace(_BROKEN, status=GAVE_UP),
        *(replace(_UNAVAILABLE, status=status, code="ANY") for status in (400, 404, 409, 429, 500, 502)),
        replace(_UNAVAILABLE, status=404, code="COMMAND_NOT_FOUND"),
        replace(_UNAVAILABLE, status=409, code="COMMAND_ALREADY_COMPLETED"),
    ],
    ids=lambda call: f"{call.kind} at {call.instance}: {call.outcome}",
)
def test_nothing_else_is_excused(call: Call) -> None:
    assert len(of_call(call)) == 1


def test_without_an_outage_nothing_is_excused() -> None:
    ledger = Ledger()
    for call in (_UNAVAILABLE, _BROKEN):
        ledger.call(call)
    ledger.call(replace(_UNAVAILABLE, status=201))
    assert len(ledger.violations) == 2
    assert ledger.outcomes == {"503 UNAVAILABLE": 1, "broken connection": 1}


def test_an_outage_that_has_not_ended_excuses_still() -> None:
    assert of_call(_UNAVAILABLE, replace(_OUTAGE, healed=None)) == []


def test_401_is_right_only_for_tokens_from_before_redis_was_emptied() -> None:
    refused = replace(_UNAVAILABLE, status=401, code="UNAUTHENTICATED")
    emptied = replace(_OUTAGE, emptied_at=105.0)
    assert of_call(replace(refused, signed_in_at=104.0), emptied) == []
    assert of_call(replace(refused, signed_in_at=106.0), emptied) != []
    assert of_call(replace(refused, signed_in_at=104.0)) != []
    assert of_call(refused, emptied) != []


def test_only_a_repeated_submission_may_find_the_first_under_way() -> None:
    busy = replace(_UNAVAILABLE, status=409, code="IDEMPOTENCY_IN_PROGRESS", attempt=2)
    assert of_call(busy) == []
    assert of_call(replace(busy, attempt=1)) != []
    assert of_call(replace(busy, retry_after=False)) != []


def test_only_a_repeated_decision_may_find_itself_decided() -> None:
    decided = replace(_UNAVAILABLE, kind="approve", status=409, code="ALREADY_DECIDED", attempt=2)
    assert of_call(decided) == []
    assert of_call(replace(decided, attempt=1)) != []


def test_a_whole_life_is_right() -> None:
    ledger = lived()
    assert judged(ledger) == ""
    assert (ledger.accepted, ledger.results, ledger.redeliveries) == (1, 1, 0)


def test_a_command_that_was_never_taken_up_may_end_without_a_result() -> None:
    ledger = Ledger()
    ledger.submitted("id", "diagnostic", "key")
    assert judged(ledger, Stored("undeliverable", "diagnostic", 5)) == ""


def test_a_claim_that_was_counted_and_never_answered_is_counted() -> None:
    ledger = Ledger()
    ledger.submitted("id", "remediation", "key")
    assert judged(ledger, Stored("undeliverable", "remediation", 1)) == ""
    assert ledger.unreached == {"id"}
    reached = lived(_REMEDIATION, taken=False, kind="remediation")
    assert judged(reached, Stored("undeliverable", "remediation", 1)) == ""
    assert reached.unreached == set()


def test_a_lost_command_is_seen() -> None:
    assert "is lost" in judged(lived(), None)


def test_a_command_that_never_ends_is_seen() -> None:
    assert "never ended: it is claimed" in judged(lived(taken=False), replace(_STORED, status="claimed", result=None))


def test_a_submission_that_was_done_twice_is_seen() -> None:
    ledger = lived()
    ledger.submitted("other", "diagnostic", "key")
    assert "one Idempotency-Key made two commands" in ledger.violations[0]
    assert "a submission was done twice" in judged(lived(), second=_STORED)


def test_a_command_that_a_device_had_and_nobody_was_answered_is_seen() -> None:
    ledger = Ledger()
    ledger.delivered(_DIAGNOSTIC, 2_000)
    ledger.taken("id", _RESULT)
    assert "never answered 201" in judged(ledger)


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (replace(_STORED, status="undeliverable", result=None), "lost a result that was taken"),
        (replace(_STORED, status="failed"), "lost a result that was taken"),
        (replace(_STORED, result={**_RESULT, "output": "ou"}), "output differ"),
        (replace(_STORED, result={**_RESULT, "result": {"a": 2}}), "result differ"),
        (replace(_STORED, ends=2), "2 records of its end"),
        (replace(_STORED, ends=0), "0 records of its end"),
        (replace(_STORED, kind="remediation"), "is kept as remediation"),
    ],
)
def test_a_result_that_is_not_the_one_that_was_taken_is_seen(stored: Stored, problem: str) -> None:
    assert problem in judged(lived(), stored)


def test_two_results_that_were_both_taken_are_seen() -> None:
    ledger = lived(_DIAGNOSTIC, replace(_DIAGNOSTIC, attempt=2, token="token-2", granted_ms=3_000, output="again"))
    ledger.taken("id", {**_RESULT, "output": "again"})
    assert "2 different results that were taken" in judged(ledger)


def test_the_same_result_that_was_taken_again_is_right() -> None:
    ledger = lived()
    ledger.taken("id", _RESULT)
    assert judged(ledger) == ""


def test_a_result_that_nobody_sent_or_was_told_of_is_seen() -> None:
    assert "never told that it was taken" in judged(lived(taken=False))
    other: dict[str, Any] = {**_RESULT, "output": "made up"}
    assert "no device sent" in judged(lived(taken=False), replace(_STORED, result=other))


def test_a_remediation_that_runs_twice_is_seen_even_after_its_lease() -> None:
    again = replace(_REMEDIATION, attempt=2, token="token-2", granted_ms=9_000)
    assert "was run twice" in lived(_REMEDIATION, again, kind="remediation").violations[0]
    assert "was run twice" in lived(_REMEDIATION, _REMEDIATION, kind="remediation").violations[0]


def test_a_diagnostic_may_run_again_after_its_lease_and_not_before() -> None:
    again = replace(_DIAGNOSTIC, attempt=2, token="token-2", granted_ms=2_000)
    assert lived(_DIAGNOSTIC, again).violations == []
    assert "granted anew 1 ms before" in lived(_DIAGNOSTIC, replace(again, granted_ms=1_999)).violations[0]


def test_an_extension_counts_as_the_lease() -> None:
    ledger = lived(taken=False)
    ledger.extended("id", "token-1", 5_000)
    ledger.delivered(replace(_DIAGNOSTIC, attempt=2, token="token-2", granted_ms=4_000), 6_000)
    assert "granted anew 1000 ms before" in ledger.violations[0]


def test_what_was_handed_back_may_come_at_once_and_was_never_run() -> None:
    ledger = lived(_REMEDIATION, taken=False, kind="remediation")
    ledger.returned("id", "token-1")
    ledger.delivered(replace(_REMEDIATION, token="token-2", granted_ms=1_500), 2_500)
    assert ledger.violations == []


def test_a_delivery_after_the_result_was_taken_is_seen() -> None:
    ledger = lived()
    ledger.delivered(replace(_DIAGNOSTIC, attempt=2, token="token-2", granted_ms=9_000), 10_000)
    assert "delivered after its result had been taken" in ledger.violations[0]


def test_an_answer_may_come_after_that_of_the_next_claim() -> None:
    again = replace(_DIAGNOSTIC, attempt=2, token="token-2", granted_ms=2_000)
    ledger = lived(again)
    ledger.delivered(_DIAGNOSTIC, 2_000)
    assert ledger.violations == []
    ledger.delivered(replace(_DIAGNOSTIC, token="token-0", granted_ms=500), 1_001)
    assert "granted anew 1 ms before" in ledger.violations[0]


def test_a_refused_result_needs_a_newer_claim() -> None:
    ledger = lived(taken=False)
    ledger.refused("id", 1)
    ended = Stored("undeliverable", "diagnostic", 2)
    assert judged(ledger, ended) == ""
    assert "after which there was none" in judged(ledger, replace(ended, attempt=1))


def test_a_result_may_come_too_late_only_when_a_newer_claim_ended_the_command() -> None:
    late = replace(_UNAVAILABLE, kind="result", status=409, code="COMMAND_ALREADY_COMPLETED")
    assert of_call(late) == []
    again = replace(_DIAGNOSTIC, attempt=2, token="token-2", granted_ms=2_000)
    ledger = lived(_DIAGNOSTIC, again)
    ledger.refused("id", 1)
    assert judged(ledger, replace(_STORED, attempt=2)) == ""
    ledger.refused("id", 2)
    assert "refused the result of claim 2" in judged(ledger, replace(_STORED, attempt=2))


def test_of_many_wrongs_the_first_are_told() -> None:
    ledger = Ledger()
    for number in range(1_000):
        ledger.wrong(f"wrong {number}")
    assert ledger.violations[0] == "wrong 0"
    assert len(ledger.violations) < 100
    assert ledger.wrongs == 1_000
