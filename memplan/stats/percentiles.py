"""Exact quantiles of observed values, with intervals, and a gate for what a sample cannot support.

Every quantile is a value that was observed (inverted CDF, no interpolation): the smallest x whose
cumulative weight reaches p (Hyndman & Fan 1996, definition 1). A request counts once however often
its trace was replayed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from memplan.stats.excursions import (
    Replay,
    Timed,
    block_s_of,
    block_weights,
    excursions_above,
    whole,
)
from memplan.stats.intervals import TAIL, between_replays, block_levels, order_ranks
from memplan.stats.summary import IntervalBasis, Percentiles, Quantile

LEVELS = (0.50, 0.95, 0.99)
FEWEST_EXCURSIONS = 10
"""Independent excursions beyond a p99 of the process's memory, before it is printed."""
_FEWEST_BLOCKS = 10
_FALLBACK = 0.95

Bounds = tuple[float | None, float | None]


def fewest_for(p: float) -> int:
    """How many requests a quantile needs before it is printed.

    Up to p95, which is what remains where p99 is withheld: one expected beyond it. Above: so many
    that the largest value bounds it, which n independent values fail to do with probability p^n.
    """
    if p <= 0.5:
        return 1
    if p <= _FALLBACK:
        return math.ceil(1 / (1 - p) - 1e-9)
    return math.ceil(math.log(TAIL) / math.log(p))


def of_values(values: Sequence[float], *, method: str) -> Percentiles:
    """Percentiles of independent values, one a request of one replay, by ranks alone."""
    points = tuple(Timed(0.0, 0.0, float(value), 1.0) for value in values)
    return of_requests((Replay(points=points),), method=method)


def of_requests(
    replays: Sequence[Replay], *, method: str, block_s: float | None = None
) -> Percentiles:
    """Percentiles of one value a request, each of weight 1.

    The interval is the widest of order statistics (distribution-free, true as far as requests are
    independent), of blocks of ``block_s`` where that is known, and of what replays gave.
    """
    spread = _pooled(replays)
    n = max((len(replay.points) for replay in replays), default=0)
    bounds: list[list[tuple[IntervalBasis, Bounds]]] = [
        [("ranks", _ranked(spread.values, n, p))] if n else [] for p in LEVELS
    ]
    if block_s is not None and n:
        for found, by_blocks in zip(bounds, _by_blocks(replays, spread, block_s), strict=True):
            if by_blocks is not None:
                found.append(("blocks", by_blocks))
    allowed = [n >= fewest_for(p) for p in LEVELS]
    return _percentiles(
        replays, spread, allowed, bounds, n=n, method=method, excursions=None, block_s=block_s
    )


def of_process(
    replays: Sequence[Replay],
    *,
    requests: int,
    stay_s: float,
    method: str,
    block_s: float | None = None,
) -> Percentiles:
    """Percentiles of what the whole process held, by the weight of each value.

    Neighbouring values are anything but independent, so blocks of the trace's time are the units of
    the interval, and a p99 needs ten independent excursions above it; ``requests`` (of one replay)
    decides the rest. ``stay_s`` is the longest time that a request was in flight. With fewer than
    ten blocks nothing is known about other traffic, and no interval is given.
    """
    if not any(replay.points for replay in replays):
        return of_values((), method=method)
    if block_s is None:
        block_s = block_s_of(replays, stay_s=stay_s)
    spread = _pooled(replays)
    above = [excursions_above(replays, spread.at(p), stay_s=stay_s) for p in LEVELS]
    by_blocks = _by_blocks(replays, spread, block_s, above)
    bounds: list[list[tuple[IntervalBasis, Bounds]]] = [
        [("blocks", one)] if one is not None else [] for one in by_blocks
    ]
    supported = requests >= fewest_for(_FALLBACK)
    allowed = [requests >= 1, supported, supported and above[2] >= FEWEST_EXCURSIONS]
    return _percentiles(
        replays,
        spread,
        allowed,
        bounds,
        n=requests,
        method=method,
        excursions=above[2],
        block_s=block_s,
    )


def weighted_quantile(pairs: Sequence[tuple[float, float]], p: float) -> float:
    """The smallest value whose cumulative weight reaches ``p`` of the whole."""
    return weighted_quantiles(pairs, [p])[0]


def weighted_quantiles(
    pairs: Sequence[tuple[float, float]], levels: Iterable[float]
) -> list[float]:
    """The same at each of ``levels``."""
    spread = _Spread.of(pairs)
    return [spread.at(p) for p in levels]


@dataclass(frozen=True, slots=True)
class _Spread:
    """Values in order, and the weight reached with each."""

    values: Sequence[float]
    reached: Sequence[float]

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> _Spread:
        ordered = sorted(pairs)
        return cls([value for value, _ in ordered], list(accumulate(w for _, w in ordered)))

    def at(self, p: float) -> float:
        wanted = p * self.reached[-1] * (1 - 1e-12)
        return self.values[min(bisect_left(self.reached, wanted), len(self.values) - 1)]


def _pooled(replays: Sequence[Replay]) -> _Spread:
    return _Spread.of((point.value, point.weight) for one in replays for point in one.points)


def rank_of(n: int, p: float) -> int:
    """Index of the inverted-CDF p-quantile among n ordered values."""
    return max(0, math.ceil(n * p - 1e-9) - 1)


def _ranked(pooled: Sequence[float], n: int, p: float) -> Bounds:
    """Of ``n`` requests, whose values are in ``pooled`` as often as the trace was replayed."""
    low, high = order_ranks(n, p)
    times = len(pooled) / n
    return (
        None if low is None else pooled[int(low * times)],
        None if high is None else pooled[min(len(pooled), math.ceil((high + 1) * times)) - 1],
    )


def _by_blocks(
    replays: Sequence[Replay],
    spread: _Spread,
    block_s: float,
    above: Sequence[int] | None = None,
) -> list[Bounds | None]:
    """For each level the values that bound it, or None where blocks are too few."""
    weights, reached = block_weights(replays, block_s, [spread.at(p) for p in LEVELS])
    if len(weights) < _FEWEST_BLOCKS:
        return [None] * len(LEVELS)
    found: list[Bounds | None] = []
    for at, p in enumerate(LEVELS):
        # In the tail a few blocks hold all there is to know; the rest are alike and add no freedom.
        units = len(weights) if above is None or p <= 0.5 else min(len(weights), above[at])
        levels = block_levels(p, reached[at], weights, df=units - 1)
        if levels is None:
            found.append(None)
        else:
            low, high = levels
            found.append(
                (None if low is None else spread.at(low), None if high is None else spread.at(high))
            )
    return found


def _percentiles(
    replays: Sequence[Replay],
    spread: _Spread,
    allowed: Sequence[bool],
    bounds: Sequence[Sequence[tuple[IntervalBasis, Bounds]]],
    *,
    n: int,
    method: str,
    excursions: int | None,
    block_s: float | None,
) -> Percentiles:
    """``bounds``: for each level the intervals found, by name; the widest on either side stands."""
    complete = whole(replays)
    alone = [_pooled([replay]) for replay in complete] if len(complete) > 1 else []

    def quantile(at: int) -> Quantile:
        p = LEVELS[at]
        if not allowed[at]:
            return Quantile(p=p, value=None, low=None, high=None)
        value = spread.at(p)
        between = between_replays(value, [one.at(p) for one in alone]) if alone else None
        if between is not None and spread.values[0] >= 0:
            between = max(0.0, between[0]), between[1]  # no bytes and no seconds below none
        found = list(bounds[at])
        if found and between is not None:
            found.append(("replays", between))
        low, high = _widest([one for _, one in found], value)
        return Quantile(
            p=p,
            value=value,
            low=low,
            high=high,
            basis=max(found, key=lambda one: _width(one[1]))[0] if found else None,
            replays_low=between[0] if between else None,
            replays_high=between[1] if between else None,
        )

    p50, p95, p99 = (quantile(at) for at in range(len(LEVELS)))
    return Percentiles(
        n=n,
        method=method,
        p50=p50,
        p95=p95,
        p99=p99,
        peak=spread.values[-1] if spread.values else None,
        excursions=excursions,
        replays=max(1, len(complete)),
        block_s=block_s,
    )


def _widest(found: Sequence[Bounds], value: float) -> Bounds:
    lows, highs = [low for low, _ in found], [high for _, high in found]
    low = min(x for x in (*lows, value) if x is not None) if lows and None not in lows else None
    high = max(x for x in (*highs, value) if x is not None) if highs and None not in highs else None
    return low, high


def _width(bounds: Bounds) -> float:
    low, high = bounds
    return math.inf if low is None or high is None else high - low
