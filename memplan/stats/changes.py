"""Two runs in, what changed between them: each figure, its interval, and whether it is beyond chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from memplan.stats.summary import ClassSummary, Percentiles, PlaceMemory, Quantile, RunSummary

Unit = Literal["bytes", "s"]
Shown = Literal["more", "less", "not shown", "one reading", "unknown"]
"""not shown: the intervals allow that nothing changed. one reading: each run has one, which does not
tell chance from change. unknown: one of the two is withheld."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure of both runs. Lower is better for all of them."""

    class_name: str | None
    """None: of the whole process."""
    figure: str
    """Such as ``owned`` or ``end to end``."""
    p: float | None
    """0..1; None for a peak or an idle figure, which is one reading."""
    unit: Unit
    before: float | None
    after: float | None
    low: float | None
    high: float | None
    """Of the difference, where both figures have 95 % bounds: the farthest that they allow."""
    shown: Shown

    @property
    def difference(self) -> float | None:
        if self.before is None or self.after is None:
            return None
        return self.after - self.before

    @property
    def ratio(self) -> float | None:
        """Of the difference over what was before."""
        return (
            self.difference / self.before if self.difference is not None and self.before else None
        )


def changes_between(before: RunSummary, after: RunSummary) -> tuple[Change, ...]:
    """The process first, then each class that both runs have, in the order of the first."""
    found = [
        _reading("idle", before.idle_bytes, after.idle_bytes),
        _reading("peak while loading", before.load_peak_bytes, after.load_peak_bytes),
        _reading("peak", before.peak_bytes, after.peak_bytes),
        _reading("GPU idle", before.gpu_idle_bytes, after.gpu_idle_bytes),
        _reading("GPU peak", before.gpu_peak_bytes, after.gpu_peak_bytes),
    ]
    theirs = {one.name: one for one in after.classes}
    for one in before.classes:
        if one.name in theirs:
            found += _of_class(one, theirs[one.name])
    return tuple(one for one in found if one.before is not None or one.after is not None)


def only_in_one(before: RunSummary, after: RunSummary) -> tuple[str, ...]:
    """Classes that the other run does not have."""
    ours, theirs = ({one.name for one in run.classes} for run in (before, after))
    return tuple(sorted(ours ^ theirs))


def _of_class(before: ClassSummary, after: ClassSummary) -> Iterator[Change]:
    for place, ours, theirs in (("", before.cpu, after.cpu), ("GPU ", before.gpu, after.gpu)):
        if ours is not None and theirs is not None:
            yield from _of_memory(before.name, place, ours, theirs)
    for name, pair in (
        ("first token", (before.ttft_s, after.ttft_s)),
        ("per output token", (before.tpot_s, after.tpot_s)),
        ("end to end", (before.e2e_s, after.e2e_s)),
    ):
        yield from _of_percentiles(before.name, name, "s", *pair)


def _of_memory(name: str, place: str, ours: PlaceMemory, theirs: PlaceMemory) -> Iterator[Change]:
    yield from _of_percentiles(name, f"{place}owned", "bytes", ours.attributed, theirs.attributed)
    yield from _of_percentiles(
        name, f"{place}process", "bytes", ours.co_resident, theirs.co_resident
    )


def _of_percentiles(
    name: str, figure: str, unit: Unit, ours: Percentiles, theirs: Percentiles
) -> Iterator[Change]:
    pairs = ((ours.p50, theirs.p50), (ours.p95, theirs.p95), (ours.p99, theirs.p99))
    for before, after in pairs:
        low, high = _bounds(before, after)
        yield Change(
            class_name=name,
            figure=figure,
            p=before.p,
            unit=unit,
            before=before.value,
            after=after.value,
            low=low,
            high=high,
            shown=_shown(before.value, after.value, low, high),
        )


def _bounds(before: Quantile, after: Quantile) -> tuple[float | None, float | None]:
    low = None if after.low is None or before.high is None else after.low - before.high
    high = None if after.high is None or before.low is None else after.high - before.low
    return low, high


def _shown(
    before: float | None, after: float | None, low: float | None, high: float | None
) -> Shown:
    if before is None or after is None:
        return "unknown"
    if low is not None and low > 0:
        return "more"
    if high is not None and high < 0:
        return "less"
    return "not shown"


def _reading(figure: str, before: int | None, after: int | None) -> Change:
    is_known = before is not None and after is not None
    return Change(
        class_name=None,
        figure=figure,
        p=None,
        unit="bytes",
        before=before,
        after=after,
        low=None,
        high=None,
        shown="one reading" if is_known else "unknown",
    )
