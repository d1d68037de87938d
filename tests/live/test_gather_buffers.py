"""Buffers that are kept from step to step: the same tokens, and no page faults in their place."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from one_by_one import serve
from test_torch_engine import run_batched, runner, sequences

from memplan.engines.sequence import Row, Sequence
from memplan.pages import PAGE_BYTES
from memplan.specs import Deployment

pytestmark = [
    pytest.mark.live,
    # torch and transformers warn about their own internals while they are imported.
    pytest.mark.filterwarnings("default"),
]


def test_the_tokens_are_the_same(fp32_folder: Path) -> None:
    answers = []
    for reuses in (False, True):
        asked = sequences()
        run_batched(runner(fp32_folder, reuse_buffers=reuses), asked, max_batch_tokens=100)
        answers.append([list(one.output) for one in asked])
    assert answers[0] == answers[1]


def decodes(opened: Any, *, requests: int, context: int) -> tuple[Row, ...]:
    """One step of so many requests, whose KV is not computed: its values change no size."""
    each = context // 16 + 1
    rows = []
    for number in range(requests):
        sequence = Sequence(request_id=str(number), prompt=[7] * context, output_tokens=3)
        sequence.blocks = list(range(number * each, (number + 1) * each))
        sequence.output.append(5)
        rows.append(
            Row(sequence=sequence, start=context, count=1, is_decode=True, wants_token=True)
        )
    return tuple(rows)


def test_a_long_step_faults_no_pages_for_them(bf16_folder: Path) -> None:
    """6 MiB for keys and as much for values, anew in each of 30 layers without it."""
    lazy = {"adapters": {}, "tokenizer": "never"}
    opened = runner(bf16_folder, weights="bf16", reuse_buffers=True, **lazy)
    opened.open_pool(1200)
    rows = decodes(opened, requests=16, context=1008)
    for _ in range(3):
        opened.run(rows)
    # 64 blocks each, 16 tokens of 3 heads of 64 numbers of 2 bytes.
    known = 2 * 16 * 64 * 16 * 3 * 64 * 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    opened.run(rows)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 0.1 * 30 * known / PAGE_BYTES, "a few are the head's"
    assert opened.lazy_parts().gauges()["engine.buffers"] == known


def test_a_run_says_what_they_hold(smollm2: Deployment, tmp_path: Path) -> None:
    told = serve(smollm2, [{}], tmp_path / "log", reuse_buffers=True)
    held = [one.gauges["engine.buffers"] for one in told.segments if one.in_flight]
    assert 0 < held[0] <= held[-1] < 2**20
