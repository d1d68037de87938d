"""The simulated rules against the scheduler that the real engine runs, on the same clock."""

from dataclasses import replace

import numpy as np
import pytest

from memplan.engines.scheduler import Policy, Scheduler
from memplan.engines.sequence import Sequence
from memplan.plan.simulation import NEVER, QUEUE_FULL, TOO_LONG, ReplicaRules, Served, Traffic
from memplan.simulator import simulate
from tests.simulator.test_simulator import random_case


def by_the_scheduler(traffic: Traffic, rules: ReplicaRules, policy: Policy) -> Served:
    """One replica; times are those of the law, and whole numbers in floats."""
    scheduler = Scheduler(
        pool_blocks=rules.pool_blocks,
        block_tokens=rules.block_tokens,
        context_tokens=10**9,
        max_requests=rules.max_requests,
        max_batch_tokens=rules.batch_tokens,
        policy=replace(policy, queue_limit=rules.queue_limit or None, overload="reject"),
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


def reserved_under(policy: Policy, traffic: Traffic) -> Traffic:
    """As the simulator is told of the policy."""
    prompts, outputs = traffic.prompt_tokens, traffic.output_tokens
    reserved = {
        "whole": prompts + outputs - 1,
        "prompt": np.zeros_like(prompts),
        "expected": prompts + np.minimum(outputs, policy.expected_output_tokens) - 1,
    }[policy.reserve]
    return replace(traffic, reserved_tokens=reserved, replica=np.zeros_like(prompts))


@pytest.mark.parametrize(
    "policy",
    [
        Policy(reserve="whole"),
        Policy(reserve="prompt"),
        Policy(reserve="expected", expected_output_tokens=5),
    ],
    ids=lambda policy: policy.reserve,
)
def test_every_request_fares_as_with_the_engines_scheduler(policy: Policy) -> None:
    preempted = 0
    for seed in range(200):
        traffic, rules, _ = random_case(seed)
        traffic = reserved_under(policy, traffic)
        found, expected = simulate(traffic, rules, 1), by_the_scheduler(traffic, rules, policy)
        for name in ("status", "admitted_ps", "first_token_ps", "end_ps", "preemptions", "steps"):
            np.testing.assert_array_equal(
                getattr(found, name), getattr(expected, name), err_msg=f"seed {seed}: {name}"
            )
        preempted += int(found.preemptions.sum())
    assert (preempted > 100) == (policy.reserve != "whole")
