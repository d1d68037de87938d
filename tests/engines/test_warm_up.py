"""The steps before serving run whatever the engine can hold at once."""

from typing import Any

import pytest

from memplan.engines.sequence import Row
from memplan.engines.warm_up import warm_up

SETTINGS = {"max_kv_tokens": 256, "block_tokens": 16, "max_batch_tokens": 512}


class Runner:
    """Counts the tokens that it is given."""

    vocab_tokens = 100

    def __init__(self) -> None:
        self.steps: list[int] = []

    def run(self, rows: tuple[Row, ...]) -> list[int]:
        self.steps.append(sum(row.count for row in rows))
        return [1 for row in rows if row.wants_token]

    def release(self, blocks: tuple[int, ...]) -> None:
        pass


@pytest.mark.parametrize("max_requests", [1, 2, 16])
def test_both_requests_run_and_no_step_is_empty(max_requests: int) -> None:
    runner: Any = Runner()
    warm_up(runner, {**SETTINGS, "max_requests": max_requests}, context_tokens=8192)
    assert sum(runner.steps) == 2 * (16 + 1)
    assert min(runner.steps) > 0
