"""A fitted law of memory against the law that made the memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from memplan.plan.memory_model import (
    FEATURES,
    FEWEST,
    Observation,
    conformal_bound,
    fit_memory,
)

FIXED, A, B, C, D = 500e6, 1.02, 40e3, 9e3, 1e6
"""Bytes; bytes a byte of KV; bytes a sequence; bytes a token of the largest step; bytes a new length of
prompt chunks."""


def drawn(seed: int, n: int = 600, noise_bytes: float = 2e6) -> list[Observation]:
    """Steps whose neighbours are alike: load and noise are both autoregressive."""
    rng = np.random.default_rng(seed)
    load = np.zeros(n)
    noise = np.zeros(n)
    for at in range(1, n):
        load[at] = 0.8 * load[at - 1] + rng.normal()
        noise[at] = 0.5 * noise[at - 1] + rng.normal() * noise_bytes
    kv = 100e6 * (1 + np.abs(load)) + rng.normal(size=n) * 5e6
    sequences = np.round(4 + 2 * np.abs(rng.normal(size=n)) + np.abs(load))
    largest = np.maximum.accumulate(rng.integers(1, 512, size=n).astype(float))
    largest[n // 2 :] = np.maximum.accumulate(rng.integers(1, 700, size=n - n // 2))
    held = FIXED + A * kv + B * sequences + C * largest + noise
    rows = zip(kv, sequences, largest, held, strict=True)
    return [
        Observation(kv_bytes=k, sequences=s, largest_step_tokens=t, resident_bytes=r)
        for k, s, t, r in rows
    ]


def drifting(n: int = 900) -> list[Observation]:
    """What an engine keeps for good grows by 30 MB over the recording, less and less."""
    return [
        Observation(
            kv_bytes=one.kv_bytes,
            sequences=one.sequences,
            largest_step_tokens=512.0,
            resident_bytes=one.resident_bytes
            - C * one.largest_step_tokens
            + 30e6 * (1 - np.exp(-3 * at / n)),
        )
        for at, one in enumerate(drawn(3, n))
    ]


def test_the_bound_holds_for_later_steps_of_an_engine_that_drifts() -> None:
    steps = drifting()
    model = fit_memory(steps[:600])
    assert model is not None
    below = [
        one.resident_bytes
        <= model.predict(
            kv_bytes=one.kv_bytes, sequences=one.sequences, largest_step_tokens=512.0
        ).upper_bytes
        for one in steps[600:]
    ]
    # By the blocks in between alone 44 % of them are.
    assert sum(below) / len(below) > 0.93


def with_lengths(steps: list[Observation], seed: int) -> list[Observation]:
    """Ever new lengths of prompt chunks, fewer as time goes on, each of which costs D for good."""
    at = np.arange(len(steps))
    is_new = np.random.default_rng(10**6 + seed).random(len(steps)) < 0.1 * np.exp(-at / 200)
    return [
        replace(one, chunk_lengths=float(seen), resident_bytes=one.resident_bytes + D * seen)
        for one, seen in zip(steps, np.cumsum(is_new), strict=True)
    ]


def test_memory_kept_for_each_new_length_is_a_term_of_its_own() -> None:
    steps = with_lengths(drawn(8, noise_bytes=0.0), 8)
    model = fit_memory(steps)
    assert model is not None
    term = {one.name: one for one in model.terms}["chunk_lengths"]
    assert term.evidence == "fitted"
    assert term.value == pytest.approx(D)
    seen = steps[-1].chunk_lengths
    usual = model.predict(kv_bytes=2e8, sequences=5, largest_step_tokens=100)
    more = model.predict(kv_bytes=2e8, sequences=5, largest_step_tokens=100, chunk_lengths=2 * seen)
    assert usual.beyond == {}
    assert more.beyond == {"chunk_lengths": pytest.approx(2)}
    assert more.resident_bytes - usual.resident_bytes == pytest.approx(seen * D)


def test_each_coefficient_is_within_its_interval_in_95_percent_of_500_draws() -> None:
    truth = {"fixed": FIXED, **dict(zip(FEATURES, (A, B, C, D), strict=True))}
    inside = dict.fromkeys(truth, 0)
    for seed in range(500):
        model = fit_memory(with_lengths(drawn(seed), seed))
        assert model is not None
        for term in (model.fixed, *model.terms):
            inside[term.name] += term.low <= truth[term.name] <= term.high
    # 95 % of 500 is 475; fewer than 462 by chance alone: 1 time in 250.
    assert min(inside.values()) >= 462, inside


def test_without_noise_the_law_is_found_exactly() -> None:
    model = fit_memory(drawn(1, noise_bytes=0.0))
    assert model is not None
    assert [term.value for term in model.terms] == pytest.approx([A, B, C, 0], rel=1e-6)
    assert model.fixed.value == pytest.approx(FIXED, rel=1e-9)
    assert model.open_bytes < 10
    assert model.share_explained == pytest.approx(1)


def test_new_steps_stay_below_the_bound_as_often_as_it_says() -> None:
    below, n = 0, 0
    for seed in range(40):
        model = fit_memory(drawn(seed))
        assert model is not None
        for one in drawn(10_000 + seed)[::7]:
            bound = model.predict(
                kv_bytes=one.kv_bytes,
                sequences=one.sequences,
                largest_step_tokens=one.largest_step_tokens,
            )
            below += one.resident_bytes <= bound.upper_bytes
            n += 1
    assert below / n > 0.93


def test_a_question_beyond_what_was_measured_says_by_how_much() -> None:
    model = fit_memory(drawn(3))
    assert model is not None
    most = model.measured["kv_bytes"][1]
    inside = model.predict(kv_bytes=most, sequences=4, largest_step_tokens=100)
    assert inside.beyond == {}
    outside = model.predict(kv_bytes=2.5 * most, sequences=4, largest_step_tokens=100)
    assert outside.beyond == {"kv_bytes": pytest.approx(2.5)}


def test_a_feature_that_never_varied_gets_no_coefficient() -> None:
    rows = [
        Observation(
            kv_bytes=one.kv_bytes,
            sequences=4,
            largest_step_tokens=one.kv_bytes / 1e3,  # and one that only varies with another
            resident_bytes=FIXED + one.kv_bytes,
        )
        for one in drawn(4)
    ]
    model = fit_memory(rows)
    assert model is not None
    kv, sequences, largest, _ = model.terms
    assert (kv.evidence, sequences.evidence, largest.evidence) == ("fitted", "declared", "declared")
    assert kv.value == pytest.approx(1, rel=1e-6)


def test_few_steps_are_not_fitted() -> None:
    assert fit_memory(drawn(5)[: FEWEST - 1]) is None


@pytest.mark.parametrize(
    ("residuals", "coverage", "bound"),
    [
        (range(1, 100), 0.95, 95),
        (range(1, 20), 0.95, 19),
        ([5.0], 0.95, 5),
        ([-3.0, -2.0], 0.5, 0),
    ],
)
def test_the_conformal_bound_is_the_rank_that_the_theorem_names(
    residuals: range, coverage: float, bound: float
) -> None:
    assert conformal_bound(list(residuals), coverage) == bound
