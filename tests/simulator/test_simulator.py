"""The rules in C against the rules written down, on small cases of every kind."""

import dataclasses

import numpy as np
import pytest

from memplan.compiled import Compiled
from memplan.plan.simulation import (
    COMPLETED,
    NEVER,
    QUEUE_FULL,
    TOO_LONG,
    ReplicaRules,
    Served,
    StepLaw,
    Traffic,
    simulate_plainly,
)
from memplan.simulator import simulate

LAW = StepLaw(step_ps=100, prompt_token_ps=10, decode_ps=3, kv_token_ps=1, pair_ps=2)


def rules_of(**changed: int) -> ReplicaRules:
    numbers = {
        "pool_blocks": 10,
        "block_tokens": 4,
        "max_requests": 4,
        "batch_tokens": 16,
        **changed,
    }
    return ReplicaRules(law=LAW, **numbers)


def traffic_of(*rows: tuple[int, int, int, int], replica: int = 0) -> Traffic:
    """``rows``: arrival, prompt, output, reserved."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T.copy()
    return Traffic(
        arrival_ps=columns[0],
        prompt_tokens=columns[1],
        output_tokens=columns[2],
        reserved_tokens=columns[3],
        replica=np.full(len(rows), replica, dtype=np.int64),
    )


def random_case(seed: int) -> tuple[Traffic, ReplicaRules, int]:
    rng = np.random.default_rng(seed)
    count, replicas = int(rng.integers(1, 40)), int(rng.integers(1, 4))
    prompts, outputs = rng.integers(1, 40, count), rng.integers(1, 40, count)
    reserved = (
        np.zeros(count, dtype=np.int64),
        prompts + outputs - 1,
        prompts + rng.integers(1, 20, count),
    )[rng.integers(0, 3)]
    pool = int(rng.integers(4, 60))
    law = StepLaw(
        step_ps=int(rng.integers(1, 1000)),
        prompt_token_ps=int(rng.integers(0, 50)),
        decode_ps=int(rng.integers(0, 50)),
        kv_token_ps=int(rng.integers(0, 20)),
        pair_ps=int(rng.integers(0, 5)),
    )
    rules = ReplicaRules(
        pool_blocks=pool,
        block_tokens=int(rng.integers(1, 9)),
        max_requests=int(rng.integers(1, 10)),
        batch_tokens=int(rng.integers(1, 40)),
        law=law,
        queue_limit=int(rng.choice([0, 0, 3])),
        over_blocks=int(rng.choice([0, max(1, pool // 2)])),
    )
    within_ps = int(rng.choice([1, 5_000, 60_000]))
    traffic = Traffic(
        arrival_ps=np.sort(rng.integers(0, within_ps, count)),
        prompt_tokens=prompts,
        output_tokens=outputs,
        reserved_tokens=reserved,
        replica=rng.integers(0, replicas, count),
    )
    return traffic, rules, replicas


def assert_same(found: Served, expected: Served, what: str) -> None:
    for one in dataclasses.fields(Served):
        np.testing.assert_array_equal(
            getattr(found, one.name), getattr(expected, one.name), err_msg=f"{what}: {one.name}"
        )


def test_c_gives_the_plain_answer_in_1_000_random_cases() -> None:
    preempted = refused = 0
    for seed in range(1_000):
        case = random_case(seed)
        expected = simulate_plainly(*case)
        assert_same(simulate(*case), expected, f"seed {seed}")
        preempted += int(expected.preemptions.sum())
        refused += int((expected.status != COMPLETED).sum())
    assert preempted > 1_000, "the cases are to hold what is hard"
    assert refused > 1_000


def test_without_a_compiler_the_plain_rules_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "memplan.simulator.compile_once", lambda *_: Compiled(path=None, reason="no compiler")
    )
    case = random_case(7)
    assert_same(simulate(*case), simulate_plainly(*case), "seed 7")


@pytest.mark.parametrize("way", [simulate, simulate_plainly])
def test_one_request_by_hand(way) -> None:
    """A prompt of 20 in steps of 16 and 4, then two more tokens: 4 steps, with 0, 16, 20 and 21 tokens
    read, and 4 of the prompt behind 16 others."""
    served = way(traffic_of((50, 20, 3, 22)), rules_of(), 1)
    prefill = (100 + 160) + (100 + 40 + 16 + 2 * 4 * 16)
    decode = (100 + 3 + 20) + (100 + 3 + 21)
    assert served.admitted_ps[0] == 50
    assert served.first_token_ps[0] == 50 + prefill
    assert served.end_ps[0] == served.last_ps[0] == 50 + prefill + decode
    assert (served.steps[0], served.busy_ps[0]) == (4, prefill + decode)
    assert served.peak_blocks[0] == 6, "22 tokens in blocks of 4"


@pytest.mark.parametrize("way", [simulate, simulate_plainly])
def test_who_cannot_run_or_wait_is_told_apart(way) -> None:
    rows = [(0, 30, 12, 41), (0, 8, 8, 15), (1, 8, 8, 15), (2, 8, 8, 15)]
    served = way(traffic_of(*rows), rules_of(max_requests=1, queue_limit=1), 1)
    assert served.status.tolist() == [TOO_LONG, COMPLETED, COMPLETED, QUEUE_FULL]
    assert served.end_ps[3] == NEVER
    assert served.most_waiting[0] == 1


@pytest.mark.parametrize("way", [simulate, simulate_plainly])
def test_reserved_blocks_are_never_taken_away_and_prompts_alone_are(way) -> None:
    """Four requests that end with 5 blocks each in a pool of 10."""
    whole = way(traffic_of(*[(0, 8, 12, 19)] * 4), rules_of(), 1)
    prompt = way(traffic_of(*[(0, 8, 12, 0)] * 4), rules_of(), 1)
    assert whole.preemptions.sum() == 0
    assert prompt.preemptions.sum() > 0
    assert max(whole.peak_blocks[0], prompt.peak_blocks[0]) <= 10
    assert (whole.end_ps > 0).all()
    assert (prompt.end_ps > 0).all()


@pytest.mark.parametrize("way", [simulate, simulate_plainly])
def test_time_over_a_level_is_counted_to_the_step(way) -> None:
    """One request grows from 2 blocks to 5, a token a step: above 3 blocks from the fifth decode on."""
    served = way(traffic_of((0, 8, 12, 19)), rules_of(over_blocks=3), 1)
    steps = [100 + 3 + tokens for tokens in range(12, 19)]
    assert served.over_ps[0] == sum(steps)
