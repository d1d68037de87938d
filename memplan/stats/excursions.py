"""Values with their times, by replay of one trace: what of them can be called independent.

Every replay of a trace carries the same traffic, so a second replay adds knowledge about the machine
and none about traffic. Places are therefore times of the *trace*: the same block of all replays is
one unit, and excursions are counted within a replay.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import NamedTuple

from memplan.stats.intervals import autocorrelation_s

_GRID = 1024
"""Readings of a replay from which its autocorrelation is estimated."""


class Timed(NamedTuple):
    """A value that held from ``start_s`` to ``end_s`` of its replay, or a request's value."""

    start_s: float
    end_s: float
    value: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What one replay of the trace gave."""

    points: tuple[Timed, ...]
    """In the order of time."""
    is_whole: bool = True
    """Every request of the trace was sent in it."""


def whole(replays: Sequence[Replay]) -> list[Replay]:
    """Those that hold the whole trace; all of them where none does."""
    return [one for one in replays if one.is_whole and one.points] or [
        one for one in replays if one.points
    ]


def excursions_above(replays: Sequence[Replay], limit: float, *, stay_s: float) -> int:
    """How often one replay of the trace went above ``limit`` independently: the median replay's count.

    Two values above it that lie no further apart than ``stay_s``, the longest time that a request
    was in flight, may owe it to the same request and count once.
    """
    counts = []
    for replay in whole(replays):
        count, last_s = 0, -math.inf
        for point in replay.points:
            if point.value > limit and point.weight > 0:
                count += point.start_s - last_s > stay_s
                last_s = max(last_s, point.end_s)
        counts.append(count)
    return median_low(counts) if counts else 0


def block_s_of(replays: Sequence[Replay], *, stay_s: float) -> float:
    """How long a block must be, so that its neighbours say nothing new about it.

    Five times the integrated autocorrelation time, or the longest stay where that is longer.
    """
    begin_s, end_s = _span_s(replays)
    step_s = (end_s - begin_s) / _GRID
    if step_s <= 0:
        return stay_s
    grid = [begin_s + (at + 0.5) * step_s for at in range(_GRID)]
    series = [_readings(replay.points, grid) for replay in replays if replay.points]
    return max(5 * autocorrelation_s(series, step_s), stay_s)


def block_weights(
    replays: Sequence[Replay], block_s: float, limits: Sequence[float]
) -> tuple[list[float], list[list[float]]]:
    """The weight in each block of the trace's time, and of it the weight at or below each limit.

    As many equal blocks as are at least ``block_s`` long; none at all below one.
    """
    begin_s, end_s = _span_s(replays)
    count = int((end_s - begin_s) / block_s) if block_s > 0 else 0
    weights = [0.0] * count
    reached = [[0.0] * count for _ in limits]
    if not count:
        return weights, reached
    per_s = count / (end_s - begin_s)
    for replay in replays:
        for point in replay.points:
            # By its middle: a piece is far shorter than a block.
            at = int(((point.start_s + point.end_s) / 2 - begin_s) * per_s)
            at = min(max(at, 0), count - 1)
            weights[at] += point.weight
            for below, limit in zip(reached, limits, strict=True):
                if point.value <= limit:
                    below[at] += point.weight
    return weights, reached


def _span_s(replays: Sequence[Replay]) -> tuple[float, float]:
    points = [point for replay in replays for point in replay.points]
    return (
        min((point.start_s for point in points), default=0.0),
        max((point.end_s for point in points), default=0.0),
    )


def _readings(points: Sequence[Timed], grid: Sequence[float]) -> list[float | None]:
    starts = [point.start_s for point in points]
    found: list[float | None] = []
    for at_s in grid:
        at = bisect_right(starts, at_s) - 1
        held = at >= 0 and points[at].end_s >= at_s
        found.append(points[at].value if held else None)
    return found
