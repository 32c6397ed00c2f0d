"""The command lifecycle as a table, and what time alone does to a command (contract sections 3 and 4)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aizen_gateway.domain.clock import EPOCH, from_ms, rfc3339, rfc3339_or_none, to_ms
from aizen_gateway.domain.lifecycle import (
    FROM_RESULT,
    HELD,
    OPEN,
    TRANSITIONS,
    after_ms,
    claimable_until,
    due_at,
    is_final,
    lapse,
    lapsed,
    moved,
)
from aizen_gateway.domain.values import CommandStatus as S
from aizen_gateway.domain.values import ResultStatus
from tests.support.records import command

moments = st.integers(0, 100).map(lambda milliseconds: EPOCH + timedelta(milliseconds=milliseconds))


def at(**time: float) -> datetime:
    return EPOCH + timedelta(**time)


def test_every_status_of_the_contract_is_in_the_table() -> None:
    assert TRANSITIONS.keys() == set(S)
    assert set(OPEN) == {S.PENDING_APPROVAL, S.QUEUED, S.CLAIMED, S.CANCEL_REQUESTED}
    assert set(HELD) == {S.CLAIMED, S.CANCEL_REQUESTED}
    assert FROM_RESULT.keys() == set(ResultStatus)


def test_a_final_status_is_final_but_for_what_was_presumed() -> None:
    presumptions = {S.TIMED_OUT, S.UNDELIVERABLE}
    for status in S:
        if is_final(status) and status not in presumptions:
            assert TRANSITIONS[status] == frozenset()
        if status in presumptions:
            assert TRANSITIONS[status] == set(FROM_RESULT.values())


@pytest.mark.parametrize("status", S)
def test_a_move_that_the_table_does_not_hold_is_refused(status: S) -> None:
    for target in S:
        if target is status or target in TRANSITIONS[status]:
            assert moved(command(status), target).status is target
        else:
            with pytest.raises(ValueError, match=f"from {status} to {target}"):
                moved(command(status), target)


def test_nothing_goes_back_to_waiting_for_approval() -> None:
    assert not any(S.PENDING_APPROVAL in targets for targets in TRANSITIONS.values())


def test_a_rejected_command_is_never_queued_and_an_undecided_one_never_claimed() -> None:
    assert S.QUEUED not in TRANSITIONS[S.REJECTED]
    assert S.CLAIMED not in TRANSITIONS[S.PENDING_APPROVAL]


def test_a_request_to_cancel_is_never_redelivered() -> None:
    assert not TRANSITIONS[S.CANCEL_REQUESTED] & {S.QUEUED, S.CLAIMED}


def test_a_move_says_when_time_will_change_it_next() -> None:
    assert moved(command(S.PENDING_APPROVAL), S.QUEUED).due_at == at(hours=1)
    assert moved(command(S.QUEUED), S.CLAIMED).due_at == at(seconds=60)
    assert moved(command(S.CLAIMED, visible_until=at(seconds=900)), S.CANCEL_REQUESTED).due_at == at(seconds=300)
    assert moved(command(S.CLAIMED), S.SUCCEEDED).due_at is None


def test_a_lease_that_runs_out_gives_the_command_back() -> None:
    held = command(S.CLAIMED)
    assert lapse(held, at(seconds=59.999)) is None
    change = lapse(held, at(seconds=60))
    assert change is not None
    after = lapsed(held, change, at(seconds=60))
    assert (after.status, after.attempt, after.place, after.presumed) == (S.QUEUED, 1, 1, False)
    assert after.claim_token == "token"
    assert after.completed_at is None


def test_the_last_lease_ends_as_undeliverable_which_is_a_presumption() -> None:
    held = command(S.CLAIMED, attempt=5)
    change = lapse(held, at(seconds=60))
    assert change is not None
    after = lapsed(held, change, at(seconds=61))
    assert (after.status, after.presumed, after.completed_at) == (S.UNDELIVERABLE, True, at(seconds=61))


def test_a_time_for_execution_that_ends_first_is_a_time_out_which_is_a_presumption() -> None:
    held = command(S.CLAIMED, visible_until=at(seconds=900))
    assert lapse(held, at(seconds=299.999)) is None
    change = lapse(held, at(seconds=300))
    assert change is not None
    after = lapsed(held, change, at(seconds=300))
    assert (after.status, after.presumed) == (S.TIMED_OUT, True)


def test_a_lease_that_ends_with_the_time_for_execution_gives_the_command_back() -> None:
    change = lapse(command(S.CLAIMED, visible_until=at(seconds=300)), at(seconds=300))
    assert change is not None
    assert change.status is S.QUEUED


def test_a_request_to_cancel_ends_with_its_lease() -> None:
    change = lapse(command(S.CANCEL_REQUESTED), at(seconds=60))
    assert change is not None
    after = lapsed(command(S.CANCEL_REQUESTED), change, at(seconds=60))
    assert (after.status, after.presumed) == (S.CANCELED, False)


@pytest.mark.parametrize("status", [S.PENDING_APPROVAL, S.QUEUED])
def test_what_waits_expires_and_what_is_held_does_not(status: S) -> None:
    assert lapse(command(status), at(minutes=59, seconds=59.999)) is None
    change = lapse(command(status), at(hours=1))
    assert change is not None
    assert lapsed(command(status), change, at(hours=1)).presumed is False
    assert change.status is S.EXPIRED
    long_held = command(S.CLAIMED, visible_until=at(hours=3), deadline_at=at(hours=2))
    assert lapse(long_held, at(hours=1, minutes=30)) is None


def test_a_lease_that_runs_out_after_the_expiry_does_not_give_the_command_back() -> None:
    held = command(S.CLAIMED, claim_by=at(seconds=30))
    change = lapse(held, at(seconds=60))
    assert change is not None
    assert change.status is S.EXPIRED


@given(
    status=st.sampled_from(S),
    attempt=st.integers(1, 3),
    most=st.integers(1, 3),
    visible=moments,
    deadline=moments,
    claim_by=moments,
    now=moments,
)
def test_time_changes_a_command_exactly_from_its_due_moment_on_and_always_by_the_table(
    status: S, attempt: int, most: int, visible: datetime, deadline: datetime, claim_by: datetime, now: datetime
) -> None:
    found = command(
        status,
        attempt=attempt,
        max_deliveries=most,
        visible_until=visible,
        deadline_at=deadline,
        claim_by=claim_by,
    )
    found = replace(found, due_at=due_at(found))
    assert (found.due_at is None) == is_final(status)
    change = lapse(found, now)
    assert (change is not None) == (found.due_at is not None and now >= found.due_at)
    if change is not None:
        after = lapsed(found, change, now)
        assert after.status in TRANSITIONS[status]
        assert after.presumed == (after.status in (S.TIMED_OUT, S.UNDELIVERABLE))
        assert (after.completed_at == now) == is_final(after.status)
        assert after.attempt == attempt


@given(moments, moments, st.none() | moments)
def test_a_command_may_be_claimed_until_the_first_of_its_bounds(
    expires: datetime, session: datetime, approval: datetime | None
) -> None:
    until = claimable_until(expires, session, approval)
    bounds = [expires, session] + ([approval] if approval else [])
    assert until in bounds
    assert all(until <= bound for bound in bounds)


@given(st.integers(-(10**13), 10**14))
def test_milliseconds_and_moments_are_the_same_thing(milliseconds: int) -> None:
    moment = from_ms(milliseconds)
    assert to_ms(moment) == milliseconds
    assert datetime.fromisoformat(rfc3339(moment)) == moment
    assert after_ms(EPOCH, milliseconds) == moment


def test_times_are_written_in_utc_with_milliseconds_and_z() -> None:
    assert rfc3339(datetime.fromisoformat("2026-01-31T13:00:00.123987+01:00")) == "2026-01-31T12:00:00.123Z"
    assert rfc3339_or_none(None) is None
    assert rfc3339_or_none(EPOCH) == "1970-01-01T00:00:00.000Z"
