"""A run and its baseline in, what a CI job must fail for: memory that grew by more than is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memplan.stats.changes import Change, changes_between, only_in_one
from memplan.stats.summary import RunSummary

Outcome = Literal["held", "regressed", "unsure", "unknown"]
"""unsure: it is beyond what is allowed, and the intervals allow that nothing changed."""
_FIGURES = ("owned", "process", "GPU owned", "GPU process")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    change: Change
    outcome: Outcome


def regressions(
    baseline: RunSummary, run: RunSummary, *, tolerance_ratio: float
) -> tuple[Regression, ...]:
    """Of the process's peaks, and of each class's memory at the highest percentile that both runs hold.

    A class that is in one of them only is unknown.
    """
    found: list[Regression] = []
    judged: dict[tuple[str, str], Change] = {}
    for change in changes_between(baseline, run):
        if change.class_name is None:
            if change.figure in ("peak", "GPU peak"):
                found.append(_of_reading(change, tolerance_ratio))
        elif change.figure in _FIGURES and (change.p or 0) > 0.5:
            key = (change.class_name, change.figure)
            if key not in judged or change.shown != "unknown":
                judged[key] = change
    found += [_judged(change, tolerance_ratio) for change in judged.values()]
    missing = (
        Change(
            class_name=name, figure="owned", p=None, unit="bytes", before=None, after=None,
            low=None, high=None, shown="unknown",
        )
        for name in only_in_one(baseline, run)
    )  # fmt: skip
    found += [Regression(change=one, outcome="unknown") for one in missing]
    return tuple(found)


def _judged(change: Change, tolerance_ratio: float) -> Regression:
    if change.ratio is None:
        return Regression(change=change, outcome="unknown")
    if change.ratio <= tolerance_ratio:
        return Regression(change=change, outcome="held")
    is_shown = change.shown == "more" or change.low is None
    return Regression(change=change, outcome="regressed" if is_shown else "unsure")


def _of_reading(change: Change, tolerance_ratio: float) -> Regression:
    if change.ratio is None:
        return Regression(change=change, outcome="unknown")
    grew = change.ratio > tolerance_ratio
    return Regression(change=change, outcome="regressed" if grew else "held")
