"""A fitted law of steps against the law that made the times."""

from __future__ import annotations

import numpy as np
import pytest

from memplan.plan.simulation import PS_PER_S
from memplan.plan.step_law import FEWEST, fit_steps
from memplan.records import Recording, Segment
from tests import builders

BASE_S, PROMPT_S, DECODE_S, READ_S, PAIR_S = 5e-3, 40e-6, 200e-6, 50e-9, 4e-9
KV_BYTES = 1000


def steps_of(seed: int, count: int, *, slower_from: int = 10**9) -> Recording:
    """One request reads its prompt in a step, others decode beside it."""
    rng = np.random.default_rng(seed)
    now_s, found, names = 1.0, [], [f"r{at}" for at in range(9)]
    for at in range(count):
        before = rng.integers(0, 4000, size=9)
        chunk = int(rng.integers(0, 512)) * int(rng.integers(0, 2))
        decodes = int(rng.integers(1, 8))
        flights = [
            builders.flight(name, kv_used_bytes=int(held + 1) * KV_BYTES, tokens=1)
            for name, held in zip(names[1 : 1 + decodes], before[1:] + 5000, strict=False)
        ]
        read = int(sum(before[1 : 1 + decodes] + 5000))
        took_s = BASE_S + DECODE_S * decodes
        if chunk:
            flights.append(
                builders.flight(
                    names[0], kv_used_bytes=int(before[0] + chunk) * KV_BYTES, tokens=chunk
                )
            )
            read += int(before[0])
            took_s += PROMPT_S * chunk + PAIR_S * chunk * float(before[0])
        took_s = (took_s + READ_S * read) * (1 + rng.normal() * 0.01)
        took_s *= 2 if at >= slower_from else 1
        found.append(
            Segment(
                engine_start=0,
                kind="step",
                start_s=now_s,
                end_s=now_s + took_s,
                peak={},
                gauges={},
                in_flight=tuple(flights),
                prefill_tokens=chunk,
                decode_tokens=decodes,
            )
        )
        now_s += took_s
    requests = tuple(
        builders.request(name, input_tokens=4600 if name == "r0" else 10) for name in names
    )
    return builders.recording(
        engines=(builders.engine(kv_bytes_per_token=KV_BYTES),),
        requests=requests,
        outcomes={one.request_id: builders.completed(one) for one in requests},
        segments=tuple(found),
    )


@pytest.mark.parametrize("seed", range(5))
def test_each_part_of_a_step_is_found(seed: int) -> None:
    fit = fit_steps(steps_of(seed, 2_000))
    assert fit is not None
    law = fit.law
    assert law.step_ps == pytest.approx(BASE_S * PS_PER_S, rel=0.1)
    assert law.prompt_token_ps == pytest.approx(PROMPT_S * PS_PER_S, rel=0.03)
    assert law.decode_ps == pytest.approx(DECODE_S * PS_PER_S, rel=0.3)
    assert law.kv_token_ps == pytest.approx(READ_S * PS_PER_S, rel=0.15)
    assert law.pair_ps == pytest.approx(PAIR_S * PS_PER_S, rel=0.1)
    assert abs(fit.held_out_error) < 0.01
    assert fit.held_out_median_error < 0.02
    assert fit.steps == 2_000


def test_a_machine_that_became_slower_is_seen_on_the_second_half() -> None:
    fit = fit_steps(steps_of(1, 400, slower_from=200))
    assert fit is not None
    assert fit.held_out_error == pytest.approx(-0.5, abs=0.02)


def test_no_term_is_negative_and_few_steps_are_no_law() -> None:
    for seed in range(20):
        fit = fit_steps(steps_of(seed, FEWEST))
        assert fit is not None
        law = fit.law
        assert law.step_ps >= 1
        assert min(law.prompt_token_ps, law.decode_ps, law.kv_token_ps, law.pair_ps) >= 0
    assert fit_steps(steps_of(0, FEWEST - 1)) is None
