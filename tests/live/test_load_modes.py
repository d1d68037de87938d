"""The real model mapped and read into memory: same tokens, the same resident bytes, other truths."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from builders import request

from memplan.clock import MonotonicClock
from memplan.engines import Ended, SegmentClosed, open_engine
from memplan.records import EngineFacts, RequestRecord, Segment
from memplan.specs import Deployment
from memplan.units import MIB
from memplan.workload.prompts import prompt_token_ids

pytestmark = pytest.mark.live

# The largest weight: 49,152 tokens of 576 numbers in bf16.
EMBEDDING_BYTES = 49_152 * 576 * 2
ASKED = request(input_tokens=40, output_tokens=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    facts: EngineFacts
    answer: RequestRecord
    segments: tuple[Segment, ...]
    """Until the answer came."""


def started(deployment: Deployment, mode: str, log: Path, **changed: Any) -> Started:
    settings = deployment.settings.model_copy(
        update={"device": "cpu", "weights": "bf16", "threads": 1, "load": mode, **changed}
    )
    clock = MonotonicClock()
    engine = open_engine(
        replace(deployment, settings=settings),
        clock=clock,
        epoch_s=clock.now_s(),
        engine_start=0,
        log=log,
    )
    try:
        facts = engine.start()
        engine.submit(ASKED, prompt_token_ids(ASKED, vocab_tokens=facts.vocab_tokens))
        deadline_s = time.monotonic() + 60
        segments: list[Segment] = []
        while time.monotonic() < deadline_s:
            for event in engine.poll(1.0):
                if isinstance(event, SegmentClosed):
                    segments.append(event.segment)
                if isinstance(event, Ended):
                    return Started(facts=facts, answer=event.record, segments=tuple(segments))
    finally:
        engine.stop()
    raise AssertionError("no answer in a minute")


@pytest.fixture(scope="module")
def modes(smollm2: Deployment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Started, Started]:
    folder = tmp_path_factory.mktemp("load")
    mapped, read = (started(smollm2, mode, folder / f"{mode}.log") for mode in ("mapped", "read"))
    return mapped, read


def test_the_tokens_are_the_same(modes: tuple[Started, Started]) -> None:
    mapped, read = modes
    assert mapped.answer.outcome == read.answer.outcome == "completed"
    assert mapped.answer.output_digest == read.answer.output_digest


def test_read_weights_are_private_and_map_no_file(modes: tuple[Started, Started]) -> None:
    mapped, read = (one.facts for one in modes)
    assert mapped.settings["load_mode"] == "mapped safetensors"
    assert read.settings["load_mode"] == "safetensors read into memory"
    assert read.weights_mapped_bytes == 0
    assert mapped.weights_mapped_bytes == pytest.approx(mapped.weights_bytes, rel=0.001)
    assert read.idle["engine.weight_files_resident"] == 0
    # Small weights may lie in what loading left free in the heap.
    in_use = [one.idle["host.anon"] - one.idle["host.heap_free"] for one in (read, mapped)]
    assert in_use[0] - in_use[1] == pytest.approx(read.weights_bytes, rel=0.01)
    assert read.idle["host.rss"] == pytest.approx(mapped.idle["host.rss"], rel=0.03)


def test_reading_peaks_one_weight_above_what_stays(modes: tuple[Started, Started]) -> None:
    read = modes[1].facts
    assert read.load_peak["host.hwm"] <= read.loaded["host.rss"] + EMBEDDING_BYTES + 4 * MIB


def test_a_ready_engine_says_what_it_is_charged_and_what_was_cached(
    modes: tuple[Started, Started],
) -> None:
    for one in modes:
        facts = one.facts
        assert facts.start["engine.weight_files"] == pytest.approx(facts.weights_bytes, rel=0.001)
        cached = facts.start["engine.weight_files_cached"]
        assert 0 <= cached <= facts.start["engine.weight_files"]
        assert facts.idle["host.pss"] <= facts.idle["host.rss"] + 4 * MIB
        if facts.settings["cgroup"].startswith("none"):
            pytest.skip(facts.settings["cgroup"])
        assert facts.load_peak["cgroup.peak"] >= facts.idle["cgroup.current"] - MIB
        assert facts.idle["cgroup.anon"] == pytest.approx(facts.idle["host.anon"], rel=0.02)
    second = modes[1].facts  # the first one has read the file
    assert second.start["engine.weight_files_cached"] >= 0.9 * second.weights_bytes
