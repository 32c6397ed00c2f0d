"""What a device's result does to a command (contract section 3, promises 4, 5 and 10)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aizen_gateway.domain.clock import EPOCH
from aizen_gateway.domain.errors import (
    ClaimExpired,
    CommandAlreadyCompleted,
    CommandCanceled,
    InvalidClaimToken,
)
from aizen_gateway.domain.lifecycle import FROM_RESULT
from aizen_gateway.domain.reporting import Report, require_lease, take_result
from aizen_gateway.domain.values import (
    MAX_ERROR_CHARACTERS,
    MAX_OUTPUT_CHARACTERS,
    ResultStatus,
)
from aizen_gateway.domain.values import CommandStatus as S
from tests.support.records import command

IN_TIME, LAPSED, OVER = EPOCH + timedelta(seconds=1), EPOCH + timedelta(seconds=60), EPOCH + timedelta(seconds=300)
texts = st.none() | st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
reports = st.builds(
    Report,
    status=st.sampled_from(ResultStatus),
    output=texts,
    error=texts,
    result=st.none() | st.dictionaries(st.text(max_size=5), json_values, max_size=3),
    executed_at=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    duration=st.integers(0, 10**6) | st.floats(0, 1e6),
)


def report(**changes: Any) -> Report:
    return replace(Report(ResultStatus.SUCCESS, None, None, None, EPOCH, 1), **changes)


@given(reports, st.sampled_from([S.CLAIMED, S.CANCEL_REQUESTED]))
def test_a_result_in_time_ends_the_command_as_it_says(told: Report, status: S) -> None:
    verdict = take_result(command(status), "token", told, IN_TIME)
    assert verdict.after is not None
    assert (verdict.after.status, verdict.late) == (FROM_RESULT[told.status], False)
    assert (verdict.after.completed_at, verdict.after.due_at) == (IN_TIME, None)
    assert verdict.after.result == told.record(IN_TIME, late=False)


@given(reports)
def test_the_same_result_again_is_a_duplicate(told: Report) -> None:
    ended = take_result(command(S.CLAIMED), "token", told, IN_TIME).after
    assert ended is not None
    verdict = take_result(ended, "token", told, OVER)
    assert (verdict.after, verdict.late) == (None, False)


@given(reports, reports)
def test_another_result_after_the_end_is_refused(told: Report, other: Report) -> None:
    ended = take_result(command(S.CLAIMED), "token", told, IN_TIME).after
    assert ended is not None
    if other.digest() == told.digest():
        return
    with pytest.raises((CommandAlreadyCompleted, CommandCanceled)):
        take_result(ended, "token", other, OVER)


@given(reports)
def test_another_token_is_refused_before_the_end_and_after_it(told: Report) -> None:
    for token in ("", "toke", "token ", "older", "é"):
        with pytest.raises(InvalidClaimToken):
            take_result(command(S.CLAIMED), token, told, IN_TIME)
    ended = take_result(command(S.CLAIMED), "token", told, IN_TIME).after
    assert ended is not None
    with pytest.raises((CommandAlreadyCompleted, CommandCanceled)):
        take_result(ended, "older", told, IN_TIME)


def test_no_token_is_that_of_a_command_that_nobody_claimed() -> None:
    with pytest.raises(InvalidClaimToken):
        take_result(command(S.QUEUED, claim_token=None), "", report(), IN_TIME)


@pytest.mark.parametrize(
    ("status", "now", "late"),
    [
        (S.CLAIMED, IN_TIME, False),
        (S.CLAIMED, LAPSED - timedelta(milliseconds=1), False),
        (S.CLAIMED, LAPSED, True),
        (S.QUEUED, LAPSED, True),
        (S.CANCEL_REQUESTED, LAPSED, True),
        (S.UNDELIVERABLE, LAPSED, True),
        (S.TIMED_OUT, OVER, True),
    ],
)
def test_a_result_after_its_lease_is_late(status: S, now: datetime, late: bool) -> None:
    presumed = status in (S.UNDELIVERABLE, S.TIMED_OUT)
    verdict = take_result(command(status, presumed=presumed), "token", report(), now)
    assert verdict.after is not None
    assert verdict.late is late
    assert verdict.after.result is not None
    assert verdict.after.result["late"] is late


def test_a_result_past_the_time_for_execution_is_late_though_its_lease_goes_on() -> None:
    verdict = take_result(command(S.CLAIMED, visible_until=OVER + timedelta(hours=1)), "token", report(), OVER)
    assert verdict.late is True


@pytest.mark.parametrize("status", [S.UNDELIVERABLE, S.TIMED_OUT])
@given(reports, reports)
def test_a_presumption_is_replaced_once(status: S, told: Report, other: Report) -> None:
    presumed = command(status, presumed=True, completed_at=OVER)
    with pytest.raises(CommandAlreadyCompleted):
        take_result(presumed, "older", told, OVER)
    replaced = take_result(presumed, "token", told, OVER).after
    assert replaced is not None
    assert (replaced.status, replaced.presumed) == (FROM_RESULT[told.status], False)
    again = take_result(replaced, "token", told, OVER)
    assert (again.after, again.late) == (None, True)
    if other.digest() != told.digest():
        with pytest.raises((CommandAlreadyCompleted, CommandCanceled)):
            take_result(replaced, "token", other, OVER)


@pytest.mark.parametrize("status", [S.SUCCEEDED, S.FAILED, S.EXPIRED, S.REJECTED, S.TIMED_OUT, S.CANCELED])
def test_an_end_that_nobody_presumed_is_never_replaced(status: S) -> None:
    refusal = CommandCanceled if status is S.CANCELED else CommandAlreadyCompleted
    with pytest.raises(refusal):
        take_result(command(status), "token", report(), IN_TIME)


@given(reports)
def test_the_same_known_fields_are_the_same_result(told: Report) -> None:
    elsewhere = told.executed_at.astimezone(timezone(timedelta(hours=-7, minutes=-30)))
    assert replace(told, executed_at=elsewhere).digest() == told.digest()
    parsed_again = json.loads(json.dumps(told.result))
    shuffled = dict(reversed(parsed_again.items())) if parsed_again else parsed_again
    assert replace(told, result=shuffled).digest() == told.digest()
    if isinstance(told.duration, int):
        assert replace(told, duration=float(told.duration)).digest() == told.digest()


@given(reports, reports)
def test_results_that_differ_in_a_known_field_differ(told: Report, other: Report) -> None:
    for name in ("status", "output", "error", "result"):
        if getattr(told, name) != getattr(other, name):
            assert replace(told, **{name: getattr(other, name)}).digest() != told.digest()
    assert replace(told, duration=told.duration + 1).digest() != told.digest()
    assert replace(told, executed_at=told.executed_at + timedelta(milliseconds=1)).digest() != told.digest()
    assert replace(told, output="a", error="b").digest() != replace(told, output="b", error="a").digest()


def test_nothing_is_not_an_empty_text() -> None:
    assert report(output=None).digest() != report(output="").digest()
    assert report(result=None).digest() != report(result={}).digest()


@pytest.mark.parametrize("over", [0, 1, 1000])
def test_output_and_error_are_cut_at_their_limits_in_characters(over: int) -> None:
    output, error = "ü" * (MAX_OUTPUT_CHARACTERS + over), "\U0001f600" * (MAX_ERROR_CHARACTERS + over)
    both = report(output=output, error=error).record(IN_TIME, late=False)
    assert (len(both["output"]), len(both["error"])) == (MAX_OUTPUT_CHARACTERS, MAX_ERROR_CHARACTERS)
    assert both["truncated"] is bool(over)
    assert both.get("originalBytes") == (2 * len(output) if over else None)
    alone = report(error=error).record(IN_TIME, late=False)
    assert alone.get("originalBytes") == (4 * len(error) if over else None)


@given(reports, st.booleans())
def test_what_is_within_its_limits_is_kept_as_it_came(told: Report, late: bool) -> None:
    record = told.record(IN_TIME, late=late)
    assert (record["output"], record["error"], record["result"]) == (told.output, told.error, told.result)
    assert (record["truncated"], record["late"], record["duration"]) == (False, late, told.duration)
    assert "originalBytes" not in record


def test_a_lease_is_held_to_its_last_millisecond() -> None:
    require_lease(command(S.CLAIMED), "token", LAPSED - timedelta(milliseconds=1))
    with pytest.raises(ClaimExpired):
        require_lease(command(S.CLAIMED), "token", LAPSED)
    with pytest.raises(ClaimExpired):
        require_lease(command(S.QUEUED), "token", LAPSED)
    with pytest.raises(InvalidClaimToken):
        require_lease(command(S.CLAIMED), "older", LAPSED)
    with pytest.raises(InvalidClaimToken):
        require_lease(command(S.QUEUED, claim_token=None), "token", IN_TIME)


def test_a_lease_past_the_time_for_execution_holds_nothing() -> None:
    with pytest.raises(CommandAlreadyCompleted):
        require_lease(command(S.CLAIMED, visible_until=OVER + timedelta(hours=1)), "token", OVER)


@pytest.mark.parametrize("status", [status for status in S if status not in (S.CLAIMED, S.CANCEL_REQUESTED)])
def test_what_has_ended_or_waits_is_held_by_nobody(status: S) -> None:
    refusals = {S.CANCELED: CommandCanceled, S.QUEUED: ClaimExpired, S.PENDING_APPROVAL: ClaimExpired}
    with pytest.raises(refusals.get(status, CommandAlreadyCompleted)):
        require_lease(command(status), "token", IN_TIME)
