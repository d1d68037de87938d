"""Quantiles as laws, and their intervals against distributions whose quantiles are known."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memplan.stats.percentiles import (
    LEVELS,
    fewest_for,
    of_segments,
    of_values,
    weighted_quantile,
)
from memplan.stats.summary import Percentiles, Quantile

# Whole numbers, so that adding a constant is exact.
values = st.lists(st.integers(-(2**40), 2**40).map(float), min_size=1, max_size=150)
many = st.lists(st.integers(0, 1000).map(float), min_size=100, max_size=160)
weighted = st.lists(
    st.tuples(st.integers(-1000, 1000).map(float), st.integers(1, 50)), min_size=1, max_size=30
)


def quantiles(made: Percentiles) -> tuple[Quantile, ...]:
    return (made.p50, made.p95, made.p99)


def plain(numbers: list[float]) -> Percentiles:
    return of_values(numbers, method="m")


def timed(pairs: list[tuple[float, float]], requests: int, block_s: float) -> Percentiles:
    return of_segments(
        [value for value, _ in pairs],
        [weight for _, weight in pairs],
        requests=requests,
        block_s=block_s,
        method="m",
    )


@given(values)
def test_a_quantile_is_a_value_that_was_observed(numbers: list[float]) -> None:
    made = plain(numbers)
    assert made.n == len(numbers)
    assert made.peak == max(numbers)
    for quantile in quantiles(made):
        for figure in (quantile.value, quantile.low, quantile.high):
            assert figure is None or figure in numbers


@given(many)
def test_higher_levels_never_have_lower_quantiles(numbers: list[float]) -> None:
    made = plain(numbers)
    told = [quantile.value for quantile in quantiles(made) if quantile.value is not None]
    assert len(told) == 3
    assert told == sorted(told)
    assert made.peak is not None and told[-1] <= made.peak


@given(many)
def test_at_least_p_of_the_values_are_at_or_below_the_quantile_and_not_below(
    numbers: list[float],
) -> None:
    for quantile in quantiles(plain(numbers)):
        assert quantile.value is not None
        at_or_below = sum(number <= quantile.value for number in numbers)
        below = sum(number < quantile.value for number in numbers)
        assert at_or_below >= quantile.p * len(numbers) - 1e-6
        assert below < quantile.p * len(numbers)


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_values_is_of_no_meaning(numbers: list[float], chance: random.Random) -> None:
    shuffled = list(numbers)
    chance.shuffle(shuffled)
    assert plain(shuffled) == plain(numbers)


@given(values, st.integers(-(2**40), 2**40))
def test_adding_a_constant_moves_every_figure_by_it(numbers: list[float], constant: int) -> None:
    before, after = plain(numbers), plain([number + constant for number in numbers])
    for old, new in zip(quantiles(before), quantiles(after), strict=True):
        for a, b in ((old.value, new.value), (old.low, new.low), (old.high, new.high)):
            assert (a is None and b is None) or (a is not None and b == a + constant)


@given(values)
def test_the_interval_holds_its_value(numbers: list[float]) -> None:
    for quantile in quantiles(plain(numbers)):
        if quantile.value is not None:
            assert quantile.low is None or quantile.low <= quantile.value
            assert quantile.high is None or quantile.value <= quantile.high


@given(st.integers(0, 150))
def test_a_quantile_is_withheld_exactly_below_its_fewest(n: int) -> None:
    made = plain([float(i) for i in range(n)])
    for quantile in quantiles(made):
        assert (quantile.value is None) == (n < fewest_for(quantile.p))
        assert quantile.value is not None or (quantile.low, quantile.high) == (None, None)


@pytest.mark.parametrize(
    ("p", "n"), [(0.5, 1), (0.2, 1), (0.9, 10), (0.95, 20), (0.99, 100), (0.999, 1000)]
)
def test_one_value_is_expected_beyond_the_quantile(p: float, n: int) -> None:
    assert fewest_for(p) == n


def test_nothing_gives_nothing() -> None:
    made = plain([])
    assert (made.n, made.peak) == (0, None)
    assert all(quantile.value is None for quantile in quantiles(made))


def test_the_median_of_a_hundred_lies_between_the_40th_and_the_61st() -> None:
    # The published 95 % ranks of a sample of 100.
    median = plain([float(i) for i in range(1, 101)]).p50
    assert (median.low, median.value, median.high) == (40.0, 50.0, 61.0)


@pytest.mark.parametrize(("level", "fewest"), [(1, 72), (2, 368)])
def test_an_upper_bound_needs_enough_values_to_hold_one(level: int, fewest: int) -> None:
    # The largest of n values is below the p-quantile with probability p^n.
    assert LEVELS[level] ** fewest <= 0.025 < LEVELS[level] ** (fewest - 1)
    few = quantiles(plain([float(i) for i in range(fewest - 1)]))[level]
    enough = quantiles(plain([float(i) for i in range(fewest)]))[level]
    assert (few.high, enough.high) == (None, fewest - 1)


@pytest.mark.parametrize("n", [30, 130, 400])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda chance: chance.random(), lambda p: p),
        (lambda chance: chance.expovariate(1.0), lambda p: -math.log(1 - p)),
        (lambda chance: chance.paretovariate(1.1), lambda p: (1 - p) ** (-1 / 1.1)),
    ],
    ids=["uniform", "exponential", "heavy tail"],
)
def test_the_interval_covers_the_true_quantile_as_often_as_it_says(
    draw: Callable[[random.Random], float], truth: Callable[[float], float], n: int
) -> None:
    chance = random.Random(n)
    draws = [quantiles(plain([draw(chance) for _ in range(n)])) for _ in range(300)]
    for told in zip(*draws, strict=True):
        known = truth(told[0].p)
        covered = sum(
            (q.low is None or q.low <= known) and (q.high is None or known <= q.high) for q in told
        )
        assert covered / len(told) >= 0.93


# --- weighted by time ------------------------------------------------------------------------


@given(values, st.sampled_from([0.1, 1.0, 3.7]), st.sampled_from(LEVELS))
def test_equal_weights_change_nothing(numbers: list[float], weight: float, p: float) -> None:
    assume(len(numbers) >= fewest_for(p))
    unweighted = {q.p: q.value for q in quantiles(plain(numbers))}[p]
    assert weighted_quantile([(number, weight) for number in numbers], p) == unweighted


@given(weighted, st.sampled_from(LEVELS))
def test_a_weight_of_k_is_the_value_k_times(pairs: list[tuple[float, int]], p: float) -> None:
    repeated = [(value, 1.0) for value, weight in pairs for _ in range(weight)]
    assert weighted_quantile(pairs, p) == weighted_quantile(repeated, p)


@given(weighted, st.sampled_from([0.001, 2.0, 1000.0]))
def test_the_unit_of_time_is_of_no_meaning(pairs: list[tuple[float, int]], unit: float) -> None:
    scaled = [(value, weight * unit) for value, weight in pairs]
    assert weighted_quantile(pairs, 0.5) == weighted_quantile(scaled, 0.5)


@given(weighted, st.integers(0, 120), st.sampled_from([0.0, 1.0, 25.0]))
def test_time_weighted_figures_are_observed_withheld_and_bracketed(
    pairs: list[tuple[float, int]], requests: int, block_s: float
) -> None:
    made = timed([(v, float(w)) for v, w in pairs], requests, block_s)
    assert made.n == requests
    assert made.peak == max(value for value, _ in pairs)
    observed = {value for value, _ in pairs}
    for quantile in quantiles(made):
        assert (quantile.value is None) == (requests < fewest_for(quantile.p))
        if quantile.value is None:
            assert (quantile.low, quantile.high) == (None, None)
        else:
            assert quantile.value == weighted_quantile(pairs, quantile.p)
            assert {quantile.low, quantile.high} <= {*observed, None}
            assert quantile.low is None or quantile.low <= quantile.value
            assert quantile.high is None or quantile.high >= quantile.value


def test_the_same_segments_give_the_same_interval() -> None:
    pairs = [(float(i % 17), 1.0) for i in range(100)]
    assert timed(pairs, 100, 2.0) == timed(pairs, 100, 2.0)


@pytest.mark.parametrize("block_s", [0.0, 1.0])
@pytest.mark.parametrize(("segments", "has_interval"), [(7, False), (8, True)])
def test_with_fewer_than_eight_blocks_no_interval_is_given(
    segments: int, has_interval: bool, block_s: float
) -> None:
    made = timed([(float(i), 1.0) for i in range(segments)], 100, block_s)
    assert (made.p50.low is not None) == has_interval
    assert (made.p99.high is not None) == has_interval


def test_a_block_is_never_shorter_than_the_longest_stay() -> None:
    # 16 segments of 1 s in blocks of 2.5 s: five whole blocks of 3 s and one rest.
    assert timed([(float(i), 1.0) for i in range(16)], 100, 2.5).p50.low is None
    assert timed([(float(i), 1.0) for i in range(16)], 100, 1.5).p50.low is not None


def test_segments_that_took_no_time_at_all_are_no_fault() -> None:
    made = timed([(5.0, 0.0)] * 20, 100, 0.0)
    assert (made.p50.value, made.peak) == (5.0, 5.0)


def test_no_segment_gives_no_figure() -> None:
    made = timed([], 0, 1.0)
    assert (made.n, made.peak, made.p50.value) == (0, None, None)


def test_dependence_widens_the_interval() -> None:
    """The same values in long runs of equal ones say less than shuffled ones."""
    runs = [(float(block), 1.0) for block in range(10) for _ in range(40)]
    shuffled = list(runs)
    random.Random(1).shuffle(shuffled)
    dependent, independent = timed(runs, 400, 40.0).p50, timed(shuffled, 400, 1.0).p50
    assert dependent.value == independent.value
    assert dependent.low is not None and dependent.high is not None
    assert independent.low is not None and independent.high is not None
    assert dependent.high - dependent.low > independent.high - independent.low
