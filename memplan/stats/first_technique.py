"""What to turn on first: the technique that saves the most for what it costs, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memplan.stats.variants import BASE, Spread, VariantFigures

Verdict = Literal[
    "within",
    "saves_nothing",
    "carries_less",
    "too_slow",
    "latency_unknown",
    "quality_lost",
    "quality_unknown",
]
_LEAST_COST = 0.1
"""In shares of a tolerance. Without it, what saves a few bytes at no cost that could be measured would
come before what saves a thousand times as many for a hundredth of the latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What a technique may cost and still be recommended."""

    slower_ratio: float = 0.10
    """Of the decode step, of the time to the first token and of the whole batch, each."""
    perplexity_ratio: float = 0.01
    """Above the reference's."""
    top1_ratio: float = 0.95
    """Of positions at which the most likely token is the reference's: at least so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A variant held against the base."""

    figures: VariantFigures
    saved_bytes: float
    """Of the peak; negative where it grew."""
    slower_ratio: float | None
    """The largest of the three; negative where all are faster."""
    slower_in: str | None
    """Which of them that is."""
    cost: float | None
    """Shares of the tolerances that it takes, latency and perplexity added; None where unknown."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstTechnique:
    """The answer, with what it was chosen from."""

    base: VariantFigures
    tolerances: Tolerances
    first: Candidate | None
    """None: nothing saved memory within the tolerances."""
    larger_unknown: Candidate | None
    """It saves more than ``first``, and what it costs in quality was not measured."""
    candidates: tuple[Candidate, ...]
    """In the order of the variants, the higher steps of a stack left out: they are no first."""


def first_technique(
    figures: Sequence[VariantFigures], tolerances: Tolerances | None = None
) -> FirstTechnique | None:
    """None without a base whose peak is known, or without anything beside it."""
    limits = tolerances or Tolerances()
    base = next((one for one in figures if one.variant == BASE), None)
    others = [
        one
        for one in figures
        if one.variant != BASE and one.stack_step in (None, 1) and one.peak is not None
    ]
    if base is None or base.peak is None or not others:
        return None
    candidates = [_candidate(one, base, limits) for one in others]
    within = [one for one in candidates if one.verdict == "within"]
    first = max(within, key=_saved_per_cost, default=None)
    unknown = [
        one
        for one in candidates
        if one.verdict == "quality_unknown"
        and (first is None or one.saved_bytes > first.saved_bytes)
    ]
    return FirstTechnique(
        base=base,
        tolerances=limits,
        first=first,
        larger_unknown=max(unknown, key=lambda one: one.saved_bytes, default=None),
        candidates=tuple(candidates),
    )


def _saved_per_cost(one: Candidate) -> float:
    assert one.cost is not None
    return one.saved_bytes / max(one.cost, _LEAST_COST)


def _candidate(one: VariantFigures, base: VariantFigures, limits: Tolerances) -> Candidate:
    assert one.peak is not None and base.peak is not None
    slower_in, slower = _slower_ratio(one, base) or (None, None)
    return Candidate(
        figures=one,
        saved_bytes=base.peak.value - one.peak.value,
        slower_ratio=slower,
        slower_in=slower_in,
        cost=_cost(one, slower, limits),
        verdict=_verdict(one, base, slower, limits),
    )


def _verdict(
    one: VariantFigures, base: VariantFigures, slower: float | None, limits: Tolerances
) -> Verdict:
    assert one.peak is not None and base.peak is not None
    if not one.peak.is_below(base.peak):
        return "saves_nothing"
    if not one.carries(base):
        return "carries_less"
    if slower is None:
        return "latency_unknown"
    if slower > limits.slower_ratio:
        return "too_slow"
    if not one.has_own_numbers:
        return "within"
    if one.quality is None:
        return "quality_unknown"
    is_kept = (
        one.quality.perplexity_ratio.value <= 1 + limits.perplexity_ratio
        and one.quality.top1_ratio.value >= limits.top1_ratio
    )
    return "within" if is_kept else "quality_lost"


def _slower_ratio(one: VariantFigures, base: VariantFigures) -> tuple[str, float] | None:
    """None unless step, prompt and batch were timed, of both."""
    ratios = {
        "decode step": _ratio(one.decode, base.decode),
        "first token alone": _ratio(one.prompt, base.prompt),
        "whole batch": _ratio(one.batch, base.batch),
    }
    known = {name: ratio - 1 for name, ratio in ratios.items() if ratio is not None}
    if len(known) < len(ratios):
        return None
    return max(known.items(), key=lambda item: item[1])


def _ratio(mine: Spread | None, its: Spread | None) -> float | None:
    return mine.value / its.value if mine is not None and its is not None and its.value else None


def _cost(one: VariantFigures, slower: float | None, limits: Tolerances) -> float | None:
    if slower is None or (one.has_own_numbers and one.quality is None):
        return None
    cost = max(0.0, slower) / limits.slower_ratio
    if one.has_own_numbers and one.quality is not None:
        above = max(0.0, one.quality.perplexity_ratio.value - 1)
        cost += above / limits.perplexity_ratio
    return cost
