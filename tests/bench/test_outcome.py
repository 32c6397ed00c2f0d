"""The bench's arithmetic: a figure that is computed wrongly is worse than none."""

from __future__ import annotations

import pytest

from .load import Load, share
from .outcome import Check, Figure, Row, beside_earlier, medians
from .plan import Plan
from .report import Report, markdown


def _row(rate: float, *checks: Check) -> Row:
    return Row("cycle", "a cycle", "16 conn.", 16, {Figure.RATE: rate}, {Figure.RATE: 2 * rate}, checks)


def test_a_percentile_is_the_value_under_which_so_many_are() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (share(values, 0.5), share(values, 0.99), share([7.0], 0.99)) == (51.0, 100.0, 7.0)


def test_a_load_counts_its_own_seconds_and_knows_of_all() -> None:
    load = Load.of([0.001, 0.003, 0.002], seconds=2.0, total=5)
    assert load == Load(1.5, 0.002, 0.003, answers=3, total=5)
    with pytest.raises(TimeoutError):
        Load.of([], seconds=1.0)


def test_runs_are_summed_up_by_their_medians_and_the_highest_maximum() -> None:
    runs = [{Figure.RATE: rate, Figure.MAX: rate} for rate in (1.0, 9.0, 2.0)]
    assert medians(runs) == {Figure.RATE: 2.0, Figure.MAX: 9.0}


@pytest.mark.parametrize(("at_least", "value", "reached"), [(True, 0.8, True), (True, 0.79, False), (False, 0.8, True)])
def test_a_bound_itself_is_enough(at_least: bool, value: float, reached: bool) -> None:
    assert Check("of the ceiling", value, 0.8, at_least).reached is reached


def test_a_row_reaches_what_is_asked_when_all_of_it_holds() -> None:
    good, bad = Check("good", 1, 2), Check("bad", 3, 2)
    assert [_row(1, *checks).reached for checks in ((), (good,), (good, bad))] == [None, True, False]


def test_an_earlier_run_adds_what_must_have_been_gained() -> None:
    earlier = [_row(100).json]
    (check,) = beside_earlier(_row(149), earlier).checks
    assert (check.value, check.bound, check.reached) == (1.49, 1.5, False)
    assert beside_earlier(_row(149), []).checks == ()


def test_a_report_says_the_same_to_machines_and_to_people() -> None:
    report = Report(Plan(), rows=[_row(100, Check("of the ceiling", 0.5, 0.7, at_least=True))])
    assert report.json["reached"] is False
    assert report.json["rows"][0]["gateway"] == {"perSecond": 100}
    last = markdown(report.rows).splitlines()[-1]
    assert last.startswith("| a cycle | 16 conn. | 100 / 200 |")
    assert last.endswith("| 0.50 of the ceiling | ≥ 0.70 | no |")
