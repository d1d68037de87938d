"""Intervals of quality figures against values worked out elsewhere, and the finding they lead to."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from builders import quality, recording

from memplan.stats.findings.quality import RULES
from memplan.stats.quality import block_tokens_of, mean_bounds, quality_figures, wilson
from memplan.stats.summarise import summarise

(quality_lost,) = RULES


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_published_one(
    hits: int, count: int, low: float, high: float
) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_all_hits_are_bounded_below_and_reach_one() -> None:
    low, high = wilson(1000, 1000)
    assert high == 1.0
    assert low == pytest.approx(1000 / (1000 + 1.959964**2))


def test_a_series_without_a_difference_has_an_interval_without_width() -> None:
    assert mean_bounds([0.0] * 50, 4) == (0.0, 0.0)


def test_blocks_bound_the_mean_of_a_series_with_memory_in_most_of_many_draws() -> None:
    draw = random.Random(3)
    held = 0
    for _ in range(40):
        values = [draw.gauss(0, 1)]
        for _ in range(499):
            values.append(0.5 * values[-1] + draw.gauss(0, 1))
        low, high = mean_bounds(values, 15)
        held += low <= 0 <= high
    assert 32 <= held <= 40


def test_independent_positions_give_the_interval_of_the_normal_approximation() -> None:
    draw = random.Random(5)
    values = [draw.gauss(2, 1) for _ in range(2000)]
    low, high = mean_bounds(values, 1)
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.08)
    assert low < sum(values) / len(values) < high


def test_the_same_positions_give_the_same_interval() -> None:
    values = [1.0, 3.0, 2.0, 8.0, 0.0] * 20
    assert mean_bounds(values, 5) == mean_bounds(values, 5)


@pytest.mark.parametrize(("count", "block"), [(1, 1), (8, 2), (1000, 10), (2046, 13)])
def test_a_block_is_the_cube_root(count: int, block: int) -> None:
    assert block_tokens_of(count) == block


def test_figures_are_ratios_against_the_reference() -> None:
    lost = (0.1, -0.1, 0.3, 0.1)
    made = quality(
        tokens=4,
        top1_same=3,
        perplexity=10 * math.exp(0.1),
        reference_perplexity=10.0,
        kl_mean=0.02,
        kl_by_position=(0.02, 0.02, 0.02, 0.02),
        lost_by_position=lost,
    )
    figures = quality_figures(made)
    assert figures.top1_ratio.value == 0.75
    assert figures.kl_mean.value == 0.02
    assert (figures.kl_mean.low, figures.kl_mean.high) == pytest.approx((0.02, 0.02))
    assert figures.perplexity_ratio.value == pytest.approx(math.exp(sum(lost) / 4))
    assert figures.perplexity_ratio.low is not None
    assert figures.perplexity_ratio.low < figures.perplexity_ratio.value
    assert figures.same_token_ratio == 200 / 256


def test_without_positions_means_have_no_bounds() -> None:
    figures = quality_figures(quality(kl_by_position=(), lost_by_position=(), answers=0))
    assert figures.kl_mean.low is None
    assert figures.perplexity_ratio.high is None
    assert figures.same_token_ratio is None


@pytest.mark.parametrize(
    "changes", [{"top1_same": 899}, {"perplexity": 10.51, "reference_perplexity": 10.0}]
)
def test_a_variant_that_answers_otherwise_is_found(changes: dict[str, float]) -> None:
    made = quality(tokens=1000, **changes)
    (finding,) = quality_lost(recording(quality=made))
    assert finding.code == "quality_lost"


@pytest.mark.parametrize(
    "changes", [{"top1_same": 900}, {"perplexity": 10.49, "reference_perplexity": 10.0}]
)
def test_a_variant_that_answers_nearly_alike_is_not(changes: dict[str, float]) -> None:
    assert not list(quality_lost(recording(quality=quality(tokens=1000, **changes))))


def test_a_run_without_quality_claims_nothing() -> None:
    summary = summarise(recording())
    assert summary.quality is None
    assert summary.quality_figures is None
    assert not list(quality_lost(recording()))


def test_a_summary_holds_the_figures() -> None:
    made = quality()
    summary = summarise(replace(recording(), quality=made))
    assert summary.quality is made
    assert summary.quality_figures == quality_figures(made)
