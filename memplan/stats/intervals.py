"""How far a quantile may be from the one it estimates: by ranks, by blocks of time, between replays.

Each answer is an interval of levels or of values; None is a side that the sample does not bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

TAIL = 0.025
"""Of a two-sided 95 % interval, each side."""

# Student's t, 97.5 %, for 1 to 10 degrees of freedom (any table); above, the expansion in 1/df of
# Abramowitz & Stegun 26.7.5, right to 0.001 from 10 on.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z = 1.959964


def student_t(df: int) -> float:
    """The 97.5 % point; ``df`` from 1."""
    if df <= len(_T):
        return _T[df - 1]
    z = _Z
    first = (z**3 + z) / (4 * df)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    return z + first + second


def order_ranks(n: int, p: float) -> tuple[int | None, int | None]:
    """Indices whose values bracket the p-quantile of ``n`` independent ordered values, each missing
    it with at most 2.5 %.

    The count of values at or below the quantile is Binomial(n, p) (David & Nagaraja, Order
    Statistics, 7.1).
    """
    log_p, log_q = math.log(p), math.log1p(-p)
    low: int | None = None
    high: int | None = None
    cumulative = 0.0
    for k in range(n):
        chosen = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        cumulative += math.exp(chosen + k * log_p + (n - k) * log_q)
        # P(count <= k) = P(X_(k+1) > quantile), with X_(k+1) at index k.
        if cumulative <= TAIL:
            low = k
        if high is None and cumulative >= 1 - TAIL:
            high = k
    return low, high


def block_levels(
    p: float, reached: Sequence[float], weights: Sequence[float], *, df: int
) -> tuple[float | None, float | None] | None:
    """The levels whose quantiles bound the p-quantile, where blocks are the independent units.

    Of each block: the weight at or below the estimate, and its whole weight. The estimate's own
    level is a ratio of two sums over blocks; its standard error is that of a ratio estimator, and
    the interval of the level is carried over to values (Woodruff 1952, JASA 47:635). None where
    ``df`` is below 1: then nothing is known of how blocks differ.
    """
    total = math.fsum(weights)
    count = len(weights)
    if df < 1 or count < 2 or total <= 0:
        return None
    level = math.fsum(reached) / total
    squares = math.fsum((a - level * w) ** 2 for a, w in zip(reached, weights, strict=True))
    half = student_t(df) * math.sqrt(squares * count / (count - 1)) / total
    low, high = p - half, p + half
    return (low if low > 0 else None, high if high < 1 else None)


def between_replays(value: float, per_replay: Sequence[float]) -> tuple[float, float]:
    """Student's t around the pooled ``value``, from what each of at least two replays gave alone.

    It is centred on the pooled value because a quantile of one replay is biased towards the middle
    (p99 of 600 s with requests of 40 s: by 3.9 %), and more replays do not average that away.
    """
    half = student_t(len(per_replay) - 1) * stdev(per_replay) / math.sqrt(len(per_replay))
    return value - half, value + half


def autocorrelation_s(series: Sequence[Sequence[float | None]], step_s: float) -> float:
    """Integrated autocorrelation time: a series this long holds one independent value.

    ``series`` are readings ``step_s`` apart, None where there was none; all share one mean. The sum
    ends at the first lag that exceeds 2.5 times the time found so far (Sokal 1997, section 3).
    """
    known = [value for one in series for value in one if value is not None]
    if len(known) < 2:
        return 0.0
    mean = fmean(known)
    moved = [[None if v is None else v - mean for v in one] for one in series]
    variance = fmean((v - mean) ** 2 for v in known)
    if variance <= 0:
        return 0.0
    time = 1.0
    for lag in range(1, max(len(one) for one in series)):
        products = [
            a * b
            for one in moved
            for a, b in zip(one, one[lag:], strict=False)
            if a is not None and b is not None
        ]
        if not products:
            break
        time += 2 * fmean(products) / variance
        if lag >= 2.5 * time:
            break
    return max(time, 0.0) * step_s
