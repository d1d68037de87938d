"""Exact quantiles of observed values, with intervals, and a gate for what a sample cannot support.

Every quantile is a value that was observed (inverted CDF, no interpolation): the smallest x whose
cumulative weight reaches p (Hyndman & Fan 1996, definition 1).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from memplan.stats.summary import Percentiles, Quantile

LEVELS = (0.50, 0.95, 0.99)
_CONFIDENCE = 0.95
_RESAMPLES = 400
_FEWEST_BLOCKS = 8


def fewest_for(p: float) -> int:
    """How many independent values a quantile needs before it is printed: one expected beyond it."""
    return math.ceil(1 / (1 - p) - 1e-9) if p > 0.5 else 1


def of_values(values: Sequence[float], *, method: str) -> Percentiles:
    """Percentiles of independent values, one a request; 95 % intervals from order statistics.

    The interval is distribution-free (David & Nagaraja, Order Statistics, 7.1) and assumes that
    the values are independent; ``high`` is None where no order statistic bounds the quantile.
    """
    ordered = sorted(values)
    n = len(ordered)

    def quantile(p: float) -> Quantile:
        if n < fewest_for(p):
            return Quantile(p=p, value=None, low=None, high=None)
        low, high = _order_ranks(n, p)
        return Quantile(
            p=p,
            value=ordered[rank_of(n, p)],
            low=None if low is None else ordered[low],
            high=None if high is None else ordered[high],
        )

    p50, p95, p99 = (quantile(p) for p in LEVELS)
    peak = ordered[-1] if ordered else None
    return Percentiles(n=n, method=method, p50=p50, p95=p95, p99=p99, peak=peak)


def of_segments(
    values: Sequence[float],
    weights_s: Sequence[float],
    *,
    requests: int,
    block_s: float,
    method: str,
) -> Percentiles:
    """Time-weighted percentiles of segment peaks, in the order of time.

    Neighbouring segments are anything but independent, so ``requests`` decides what is withheld and
    the interval comes from resampling whole blocks of ``block_s`` (Künsch 1989), seeded. On short
    runs such an interval is too narrow; with fewer than 8 blocks none is given.
    """
    if not values:
        return of_values((), method=method)
    pairs = list(zip(values, weights_s, strict=True))
    blocks = _blocks(pairs, block_s)
    draws = _bootstrap(blocks) if len(blocks) >= _FEWEST_BLOCKS else None

    def quantile(index: int) -> Quantile:
        p = LEVELS[index]
        if requests < fewest_for(p):
            return Quantile(p=p, value=None, low=None, high=None)
        value = weighted_quantile(pairs, p)
        if draws is None:
            return Quantile(p=p, value=value, low=None, high=None)
        seen = sorted(draw[index] for draw in draws)
        tail = (1 - _CONFIDENCE) / 2
        low, high = seen[rank_of(len(seen), tail)], seen[rank_of(len(seen), 1 - tail)]
        return Quantile(p=p, value=value, low=min(low, value), high=max(high, value))

    p50, p95, p99 = (quantile(index) for index in range(len(LEVELS)))
    return Percentiles(n=requests, method=method, p50=p50, p95=p95, p99=p99, peak=max(values))


def weighted_quantile(pairs: Sequence[tuple[float, float]], p: float) -> float:
    """The smallest value whose cumulative weight reaches ``p`` of the whole."""
    return _weighted_quantiles(pairs, (p,))[0]


def _weighted_quantiles(
    pairs: Sequence[tuple[float, float]], levels: Sequence[float]
) -> tuple[float, ...]:
    """``levels`` ascending; one sort for all of them."""
    ordered = sorted(pairs)
    total = math.fsum(weight for _, weight in ordered)
    found: list[float] = []
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        while len(found) < len(levels) and reached >= levels[len(found)] * total * (1 - 1e-12):
            found.append(value)
    found += [ordered[-1][0]] * (len(levels) - len(found))
    return tuple(found)


def rank_of(n: int, p: float) -> int:
    """Index of the inverted-CDF p-quantile among n ordered values."""
    return max(0, math.ceil(n * p - 1e-9) - 1)


def _order_ranks(n: int, p: float) -> tuple[int | None, int | None]:
    """Indices whose values bracket the p-quantile, each missing it with at most 2.5 %.

    The count of values at or below the quantile is Binomial(n, p).
    """
    tail = (1 - _CONFIDENCE) / 2
    log_p, log_q = math.log(p), math.log1p(-p)
    low: int | None = None
    high: int | None = None
    cumulative = 0.0
    for k in range(n):
        chosen = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        cumulative += math.exp(chosen + k * log_p + (n - k) * log_q)
        # P(count <= k) = P(X_(k+1) > quantile), with X_(k+1) at index k.
        if cumulative <= tail:
            low = k
        if high is None and cumulative >= 1 - tail:
            high = k
    return low, high


def _blocks(
    pairs: Sequence[tuple[float, float]], block_s: float
) -> list[list[tuple[float, float]]]:
    blocks: list[list[tuple[float, float]]] = [[]]
    held_s = 0.0
    for pair in pairs:
        if blocks[-1] and held_s >= block_s:
            blocks.append([])
            held_s = 0.0
        blocks[-1].append(pair)
        held_s += pair[1]
    return blocks


def _bootstrap(blocks: list[list[tuple[float, float]]]) -> list[tuple[float, ...]]:
    """Quantiles at all levels of each resample. Blocks are sorted once and merged as histograms."""
    draw = random.Random(0)
    values = sorted({value for block in blocks for value, _ in block})
    index = {value: i for i, value in enumerate(values)}
    mass: list[dict[int, float]] = []
    for block in blocks:
        held: dict[int, float] = {}
        for value, weight in block:
            held[index[value]] = held.get(index[value], 0.0) + weight
        mass.append(held)
    results = []
    for _ in range(_RESAMPLES):
        total: dict[int, float] = {}
        for held in draw.choices(mass, k=len(mass)):
            for i, weight in held.items():
                total[i] = total.get(i, 0.0) + weight
        pairs = [(values[i], weight) for i, weight in total.items()]
        results.append(_weighted_quantiles(pairs, LEVELS))
    return results
