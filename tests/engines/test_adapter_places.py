"""Adapters in the scheduler: no more at once than may be resident, and no KV shared between them."""

from __future__ import annotations

from memplan.engines.scheduler import Policy, Scheduler
from memplan.engines.sequence import Sequence

BLOCK_TOKENS = 4


def scheduler(adapters: int | None, *, blocks: int = 64) -> Scheduler:
    return Scheduler(
        pool_blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        context_tokens=64,
        max_requests=8,
        max_batch_tokens=64,
        policy=Policy(sharing="kept", adapters=adapters),
    )


def asked(name: str, adapter: str, *, prompt_tokens: int = 8) -> Sequence:
    return Sequence(
        request_id=name, prompt=[*range(prompt_tokens)], output_tokens=2, adapter=adapter
    )


def step(opened: Scheduler, now_s: float = 0.0) -> tuple[list[str], list[str]]:
    """Who ran, and who ended."""
    opened.admit(now_s)
    rows = opened.next_rows(now_s)
    opened.commit(rows, [1 for row in rows if row.wants_token])
    finished, _ = opened.retire()
    return [row.sequence.request_id for row in rows], [one.request_id for one in finished]


def test_requests_of_one_more_adapter_wait_for_a_place_and_say_so() -> None:
    opened = scheduler(1)
    names = [("a1", "a"), ("none", ""), ("a2", "a"), ("b1", "b")]
    sequences = [asked(name, adapter) for name, adapter in names]
    for sequence in sequences:
        opened.submit(sequence, 0.0)
    ran = [step(opened, float(second)) for second in range(4)]
    assert ran[0] == (["a1", "none", "a2"], [])
    assert set(ran[1][1]) == {"a1", "none", "a2"}
    assert ran[2][0] == ["b1"]
    assert sequences[3].waited_s == {"adapters": 2.0}
    assert ran[3][1] == ["b1"]


def test_as_many_adapters_as_may_be_resident_run_together() -> None:
    for most in (2, None):
        opened = scheduler(most)
        for name in ("a", "b"):
            opened.submit(asked(name, name))
        assert step(opened)[0] == ["a", "b"]


def test_blocks_are_shared_within_an_adapter_only() -> None:
    """The same tokens have other keys and values under another adapter."""
    opened = scheduler(None)
    adapters = ["a", "b", "", "a", "b", ""]
    sequences = [
        asked(f"{n}", adapter, prompt_tokens=4 * BLOCK_TOKENS) for n, adapter in enumerate(adapters)
    ]
    for sequence in sequences[:3]:
        opened.submit(sequence)
        while opened.has_work:
            step(opened)
    assert [one.shared_tokens for one in sequences[:3]] == [0, 0, 0]
    for sequence in sequences[3:]:
        opened.submit(sequence)
        while opened.has_work:
            step(opened)
    # All but the last token, whose logits are needed.
    assert [one.shared_tokens for one in sequences[3:]] == [4 * BLOCK_TOKENS - 1] * 3
