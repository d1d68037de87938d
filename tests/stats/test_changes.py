"""What changed between two runs, on percentiles written by hand."""

from __future__ import annotations

import dataclasses

import pytest
from changed_runs import summary_of_values

from memplan.stats.changes import changes_between, only_in_one
from memplan.stats.gate import regressions


def by_figure(before, after):  # type: ignore[no-untyped-def]
    return {(one.class_name, one.figure, one.p): one for one in changes_between(before, after)}


def test_a_change_is_shown_where_the_intervals_are_apart() -> None:
    before, after = summary_of_values([100, 101, 102] * 200), summary_of_values([110, 111] * 300)
    one = by_figure(before, after)["all", "owned", 0.5]
    assert (one.before, one.after, one.difference) == (101, 110, 9)
    assert one.ratio == pytest.approx(9 / 101)
    assert one.shown == "more"
    assert one.low is not None and one.high is not None
    assert one.low <= 9 <= one.high
    back = by_figure(after, before)["all", "owned", 0.5]
    assert (back.difference, back.shown) == (-9, "less")
    assert (back.low, back.high) == (-one.high, -one.low)


def test_no_difference_is_shown_where_they_overlap_and_nothing_is_known_of_a_withheld_one() -> None:
    run = summary_of_values([100, 120, 140] * 100)
    found = by_figure(run, run)
    assert {one.shown for one in found.values() if one.p == 0.5} == {"not shown"}
    few = summary_of_values([100, 101])
    assert by_figure(run, few)["all", "owned", 0.95].shown == "unknown"


def test_a_peak_is_one_reading_each() -> None:
    run = summary_of_values([100] * 300, peak_bytes=1000)
    grown = dataclasses.replace(run, peak_bytes=1100)
    one = by_figure(run, grown)[None, "peak", None]
    assert (one.shown, one.difference, one.ratio) == ("one reading", 100, 0.1)


def test_classes_of_one_run_only_are_named() -> None:
    run, other = summary_of_values([1] * 10), summary_of_values([1] * 10, name="other")
    assert only_in_one(run, other) == ("all", "other")


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ([100] * 600, [100] * 600, "held"),
        ([100] * 600, [101] * 600, "held"),  # within the tolerance
        ([100] * 600, [104] * 600, "regressed"),
        ([104] * 600, [100] * 600, "held"),
        (list(range(100)), list(range(3, 103)), "unsure"),
        ([100] * 600, [104] * 3, "unknown"),
    ],
)
def test_memory_above_the_tolerance_is_a_regression(
    before: list[float], after: list[float], outcome: str
) -> None:
    found = regressions(summary_of_values(before), summary_of_values(after), tolerance_ratio=0.02)
    assert {one.outcome for one in found if one.change.figure == "owned"} == {outcome}


def test_a_class_that_vanished_cannot_be_told() -> None:
    run, other = summary_of_values([1] * 600), summary_of_values([1] * 600, name="other")
    found = regressions(run, other, tolerance_ratio=0.02)
    unknown = {one.change.class_name for one in found if one.outcome == "unknown"}
    assert unknown == {"all", "other"}
