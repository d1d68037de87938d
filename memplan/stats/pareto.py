"""Which variants no other one beats: in peak memory, in latency and in quality at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from memplan.stats.variants import Spread, VariantFigures

Pair = tuple[Spread, Spread]


def front_of(figures: Sequence[VariantFigures]) -> tuple[int, ...]:
    """Indices of the variants that none dominates; those without a peak are left out."""
    known = [at for at, one in enumerate(figures) if one.peak is not None]
    return tuple(at for at in known if not any(dominates(figures[by], figures[at]) for by in known))


def dominates(one: VariantFigures, other: VariantFigures) -> bool:
    """Better beyond the spread in at least one figure, worse beyond it in none, and better in their
    product: without the last, three variants could beat each other in a circle.

    Never where a figure is known of one alone, where quality cannot be told apart for want of a
    measurement, or where the one carries fewer requests or shorter ones.
    """
    pairs = list(_pairs(one, other))
    if not pairs or None in pairs or one.place != other.place or not one.carries(other):
        return False
    told = [pair for pair in pairs if pair is not None]
    is_better = any(mine.is_below(its) for mine, its in told)
    is_worse = any(its.is_below(mine) for mine, its in told)
    return is_better and not is_worse and _product(one) < _product(other)


def _pairs(one: VariantFigures, other: VariantFigures) -> Iterator[Pair | None]:
    """Smaller is better in all of them; None is a figure that cannot be compared."""
    for mine, its in (
        (one.peak, other.peak),
        (one.decode, other.decode),
        (one.prompt, other.prompt),
        (one.batch, other.batch),
    ):
        if mine is not None and its is not None:
            yield mine, its
        elif mine is not its:
            yield None
    if one.numbers == other.numbers:
        return
    surprise = _surprise(one), _surprise(other)
    yield None if surprise[0] is None or surprise[1] is None else (surprise[0], surprise[1])


def _surprise(one: VariantFigures) -> Spread | None:
    """Perplexity against the reference's."""
    if one.quality is None:
        return None
    ratio = one.quality.perplexity_ratio
    low = ratio.value if ratio.low is None else ratio.low
    high = ratio.value if ratio.high is None else ratio.high
    return Spread(value=ratio.value, low=low, high=high, n=one.quality_tokens or 0)


def _product(one: VariantFigures) -> float:
    """As a sum of logarithms. Variants are only compared where they have the same figures, so leaving
    out what is unknown changes no order between two of them."""
    known = [one.peak, one.decode, one.prompt, one.batch, _surprise(one)]
    return math.fsum(math.log(max(item.value, 1e-12)) for item in known if item is not None)
