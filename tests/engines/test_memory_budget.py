"""What a memory budget leaves for KV, and how a larger step makes it less."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from memplan.engines.memory_budget import MemoryBudget
from memplan.engines.sequence import Row, Sequence
from memplan.engines.warm_up import run_largest_steps, warm_up
from memplan.specs import Settings

SETTINGS = {"max_kv_tokens": 160, "max_requests": 4, "max_batch_tokens": 64, "block_tokens": 16}


def budget(**changes: int) -> MemoryBudget:
    plain = {"budget_bytes": 1000, "idle_bytes": 400, "step_bytes": 100, "block_bytes": 50}
    return MemoryBudget(**{**plain, **changes})


def test_what_idle_and_a_step_leave_is_for_whole_blocks_of_kv() -> None:
    assert budget().blocks == 10
    assert budget(step_bytes=101).blocks == 9
    assert budget(idle_bytes=1000).blocks < 1


def test_a_step_as_large_as_was_measured_changes_nothing() -> None:
    one = budget()
    assert not one.saw(400 + 100 + 3 * 50, 3)
    assert one.blocks == 10


def test_a_larger_step_leaves_less_from_then_on() -> None:
    one = budget()
    assert one.saw(400 + 200 + 3 * 50, 3)
    assert (one.step_bytes, one.blocks) == (200, 8)
    assert not one.saw(400 + 150, 0)
    assert one.blocks == 8


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 20)), max_size=10))
def test_the_peaks_that_were_seen_would_have_fitted_with_the_blocks_that_are_left(
    seen: list[tuple[int, int]],
) -> None:
    one = budget()
    blocks = one.blocks
    for peak_bytes, held in seen:
        one.saw(peak_bytes, held)
        assert one.blocks <= blocks
        blocks = one.blocks
        beside_bytes = peak_bytes - held * 50
        assert beside_bytes + blocks * 50 <= 1000


def test_its_text_adds_up_in_words() -> None:
    words = "1000 B = 400 B at idle + 100 B in the largest step + 500 B for KV"
    assert budget().text() == words


class Recorder:
    """A runner that notes its steps."""

    vocab_tokens = 100
    block_bytes = 10

    def __init__(self) -> None:
        self.steps: list[tuple[Row, ...]] = []
        self.released: list[int] = []

    def run(self, rows: tuple[Row, ...]) -> list[int]:
        self.steps.append(rows)
        return [1 for row in rows if row.wants_token]

    def release(self, blocks: tuple[int, ...]) -> None:
        self.released += blocks


def settings(**changes: Any) -> dict[str, Any]:
    return Settings.model_validate({**SETTINGS, **changes}).model_dump(mode="json")


def test_the_largest_steps_are_the_end_of_the_longest_prompt_and_all_decodes() -> None:
    runner, peaks = Recorder(), iter((1000, 900))
    most = run_largest_steps(runner, settings(), context_tokens=100, measured=lambda: next(peaks))
    prompt, decodes = runner.steps
    assert [(row.start, row.count) for row in prompt] == [(99 - 64, 64)]
    assert [(row.start, row.count, row.is_decode) for row in decodes] == [(31, 1, True)] * 4
    # Tokens 35 to 98 fill three blocks from end to end; the decodes at 31 end a block each.
    assert most == 1000 - 3 * 10
    assert set(runner.released) == set(range(8))


def test_whole_prompts_make_a_step_of_the_longest_prompt() -> None:
    runner = Recorder()
    run_largest_steps(runner, settings(chunk_prompts=False), context_tokens=100, measured=lambda: 0)
    assert [(row.start, row.count) for row in runner.steps[0]] == [(0, 99)]


def test_a_context_without_room_for_a_warm_up_has_none() -> None:
    for context_tokens, steps in ((1, 0), (2, 0), (3, 2), (100, 2)):
        runner = Recorder()
        warm_up(runner, settings(), context_tokens=context_tokens)
        assert len(runner.steps) == steps
    assert isinstance(runner.steps[0][0].sequence, Sequence)
