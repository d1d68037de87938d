"""Requests and one replica's rules in, what becomes of each request out: the engine's own admission,
batching and block rules, step by step, without the engine.

``simulate_plainly`` is those rules written down, a step at a time; ``memplan.simulator`` runs the same
in C, many steps at once, and gives the same answer to the picosecond. Time is in whole picoseconds, so
that a sum does not depend on the order of its parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PS_PER_S = 1_000_000_000_000
NEVER = -1
COMPLETED, TOO_LONG, QUEUE_FULL = 0, 1, 2
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLaw:
    """How long a step takes: a sum over what it does, in picoseconds."""

    step_ps: int
    """Of every step."""
    prompt_token_ps: int
    decode_ps: int
    """For each request that decodes."""
    kv_token_ps: int
    """For each token whose KV the step reads."""
    pair_ps: int = 0
    """For each prompt token, and each token before its chunk: attention's part of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRules:
    pool_blocks: int
    block_tokens: int
    max_requests: int
    batch_tokens: int
    """Of one step: decodes first, then prompts."""
    law: StepLaw
    queue_limit: int = 0
    """Requests that may wait; 0: without a limit."""
    over_blocks: int = 0
    """The time with more blocks held than that is counted; 0: the pool."""

    @property
    def over(self) -> int:
        return self.over_blocks or self.pool_blocks

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Arrays of one length, a request each, by arrival."""

    arrival_ps: Whole
    """Ascending."""
    prompt_tokens: Whole
    """At least 1."""
    output_tokens: Whole
    """At least 1."""
    reserved_tokens: Whole
    """KV that a request is admitted for: all that it will hold (prompt + output − 1), what a planner
    expects, or 0: its prompt, and one block more if it will need one."""
    replica: Whole
    """Which serves it, from 0."""

    def __len__(self) -> int:
        return len(self.arrival_ps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Of requests in the order of the traffic, times in picoseconds, ``NEVER`` where it never came to
    that; then of each replica."""

    status: Whole
    """COMPLETED, TOO_LONG for the pool, or QUEUE_FULL."""
    admitted_ps: Whole
    """The first time."""
    first_token_ps: Whole
    end_ps: Whole
    preemptions: Whole
    busy_ps: Whole
    """Time in steps."""
    over_ps: Whole
    """Of it, with more blocks held than ``over_blocks``."""
    last_ps: Whole
    """When the last step ended."""
    steps: Whole
    peak_blocks: Whole
    most_waiting: Whole
    most_running: Whole

    @classmethod
    def empty(cls, requests: int, replicas: int) -> Served:
        never = [np.full(requests, NEVER, dtype=np.int64) for _ in range(3)]
        zero = [np.zeros(requests, dtype=np.int64) for _ in range(2)]
        each = [np.zeros(replicas, dtype=np.int64) for _ in range(7)]
        return cls(
            status=zero[0],
            admitted_ps=never[0],
            first_token_ps=never[1],
            end_ps=never[2],
            preemptions=zero[1],
            busy_ps=each[0],
            over_ps=each[1],
            last_ps=each[2],
            steps=each[3],
            peak_blocks=each[4],
            most_waiting=each[5],
            most_running=each[6],
        )


@dataclass(slots=True, eq=False)
class PlainRequest:
    at: int
    prompt: int
    output: int
    reserved: int
    out: int = 0
    computed: int = 0
    held: int = 0
    row: int = 0
    """Tokens in this step."""

    @property
    def known(self) -> int:
        return self.prompt + self.out

    @property
    def is_decoding(self) -> bool:
        return self.out > 0 and self.computed == self.known - 1


def simulate_plainly(traffic: Traffic, rules: ReplicaRules, replicas: int) -> Served:
    """``replicas``: more than the largest in ``traffic.replica``."""
    served = Served.empty(len(traffic), replicas)
    for replica in range(replicas):
        mine = [int(at) for at in np.flatnonzero(traffic.replica == replica)]
        PlainReplica(traffic, rules, served, replica).run(mine)
    return served


class PlainReplica:
    """One replica, a step at a time."""

    def __init__(self, traffic: Traffic, rules: ReplicaRules, served: Served, replica: int) -> None:
        self.traffic, self.rules, self.served, self.replica = traffic, rules, served, replica
        self.now_ps = 0
        self.waiting: list[PlainRequest] = []
        self.running: list[PlainRequest] = []
        """In the order of admission."""

    def run(self, mine: list[int]) -> None:
        coming = list(reversed(mine))
        while coming or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.now_ps = max(self.now_ps, int(self.traffic.arrival_ps[coming[-1]]))
            while coming and self.traffic.arrival_ps[coming[-1]] <= self.now_ps:
                self.arrive(coming.pop())
            self.admit()
            self.step()

    def arrive(self, at: int) -> None:
        one = PlainRequest(
            at=at,
            prompt=int(self.traffic.prompt_tokens[at]),
            output=int(self.traffic.output_tokens[at]),
            reserved=int(self.traffic.reserved_tokens[at]),
        )
        limit = self.rules.queue_limit
        if self.rules.blocks(one.prompt + one.output - 1) > self.rules.pool_blocks:
            self.served.status[at] = TOO_LONG
            return
        if limit and len(self.waiting) >= limit:
            self.admit()  # who need not wait any more takes no place in the queue
        if limit and len(self.waiting) >= limit:
            self.served.status[at] = QUEUE_FULL
            return
        self.waiting.append(one)

    def admit(self) -> None:
        while self.waiting and len(self.running) < self.rules.max_requests:
            one = self.waiting[0]
            promised = sum(self.claim(other) for other in self.running)
            if self.running and promised + self.entry(one) > self.rules.pool_blocks:
                break
            self.running.append(self.waiting.pop(0))
            if self.served.admitted_ps[one.at] == NEVER:
                self.served.admitted_ps[one.at] = self.now_ps
        most = self.served.most_waiting
        most[self.replica] = max(int(most[self.replica]), len(self.waiting))

    def entry(self, one: PlainRequest) -> int:
        blocks = self.rules.blocks
        if one.reserved:
            return max(blocks(one.known), blocks(one.reserved))
        return min(blocks(one.known) + 1, blocks(one.prompt + one.output - 1))

    def claim(self, one: PlainRequest) -> int:
        return max(one.held, self.rules.blocks(one.known), self.rules.blocks(one.reserved))

    def step(self) -> None:
        if not self.running:
            return
        budget = self.rules.batch_tokens
        for one in self.running:
            one.row = 0
        for one in [one for one in self.running if one.is_decoding]:
            if budget and one in self.running and self.place(one, 1):
                budget -= 1
        decodes = sum(one.row for one in self.running)
        for one in [one for one in self.running if not one.is_decoding]:
            if one not in self.running:
                continue
            count = min(one.known - one.computed, budget)
            if count < 1:
                break
            if self.place(one, count):
                budget -= count
        self.book(decodes)

    def place(self, one: PlainRequest, count: int) -> bool:
        """Whether it has the blocks for so many tokens more; who makes way is the youngest without a
        row."""
        needed = self.rules.blocks(one.computed + count)
        while True:
            held = sum(other.held for other in self.running if other is not one)
            if len(self.running) == 1 or held + max(one.held, needed) <= self.rules.pool_blocks:
                one.held = max(one.held, needed)
                one.row = count
                return True
            if needed <= one.held:
                one.row = count
                return True
            victim = [other for other in self.running if not other.row][-1]
            self.running.remove(victim)
            self.served.preemptions[victim.at] += 1
            victim.computed = victim.held = 0
            self.waiting.insert(0, victim)
            if victim is one:
                return False

    def book(self, decodes: int) -> None:
        law, served, here = self.rules.law, self.served, self.replica
        rows = [one for one in self.running if one.row]
        took_ps = (
            law.step_ps
            + law.prompt_token_ps * (sum(one.row for one in rows) - decodes)
            + law.decode_ps * decodes
            + law.kv_token_ps * sum(one.computed for one in rows)
            + law.pair_ps * sum(one.row * one.computed for one in rows if not one.is_decoding)
        )
        held = sum(one.held for one in self.running)
        self.now_ps += took_ps
        served.steps[here] += 1
        served.busy_ps[here] += took_ps
        served.over_ps[here] += took_ps if held > self.rules.over else 0
        served.peak_blocks[here] = max(int(served.peak_blocks[here]), held)
        served.last_ps[here] = self.now_ps
        served.most_running[here] = max(int(served.most_running[here]), len(self.running))
        for one in rows:
            one.computed += one.row
            if one.computed == one.known:
                one.out += 1
                if served.first_token_ps[one.at] == NEVER:
                    served.first_token_ps[one.at] = self.now_ps
                if one.out == one.output:
                    served.end_ps[one.at] = self.now_ps
        self.running = [one for one in self.running if one.out < one.output]
