"""Continuous batching as laws: whatever is submitted, whenever, over whatever pool."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.engines.scheduler import Scheduler
from memplan.engines.sequence import Refusal, Row, Sequence

Lengths = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    pool_blocks: int
    block_tokens: int
    context_tokens: int
    max_requests: int
    max_batch_tokens: int

    def open(self) -> Scheduler:
        return Scheduler(
            pool_blocks=self.pool_blocks,
            block_tokens=self.block_tokens,
            context_tokens=self.context_tokens,
            max_requests=self.max_requests,
            max_batch_tokens=self.max_batch_tokens,
        )

    def can_ever_run(self, lengths: Lengths) -> bool:
        """Worked out from the tokens alone: KV is written for all but the last output token."""
        prompt, output = lengths
        fits_pool = prompt + output - 1 <= self.pool_blocks * self.block_tokens
        return prompt + output <= self.context_tokens and fits_pool


@dataclass(slots=True)
class History:
    """What a scheduler did from its first step until nothing was left to do."""

    submitted: dict[str, Lengths] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    steps: list[tuple[Row, ...]] = field(default_factory=list)


# model.yaml refuses max_batch_tokens below max_requests, so every decode fits into a step.
limits = st.builds(
    lambda requests, more, **rest: Limits(
        max_requests=requests, max_batch_tokens=requests + more, **rest
    ),
    requests=st.integers(1, 6),
    more=st.integers(0, 30),
    pool_blocks=st.integers(1, 40),
    block_tokens=st.integers(1, 20),
    context_tokens=st.integers(2, 200),
)
arrivals = st.lists(
    st.lists(st.tuples(st.integers(1, 80), st.integers(1, 20)), max_size=4), max_size=8
)
"""Before each step, the (prompt, output) lengths that arrive."""


def run(limits: Limits, arrivals: list[list[Lengths]]) -> History:
    """Runs all to the end; after every move the pool's books must balance."""
    scheduler, history = limits.open(), History()
    pending = list(arrivals)
    while pending or scheduler.has_work:
        for lengths in pending.pop(0) if pending else ():
            name = str(len(history.submitted))
            history.submitted[name] = lengths
            prompt = list(range(lengths[0]))
            refusal = scheduler.submit(
                Sequence(request_id=name, prompt=prompt, output_tokens=lengths[1])
            )
            history.refused += [refusal] if refusal else []
        history.admitted += [s.request_id for s in scheduler.admit()]
        rows = scheduler.next_rows()
        check_pool(scheduler, limits)
        history.steps.append(rows)
        scheduler.commit(rows, [900 + i for i, row in enumerate(rows) if row.wants_token])
        finished, freed = scheduler.retire()
        history.finished += finished
        check_pool(scheduler, limits)
        assert set(freed) <= set(scheduler.book._free)
        assert len(history.steps) < 10_000, "it never ends"
    return history


def check_pool(scheduler: Scheduler, limits: Limits) -> None:
    held = [block for sequence in scheduler.running for block in sequence.blocks]
    assert sorted(held + scheduler.book._free) == list(range(limits.pool_blocks))
    assert len(scheduler.running) <= limits.max_requests


@given(limits, arrivals)
def test_no_block_is_ever_shared_or_lost_and_all_end_with_their_tokens(
    limits: Limits, arrivals: list[list[Lengths]]
) -> None:
    history = run(limits, arrivals)
    assert {s.request_id for s in history.finished} == set(history.admitted)
    for sequence in history.finished:
        prompt, output = history.submitted[sequence.request_id]
        assert len(sequence.output) == output
        assert sequence.computed == prompt + output - 1
        assert sequence.blocks == []


@given(limits, arrivals)
def test_a_request_is_refused_exactly_when_it_can_never_fit(
    limits: Limits, arrivals: list[list[Lengths]]
) -> None:
    history = run(limits, arrivals)
    fitting = {n for n, lengths in history.submitted.items() if limits.can_ever_run(lengths)}
    assert {refusal.request_id for refusal in history.refused} == set(history.submitted) - fitting
    assert set(history.admitted) == fitting


@given(limits, arrivals)
def test_who_comes_first_is_admitted_first(limits: Limits, arrivals: list[list[Lengths]]) -> None:
    history = run(limits, arrivals)
    assert history.admitted == sorted(history.admitted, key=int)


@given(limits, arrivals)
def test_a_step_keeps_its_token_budget_and_is_never_empty_while_work_waits(
    limits: Limits, arrivals: list[list[Lengths]]
) -> None:
    history = run(limits, arrivals)
    busy = [rows for rows in history.steps if rows]
    assert all(sum(row.count for row in rows) <= limits.max_batch_tokens for rows in busy)
    assert all(row.count > 0 for rows in busy for row in rows)
    assert len(history.steps) - len(busy) <= len(arrivals)


@given(limits, arrivals)
def test_every_position_of_a_sequence_is_computed_once_and_in_order(
    limits: Limits, arrivals: list[list[Lengths]]
) -> None:
    history = run(limits, arrivals)
    reached = dict.fromkeys(history.admitted, 0)
    for row in (row for rows in history.steps for row in rows):
        assert row.start == reached[row.sequence.request_id]
        reached[row.sequence.request_id] = row.start + row.count
    for name in history.admitted:
        prompt, output = history.submitted[name]
        assert reached[name] == prompt + output - 1


def scheduler(**changes: int) -> Scheduler:
    plain = {
        "pool_blocks": 8,
        "block_tokens": 4,
        "context_tokens": 100,
        "max_requests": 4,
        "max_batch_tokens": 8,
    }
    return Scheduler(**{**plain, **changes})


def sequence(name: str, prompt_tokens: int, output_tokens: int) -> Sequence:
    return Sequence(request_id=name, prompt=list(range(prompt_tokens)), output_tokens=output_tokens)


def step(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    scheduler.admit()
    rows = scheduler.next_rows()
    scheduler.commit(rows, [7 for row in rows if row.wants_token])
    scheduler.retire()
    return [(row.sequence.request_id, row.start, row.count) for row in rows]


def test_decodes_go_before_prompts_and_a_long_prompt_goes_in_chunks() -> None:
    one = scheduler()
    one.submit(sequence("a", 3, 3))
    assert step(one) == [("a", 0, 3)]
    one.submit(sequence("b", 10, 1))
    assert step(one) == [("a", 3, 1), ("b", 0, 7)]
    assert step(one) == [("a", 4, 1), ("b", 7, 3)]
    assert not one.has_work


def test_a_small_request_does_not_overtake_a_large_one_that_waits() -> None:
    one = scheduler()
    one.submit(sequence("holds", 16, 5))  # 5 of 8 blocks
    one.submit(sequence("large", 16, 1))  # 4 blocks: does not fit beside it
    one.submit(sequence("small", 1, 1))
    assert [s.request_id for s in one.admit()] == ["holds"]
    assert [s.request_id for s in one.waiting] == ["large", "small"]


def test_blocks_are_taken_as_tokens_are_written_and_reserved_from_the_start() -> None:
    one = scheduler()
    only = sequence("a", 9, 4)
    one.submit(only)
    step(one)
    assert len(only.blocks) == 2  # 8 tokens written
    assert (
        one.reserved_tokens(only, blocks=len(only.blocks), known_tokens=only.known_tokens) == 12
    )  # 12 tokens, 3 blocks
    step(one)
    assert len(only.blocks) == 3


def test_the_first_blocks_are_used_again_first() -> None:
    one = scheduler()
    one.submit(sequence("a", 8, 1))
    step(one)
    only = sequence("b", 8, 2)
    one.submit(only)
    step(one)
    assert only.blocks == [0, 1]


@pytest.mark.parametrize(
    ("prompt", "output", "reason"),
    [
        (99, 1, "exceeds_kv_pool"),
        (100, 1, "exceeds_context"),
        (32, 1, None),
        (32, 2, "exceeds_kv_pool"),
        (33, 1, "exceeds_kv_pool"),
    ],
)
def test_a_refusal_names_the_limit(prompt: int, output: int, reason: str | None) -> None:
    refusal = scheduler().submit(sequence("a", prompt, output))
    assert (refusal.reason if refusal else None) == reason


def test_only_the_row_that_ends_at_the_newest_token_wants_the_next_one() -> None:
    one = scheduler()
    one.submit(sequence("a", 12, 2))
    one.admit()
    (chunk,) = one.next_rows()
    assert (chunk.is_decode, chunk.wants_token) == (False, False)
    one.commit((chunk,), [])
    (rest,) = one.next_rows()
    assert (rest.is_decode, rest.wants_token) == (False, True)
    one.commit((rest,), [42])
    (decode,) = one.next_rows()
    assert (decode.is_decode, decode.wants_token) == (True, True)
    assert decode.sequence.token(decode.start) == 42
    assert decode.sequence.token(0) == 0
