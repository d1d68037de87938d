"""How many replicas a node holds over time, against brute force and known distributions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from builders import flight, recording, segment
from hypothesis import given
from hypothesis import strategies as st

from memplan.plan.node_memory import (
    BIN_S,
    BLOCK_S,
    held_out,
    most_replicas,
    overflow_of,
    path_of,
    upper_bound,
)

PATHS = st.lists(st.integers(1, 50), min_size=4, max_size=12).map(
    lambda values: np.array(values, dtype=float)
)


@given(PATHS, st.integers(10, 400), st.integers(0, 20))
def test_no_replica_more_fits_and_none_less_overflows(
    path: np.ndarray, usable: int, shared: int
) -> None:
    found = most_replicas(path, usable, shared, target=0.0)
    assert found.share == 0
    more = overflow_of(path, found.replicas + 1, usable, shared)
    assert more.share > 0
    # Never fewer than the sum of peaks, never more than the sum of means.
    room = usable - shared
    assert found.replicas >= (room // path.max() if room > 0 else 0)
    assert found.replicas == 0 or found.replicas * path.mean() <= room + 1e-6


def test_the_share_is_that_of_all_moments_together() -> None:
    """Two replicas on a path of 5: all 25 pairs of moments, counted."""
    path = np.array([1.0, 1, 1, 4, 9])
    pairs = [
        [path[(at + i) % 5] + path[(at + j) % 5] for at in range(5)]
        for i, j in product(range(5), repeat=2)
    ]
    exact = np.mean(np.array(pairs) > 9)
    found = np.mean([overflow_of(path, 2, 9, 0, seed=seed).share for seed in range(40)])
    assert found == pytest.approx(exact, abs=0.02)


def test_shared_weights_count_once() -> None:
    path = np.full(100, 10.0)
    assert most_replicas(path, 130, 30, target=0.0).replicas == 10
    assert most_replicas(path + 30, 130, 0, target=0.0).replicas == 3


def test_replicas_that_rarely_peak_fit_beyond_the_sum_of_their_peaks() -> None:
    rng = np.random.default_rng(1)
    path = np.where(rng.random(2000) < 0.05, 100.0, 20.0)
    found = most_replicas(path, 2000, 0, target=1e-3)
    assert 2000 // 100 < found.replicas < 2000 // 24
    assert found.share <= 1e-3


def test_a_node_too_small_for_one_holds_none() -> None:
    assert most_replicas(np.full(50, 100.0), 99, 0, target=0.1).replicas == 0
    assert most_replicas(np.zeros(0), 99, 0, target=0.1).replicas == 0
    assert most_replicas(np.full(50, 100.0), 50, 80, target=0.1).replicas == 0


@pytest.mark.parametrize(
    ("share", "blocks", "upper"), [(0.0, 300, 0.01), (0.0, 2, 1.0), (0.0, 0, 1.0), (1.0, 10, 1.0)]
)
def test_without_an_overflow_the_bound_is_the_rule_of_three(
    share: float, blocks: int, upper: float
) -> None:
    assert upper_bound(share, blocks) == pytest.approx(upper)


def test_the_bound_falls_with_more_blocks_and_lies_above_the_share() -> None:
    bounds = [upper_bound(0.02, blocks) for blocks in (10, 100, 1000, 100_000)]
    assert bounds == sorted(bounds, reverse=True)
    assert 0.02 < bounds[-1] < 0.022


def test_halves_that_differ_need_a_margin_and_like_ones_do_not() -> None:
    rng = np.random.default_rng(2)
    alike = rng.normal(100, 5, size=4000)
    found = held_out(alike, 5000, 0, target=1e-3)
    assert found is not None
    assert found.holds
    assert found.margin_ratio <= 0.05
    drifting = np.concatenate([alike[:2000], alike[2000:] * 1.12])
    other = held_out(drifting, 5000, 0, target=1e-3)
    assert other is not None
    assert other.margin_ratio > found.margin_ratio
    assert held_out(alike[: int(BLOCK_S / BIN_S)], 5000, 0, target=1e-3) is None


def test_a_path_is_the_peak_of_each_stretch_less_what_is_shared() -> None:
    made = recording(
        segments=(
            segment(start_s=0.0, end_s=0.2, peak={"host.hwm": 100}, in_flight=(flight(),)),
            segment(start_s=0.2, end_s=0.6, peak={"host.hwm": 300}, in_flight=(flight(),)),
            segment(start_s=0.6, end_s=1.0, peak={"host.hwm": 200}, in_flight=(flight(),)),
        )
    )
    assert path_of(made, 50).tolist() == [250, 250, 250, 150]
