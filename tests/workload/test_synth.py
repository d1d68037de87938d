"""Made-up traces: what each shape strains is in it, and everything follows from the seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from memplan.cli import run
from memplan.specs import BUILTIN_CLASSES
from memplan.workload.summary import TraceSummary, summarise_trace
from memplan.workload.synth import BLOCK_TOKENS, SHAPES, Ask, synth
from memplan.workload.trace import Trace, read_trace, write_trace

ASK = Ask(length_s=1200.0, requests_per_s=2.0)


def made(name: str, seed: int = 1) -> Trace:
    return synth(name, ASK, seed=seed)


def summary(trace: Trace, folder: Path) -> TraceSummary:
    write_trace(folder / "made.jsonl", trace)
    return summarise_trace(folder / "made.jsonl", BUILTIN_CLASSES)


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_written_and_read_as_it_was_made_and_said_to_be_made_up(
    name: str, tmp_path: Path
) -> None:
    trace = made(name)
    assert made(name) == trace
    assert made(name, seed=2).rows != trace.rows
    found = summary(trace, tmp_path)
    assert found.shape.findings[0].code == "made_up"
    again = read_trace(tmp_path / "made.jsonl")
    assert [(row.input_tokens, row.hash_ids) for row in again.rows] == [
        (row.input_tokens, row.hash_ids) for row in trace.rows
    ]
    # 2,400 are asked for on average; shapes add to that, and sessions that begin late are cut off.
    assert 1_500 < trace.rows_kept < 6_000


def test_long_prefixes_are_nearly_all_of_the_prompts(tmp_path: Path) -> None:
    reused = summary(made("long-prefixes"), tmp_path).shape.reused_ratio
    assert reused is not None and reused > 0.9


def test_retries_send_the_whole_prompt_again_after_half_a_minute_or_more() -> None:
    at: dict[tuple[int, ...], list[float]] = {}
    for row in made("retries").rows:
        at.setdefault(row.hash_ids, []).append(row.timestamp_s)
    gaps = [after - before for times in at.values() for before, after in pairwise(times)]
    assert len(gaps) > 50
    assert min(gaps) > 26
    assert max(len(times) for times in at.values()) <= 4


def test_tool_calls_grow_within_a_session_and_keep_what_was_said() -> None:
    turns: dict[str | None, list[tuple[int, tuple[int, ...]]]] = {}
    for row in made("tool-calls").rows:
        turns.setdefault(row.session_id, []).append((row.input_tokens, row.hash_ids))
    pairs = [pair for rows in turns.values() for pair in pairwise(rows)]
    assert len(pairs) > 500
    for (before, before_ids), (after, after_ids) in pairs:
        assert after > before
        whole = before // BLOCK_TOKENS
        assert after_ids[:whole] == before_ids[:whole]


def test_batches_collide_every_five_minutes() -> None:
    jobs = Counter(
        int(row.timestamp_s // 10)
        for row in made("batch-collisions").rows
        if row.class_label == "batch"
    )
    assert 4 <= len(jobs) <= 8  # a job may lie across the end of ten seconds
    assert sum(jobs.values()) >= 16 * 4


def test_a_document_comes_back_only_when_all_others_have_passed() -> None:
    last: dict[int, int] = {}
    rows = made("cache-churn").rows
    for at, row in enumerate(rows):
        first = row.hash_ids[0]
        assert at - last.get(first, at - 200) == 200
        last[first] = at


def test_pressure_rises_to_the_end() -> None:
    rows = made("node-pressure").rows
    early, late = ([row for row in rows if lo <= row.timestamp_s < lo + 300] for lo in (0, 890))
    assert len(late) > 4 * len(early)
    assert sum(row.input_tokens for row in late) / len(late) > 1.2 * (
        sum(row.input_tokens for row in early) / len(early)
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["storm", "a.jsonl"], "expected one of long-prefixes"),
        (["retries"], "TARGET: missing"),
        (["retries", "a.jsonl", "--length", "soon"], "expected a duration"),
        (["retries", "a.jsonl", "--rate", "0"], "expected 0.001 to 10,000 a second"),
        (["retries", "a.jsonl", "--rate", "9000", "--length", "24h"], "no more than 10 million"),
    ],
)
def test_what_cannot_be_made_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trace", "synth", *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "→" in told


def test_the_shapes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "synth", "list"]) == 0
    assert set(SHAPES) <= set(capsys.readouterr().out.split())
