"""The simulated rules against the scheduler that the real engine runs, on the same clock."""

import numpy as np
import pytest

from memplan.engines.scheduler import Policy, Scheduler
from memplan.engines.sequence import Sequence
from memplan.plan.simulation import NEVER, QUEUE_FULL, TOO_LONG, ReplicaRules, Served, Traffic
from memplan.simulator import simulate
from tests.simulator.test_simulator import random_case


def by_the_scheduler(traffic: Traffic, rules: ReplicaRules) -> Served:
    """One replica; times are those of the law, and whole numbers in floats."""
    is_whole = bool(traffic.reserved_tokens.any())
    scheduler = Scheduler(
        pool_blocks=rules.pool_blocks,
        block_tokens=rules.block_tokens,
        context_tokens=10**9,
        max_requests=rules.max_requests,
        max_batch_tokens=rules.batch_tokens,
        policy=Policy(
            reserve="whole" if is_whole else "prompt",
            queue_limit=rules.queue_limit or None,
            overload="reject",
        ),
    )
    served = Served.empty(len(traffic), 1)
    known: dict[str, Sequence] = {}
    coming = list(range(len(traffic)))[::-1]
    now = 0
    while coming or scheduler.has_work:
        if not scheduler.has_work:
            now = max(now, int(traffic.arrival_ps[coming[-1]]))
        while coming and traffic.arrival_ps[coming[-1]] <= now:
            at = coming.pop()
            sequence = known[str(at)] = Sequence(
                request_id=str(at),
                prompt=range(int(traffic.prompt_tokens[at])),
                output_tokens=int(traffic.output_tokens[at]),
            )
            refusal = scheduler.submit(sequence, float(now))
            if refusal is not None:
                is_full = refusal.reason == "queue_full"
                served.status[at] = QUEUE_FULL if is_full else TOO_LONG
        for sequence in scheduler.admit(float(now)):
            at = int(sequence.request_id)
            if served.admitted_ps[at] == NEVER:
                served.admitted_ps[at] = now
        rows = scheduler.next_rows(float(now))
        if not rows:
            assert not scheduler.running
            continue
        decodes = sum(row.is_decode for row in rows)
        law = rules.law
        now += (
            law.step_ps
            + law.decode_ps * decodes
            + law.prompt_token_ps * sum(row.count for row in rows if not row.is_decode)
            + law.kv_token_ps * sum(row.start for row in rows)
            + law.pair_ps * sum(row.count * row.start for row in rows if not row.is_decode)
        )
        scheduler.commit(rows, [1] * sum(row.wants_token for row in rows))
        for row in rows:
            at = int(row.sequence.request_id)
            if row.wants_token and served.first_token_ps[at] == NEVER:
                served.first_token_ps[at] = now
        for sequence in scheduler.retire()[0]:
            served.end_ps[int(sequence.request_id)] = now
        served.steps[0] += 1
    for name, sequence in known.items():
        served.preemptions[int(name)] = sequence.preemptions
    return served


@pytest.mark.parametrize("seeds", [range(150), range(150, 300)], ids=["first", "second"])
def test_every_request_fares_as_with_the_engines_scheduler(seeds: range) -> None:
    preempted = compared = 0
    for seed in seeds:
        traffic, rules, _ = random_case(seed)
        total = traffic.prompt_tokens + traffic.output_tokens - 1
        if traffic.reserved_tokens.any() and (traffic.reserved_tokens != total).any():
            continue  # what a planner expects is no policy of the engine
        traffic.replica[:] = 0
        found, expected = simulate(traffic, rules, 1), by_the_scheduler(traffic, rules)
        for name in ("status", "admitted_ps", "first_token_ps", "end_ps", "preemptions", "steps"):
            np.testing.assert_array_equal(
                getattr(found, name), getattr(expected, name), err_msg=f"seed {seed}: {name}"
            )
        preempted += int(found.preemptions.sum())
        compared += 1
    assert compared > 80
    assert preempted > 100
