"""States in flight and the distance between two histories, against sums and areas done the long way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.in_flight import at_times, quantiles_of, states_of, wasserstein
from memplan.life import Life

TENTHS = st.integers(0, 400).map(lambda one: one / 8)


@st.composite
def lives(draw: st.DrawFn) -> Life:
    start_s, prefill_s, decode_s = draw(TENTHS), draw(TENTHS), draw(TENTHS)
    return Life(
        start_s=start_s,
        prefill_s=prefill_s,
        end_s=start_s + prefill_s + decode_s,
        input_tokens=draw(st.integers(0, 5000)),
        output_tokens=draw(st.integers(0, 500)),
    )


def one_at(life: Life, t_s: float) -> tuple[int, float]:
    if not life.start_s <= t_s < life.end_s:
        return 0, 0.0
    first_s = life.start_s + life.prefill_s
    grown = 0.0
    if t_s > first_s:
        grown = life.output_tokens * (t_s - first_s) / (life.end_s - first_s)
    return 1, life.input_tokens + grown


@given(st.lists(lives(), min_size=1, max_size=12), st.lists(TENTHS, min_size=1, max_size=12))
def test_what_is_in_flight_is_the_sum_of_what_each_life_holds(
    some: list[Life], times_s: list[float]
) -> None:
    running, kv_tokens = at_times(some, np.array(times_s))
    for at, t_s in enumerate(times_s):
        each = [one_at(life, t_s) for life in some]
        assert running[at] == sum(count for count, _ in each)
        assert kv_tokens[at] == pytest.approx(sum(tokens for _, tokens in each), abs=0.01)


VALUES = st.lists(st.integers(0, 50), min_size=1, max_size=30)


@given(VALUES, VALUES)
def test_the_distance_is_the_mean_gap_between_equal_ranks(a: list[int], b: list[int]) -> None:
    many = len(a) * len(b)
    ranks_a, ranks_b = sorted(a * (many // len(a))), sorted(b * (many // len(b)))
    expected = sum(abs(x - y) for x, y in zip(ranks_a, ranks_b, strict=True)) / many
    found = wasserstein(
        np.array(a, float), np.ones(len(a)), np.array(b, float), np.full(len(b), 7.0)
    )
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_state_counts_by_the_time_that_it_lasted() -> None:
    values, lasted_s = np.array([5.0, 1.0, 9.0]), np.array([1.0, 8.0, 1.0])
    assert quantiles_of(values, lasted_s, [0.5, 0.85, 0.95, 1.0]) == (1.0, 5.0, 9.0, 9.0)


def test_a_span_is_read_evenly_between_its_ends() -> None:
    life = Life(start_s=10.0, prefill_s=0.0, end_s=15.0, input_tokens=100, output_tokens=0)
    states = states_of([life], 10.0, 20.0)
    assert states.running.mean() == pytest.approx(0.5)
    assert states.kv_tokens.max() == 100
    assert states.lasted_s.sum() == pytest.approx(10.0)
