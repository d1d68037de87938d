"""Quantiles as laws, and their intervals against distributions whose quantiles are known."""

import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memplan.stats.excursions import Replay, Timed
from memplan.stats.intervals import order_ranks
from memplan.stats.percentiles import (
    FEWEST_EXCURSIONS,
    LEVELS,
    fewest_for,
    of_process,
    of_requests,
    of_values,
    weighted_quantile,
)
from memplan.stats.summary import Percentiles, Quantile

# Whole numbers, so that adding a constant is exact.
values = st.lists(st.integers(-(2**40), 2**40).map(float), min_size=1, max_size=150)
many = st.lists(st.integers(0, 1000).map(float), min_size=368, max_size=400)
weighted = st.lists(
    st.tuples(st.integers(-1000, 1000).map(float), st.integers(1, 50)), min_size=1, max_size=30
)


def quantiles(made: Percentiles) -> tuple[Quantile, ...]:
    return (made.p50, made.p95, made.p99)


def plain(numbers: list[float]) -> Percentiles:
    return of_values(numbers, method="m")


def timed(
    pairs: list[tuple[float, float]],
    requests: int,
    stay_s: float,
    *,
    block_s: float | None = None,
    replays: int = 1,
) -> Percentiles:
    """The same pieces, one after the other, in every replay."""
    return of_process(
        (one_replay(pairs),) * replays,
        requests=requests,
        stay_s=stay_s,
        block_s=block_s,
        method="m",
    )


def one_replay(pairs: list[tuple[float, float]]) -> Replay:
    points, at_s = [], 0.0
    for value, weight in pairs:
        points.append(Timed(at_s, at_s + weight, value, weight))
        at_s += weight
    return Replay(points=tuple(points))


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


@given(st.integers(0, 450))
def test_a_quantile_is_withheld_exactly_below_its_fewest(n: int) -> None:
    made = plain([float(i) for i in range(n)])
    for quantile in quantiles(made):
        assert (quantile.value is None) == (n < fewest_for(quantile.p))
        assert quantile.value is not None or (quantile.low, quantile.high) == (None, None)


@pytest.mark.parametrize(
    ("p", "n"), [(0.5, 1), (0.2, 1), (0.9, 10), (0.95, 20), (0.99, 368), (0.999, 3688)]
)
def test_p95_needs_one_value_beyond_it_and_p99_both_its_bounds(p: float, n: int) -> None:
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
    assert order_ranks(fewest - 1, LEVELS[level])[1] is None
    assert quantiles(plain([float(i) for i in range(fewest)]))[level].high == fewest - 1


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
    pairs: list[tuple[float, int]], requests: int, stay_s: float
) -> None:
    made = timed([(v, float(w)) for v, w in pairs], requests, stay_s)
    assert made.n == requests
    assert made.peak == max(value for value, _ in pairs)
    assert made.excursions is not None
    assert (made.p50.value is None) == (requests < 1)
    assert (made.p95.value is None) == (requests < 20)
    has_p99 = requests >= 20 and made.excursions >= FEWEST_EXCURSIONS
    assert (made.p99.value is not None) == has_p99
    observed = {value for value, _ in pairs}
    for quantile in quantiles(made):
        if quantile.value is None:
            assert (quantile.low, quantile.high, quantile.basis) == (None, None, None)
        else:
            assert quantile.value == weighted_quantile(pairs, quantile.p)
            assert {quantile.low, quantile.high} <= {*observed, None}
            assert quantile.low is None or quantile.low <= quantile.value
            assert quantile.high is None or quantile.high >= quantile.value


def test_the_same_segments_give_the_same_interval() -> None:
    pairs = [(float(i % 17), 1.0) for i in range(100)]
    assert timed(pairs, 100, 2.0) == timed(pairs, 100, 2.0)


@pytest.mark.parametrize(("segments", "has_interval"), [(9, False), (10, True)])
def test_with_fewer_than_ten_blocks_no_interval_is_given(segments: int, has_interval: bool) -> None:
    made = timed([(float(i % 4), 1.0) for i in range(segments)], 100, 0.5, block_s=1.0)
    assert (made.p50.low is not None) == has_interval
    assert made.p50.basis == ("blocks" if has_interval else None)


def test_a_block_is_never_shorter_than_the_longest_stay() -> None:
    # A constant has no autocorrelation at all: only the stay is left. 16 s hold six blocks of 2.5 s.
    constant = [(7.0, 1.0)] * 16
    assert (timed(constant, 100, 2.5).block_s, timed(constant, 100, 2.5).p50.low) == (2.5, None)
    assert timed(constant, 100, 1.5).p50.low == 7.0


def test_a_block_is_five_autocorrelation_times_long() -> None:
    # Levels that last 10 s and have nothing to do with each other: integrated time 10 s.
    chance = random.Random(5)
    pairs = [(chance.random(), 10.0) for _ in range(400)]
    block_s = timed(pairs, 100, 1.0).block_s
    assert block_s is not None and 35 < block_s < 70


def test_segments_that_took_no_time_at_all_are_no_fault() -> None:
    made = timed([(5.0, 0.0)] * 20, 100, 0.0)
    assert (made.p50.value, made.peak) == (5.0, 5.0)


def test_no_segment_gives_no_figure() -> None:
    made = timed([], 0, 1.0)
    assert (made.n, made.peak, made.p50.value) == (0, None, None)


def test_dependence_widens_the_interval() -> None:
    """The same values in long runs of equal ones say less than shuffled ones."""
    runs = [(float(block), 1.0) for block in range(40) for _ in range(40)]
    shuffled = list(runs)
    random.Random(1).shuffle(shuffled)
    dependent = timed(runs, 400, 1.0, block_s=40.0).p50
    independent = timed(shuffled, 400, 1.0, block_s=1.0).p50
    assert dependent.value == independent.value
    assert dependent.low is not None and dependent.high is not None
    assert independent.low is not None and independent.high is not None
    assert dependent.high - dependent.low > 3 * (independent.high - independent.low)


def spiky(spikes: int, every_s: float) -> list[tuple[float, float]]:
    """1.2 % of the time above everything else, in so many spikes."""
    calm_s = every_s * 0.988
    return [pair for i in range(spikes) for pair in ((i % 7, calm_s), (90.0 + i, 0.012 * every_s))]


@pytest.mark.parametrize(("spikes", "seen"), [(9, False), (14, True)])
def test_a_p99_needs_ten_independent_excursions_above_it(spikes: int, seen: bool) -> None:
    made = timed(spiky(spikes, 100.0), 500, stay_s=20.0)
    # The p99 is one of the spikes itself: those below it are no excursions.
    assert made.excursions == pytest.approx(spikes * 0.82, abs=1.5)
    assert (made.p99.value is not None) == seen
    assert made.p95.value is not None


def test_excursions_within_one_stay_are_one() -> None:
    assert timed(spiky(14, 100.0), 500, stay_s=1000.0).excursions == 1


def test_a_piece_without_weight_is_no_excursion() -> None:
    steps = [(float(i % 3), 1.0) for i in range(300)]
    at_step_back = [(v, 0.0 if v == 2.0 else w) for v, w in steps]
    assert timed(at_step_back, 500, 0.1).excursions == 0


# --- replays ---------------------------------------------------------------------------------


def test_a_trace_that_was_replayed_again_is_no_new_traffic() -> None:
    chance = random.Random(2)
    pairs = [(chance.random(), 1.0) for _ in range(2000)]
    once, often = timed(pairs, 500, 1.0), timed(pairs, 500, 1.0, replays=5)
    assert (once.replays, often.replays) == (1, 5)
    assert once.excursions == often.excursions
    for one, five in zip(quantiles(once), quantiles(often), strict=True):
        assert (one.value, one.low, one.high) == (five.value, five.low, five.high)


@given(st.lists(st.integers(0, 1000).map(float), min_size=20, max_size=400))
def test_values_that_every_replay_repeats_are_no_new_requests(numbers: list[float]) -> None:
    replay = Replay(points=tuple(Timed(i, i, v, 1.0) for i, v in enumerate(numbers)))
    once = of_requests((replay,), method="m")
    often = of_requests((replay,) * 3, method="m")
    assert (once.n, often.n) == (len(numbers), len(numbers))
    for one, three in zip(quantiles(once), quantiles(often), strict=True):
        assert (one.value, one.low, one.high) == (three.value, three.low, three.high)


def moved_replays(*offsets: float) -> tuple[Replay, ...]:
    chance = random.Random(3)
    values = [100 + chance.random() for _ in range(400)]
    return tuple(one_replay([(v + offset, 1.0) for v in values]) for offset in offsets)


def test_replays_that_differ_more_than_blocks_widen_the_interval() -> None:
    made = of_process(
        moved_replays(0.0, 30.0, 60.0), requests=500, stay_s=1.0, block_s=10.0, method="m"
    )
    assert made.p50.basis == "replays"
    assert (made.p50.low, made.p50.high) == (made.p50.replays_low, made.p50.replays_high)
    # Student's t with 2 degrees of freedom: 4.303 × 30 / √3 to either side.
    assert made.p50.high is not None and made.p50.value is not None
    assert made.p50.high - made.p50.value == pytest.approx(4.303 * 30 / 3**0.5, rel=1e-3)


def test_replays_that_differ_more_than_their_value_give_no_bytes_below_none() -> None:
    replays = tuple(one_replay([(value, 1.0)] * 400) for value in (0.0, 1.0, 50.0))
    made = of_process(replays, requests=500, stay_s=1.0, block_s=10.0, method="m")
    assert (made.p50.value, made.p50.replays_low) == (1.0, 0.0)


def test_a_replay_that_was_cut_off_tells_nothing_of_how_replays_differ() -> None:
    whole, moved = moved_replays(0.0, 50.0)
    cut = Replay(points=moved.points[:40], is_whole=False)
    made = of_process((whole, cut), requests=500, stay_s=1.0, block_s=10.0, method="m")
    assert (made.replays, made.p50.replays_low) == (1, None)
    assert made.peak == max(point.value for point in moved.points[:40] + whole.points)


def test_without_blocks_the_replays_are_told_and_are_not_called_an_interval() -> None:
    made = of_process(
        moved_replays(0.0, 1.0, 2.0), requests=500, stay_s=300.0, block_s=300.0, method="m"
    )
    assert (made.p95.low, made.p95.high, made.p95.basis) == (None, None, None)
    assert made.p95.replays_low is not None and made.p95.replays_high is not None


# --- coverage --------------------------------------------------------------------------------


def ar1(chance: random.Random, n: int, keep: float, offset: float) -> list[float]:
    """Standard normal values, each alike to the one before by ``keep``."""
    found, value = [], chance.gauss(0, 1)
    for _ in range(n):
        value = keep * value + math.sqrt(1 - keep**2) * chance.gauss(0, 1)
        found.append(value + offset)
    return found


@pytest.mark.parametrize(("keep", "replays"), [(0.0, 1), (0.8, 1), (0.8, 3)])
def test_blocks_hold_the_true_quantile_of_alike_neighbours_as_often_as_claimed(
    keep: float, replays: int
) -> None:
    truth = statistics.NormalDist().inv_cdf(0.95)
    chance = random.Random(7)
    covered = 0
    for _ in range(100):
        # One trace, and what replays of it add: a little of their own.
        traffic = ar1(chance, 1200, keep, 0.0)
        runs = [[v + chance.gauss(0, 0.02) for v in traffic] for _ in range(replays)]
        made = of_process(
            [one_replay([(v, 1.0) for v in run]) for run in runs],
            requests=500,
            stay_s=1.0,
            method="m",
        )
        low, high = made.p95.low, made.p95.high
        assert low is not None and high is not None
        covered += low <= truth <= high
    # 95 claimed; of 100 studies 88 or fewer would happen to it in one case of 200.
    assert covered >= 89
