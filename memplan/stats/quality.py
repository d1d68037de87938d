"""How sure the figures of a Quality are: the same text, had it been another one of its kind.

Of the figures that are means over positions the interval is that of a block bootstrap, because
neighbouring positions share their context. Top-1 agreement is a count, and its interval Wilson's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from memplan.records import Quality

_Z = 1.959964
"""Of the normal distribution, two-sided 95 %."""
_RESAMPLES = 1000
_SEED = 20261125
TOP1_METHOD = "Wilson's interval; positions count as independent"
BLOCKS_METHOD = "block bootstrap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its two-sided 95 % bounds; None where nothing bounds it."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityFigures:
    """All against the reference."""

    top1_ratio: Estimate
    """Positions at which the most likely next token is the reference's."""
    kl_mean: Estimate
    """In nats."""
    perplexity_ratio: Estimate
    """1: as surprised by the text as the reference."""
    same_token_ratio: float | None
    """Tokens of the answers before the first that differs; None where nothing was continued."""
    block_tokens: int
    """Positions that the bootstrap drew together."""


def quality_figures(quality: Quality) -> QualityFigures:
    count = quality.tokens
    block = block_tokens_of(count)
    kl, lost = quality.kl_by_position, quality.lost_by_position
    kl_low, kl_high = mean_bounds(kl, block) if kl else (None, None)
    lost_low, lost_high = mean_bounds(lost, block) if lost else (None, None)
    low, high = wilson(quality.top1_same, count)
    asked = quality.answers * quality.answer_tokens
    return QualityFigures(
        top1_ratio=Estimate(value=quality.top1_same / count, low=low, high=high),
        kl_mean=Estimate(value=quality.kl_mean, low=kl_low, high=kl_high),
        perplexity_ratio=Estimate(
            value=quality.perplexity / quality.reference_perplexity,
            low=None if lost_low is None else math.exp(lost_low),
            high=None if lost_high is None else math.exp(lost_high),
        ),
        same_token_ratio=quality.same_tokens / asked if asked else None,
        block_tokens=block,
    )


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % bounds of a share (Wilson 1927, JASA 22:209); of 0 and of all hits too."""
    share, square = hits / count, _Z**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    low = 0.0 if hits == 0 else middle - half
    return low, 1.0 if hits == count else middle + half


def block_tokens_of(count: int) -> int:
    """The cube root: the order that is best for the variance of a mean (Hall, Horowitz and Jing 1995,
    Biometrika 82:561)."""
    return max(1, round(math.cbrt(count)))


def mean_bounds(values: Sequence[float], block: int) -> tuple[float, float]:
    """95 % bounds of the mean of a series: circular blocks, drawn by a generator with a fixed seed."""
    count = len(values)
    sums = list(accumulate([*values, *values[:block]], initial=0.0))
    whole, rest = divmod(count, block)
    draw = random.Random(_SEED)
    means = []
    for _ in range(_RESAMPLES):
        begins = draw.choices(range(count), k=whole)
        total = sum(sums[begin + block] - sums[begin] for begin in begins)
        if rest:
            begin = draw.randrange(count)
            total += sums[begin + rest] - sums[begin]
        means.append(total / count)
    means.sort()
    return means[round(0.025 * _RESAMPLES)], means[round(0.975 * _RESAMPLES) - 1]
