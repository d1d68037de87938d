"""A short replay of the real trace on the real model, through the real CLI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run
from memplan.recording import read_run

pytestmark = pytest.mark.live
MB = 10**6


WORKLOADS = Path(__file__).parents[2] / "workloads"


def model_of_one_thread(folder: Path, *, more: str = "") -> str:
    """The built-in model.yaml: two threads wait for each other while other tests run beside them."""
    text = (WORKLOADS / "smollm2.yaml").read_text()
    assert "threads: 2" in text
    (folder / "model.yaml").write_text(text.replace("threads: 2", "threads: 1") + more)
    return str(folder / "model.yaml")


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    out = folder / "run"
    trace = WORKLOADS / "azure_code_2023.slice.csv"
    model = model_of_one_thread(folder)
    options = ["--model", model, "--limit", "12", "--length-scale", "0.125"]
    assert run(["replay", str(trace), *options, "--out", str(out)]) == 0
    return out


def document(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["report", str(out), "--json"]) == 0
    read: dict[str, Any] = json.loads(capsys.readouterr().out)
    return read


def test_tokens_run_equal_the_traces_after_the_stated_scaling(replayed: Path) -> None:
    recording = read_run(replayed)
    assert len(recording.requests) == 12
    for request in recording.requests:
        outcome = recording.outcomes[request.request_id]
        assert outcome.outcome == "completed"
        assert outcome.input_tokens_run == request.input_tokens
        assert outcome.output_tokens_run == request.output_tokens
        assert request.trace_input_tokens is not None
        assert abs(request.input_tokens - request.trace_input_tokens / 8) <= 0.5 or (
            request.input_tokens == 1
        )


def test_no_sample_is_above_the_reported_peak(
    replayed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = read_run(replayed)
    sampled = max(s.values["host.rss"] for s in recording.samples)
    assert document(replayed, capsys)["process"]["peak_bytes"] >= sampled


def test_the_attribution_adds_up_and_leaves_at_most_2_percent_open(
    replayed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = document(replayed, capsys)
    parts, peak = read["process"]["attribution"], read["process"]["attribution_of"]
    assert sum(parts.values()) == peak["total_bytes"]
    assert abs(parts["unexplained_bytes"]) <= 0.02 * peak["total_bytes"]
    assert "attribution_open" not in {finding["code"] for finding in read["findings"]}
    assert parts["weights_bytes"] == pytest.approx(269 * MB, rel=0.01)
    assert sum(peak["runtime_parts_bytes"].values()) == parts["runtime_bytes"]
    assert {"interpreter", "library heap", "library files"} <= set(peak["runtime_parts_bytes"])


def test_the_tensors_of_a_prompt_step_are_told_apart_by_module(replayed: Path) -> None:
    """The attention of one layer needs most: its queries, keys and values beside the residual."""
    steps = [s for s in read_run(replayed).segments if s.prefill_tokens > 100]
    largest = max(steps, key=lambda s: sum(s.tensors.values()))
    assert largest.peak_module is not None
    assert largest.peak_module.startswith(("model.layers.", "lm_head"))
    hidden, bf16 = 576, 2
    tokens = largest.prefill_tokens + largest.decode_tokens
    assert largest.tensors["model.embed_tokens"] == pytest.approx(
        tokens * hidden * bf16, rel=0.02, abs=4096
    )
    assert sum(largest.tensors.values()) <= largest.peak["engine.tensors"]


def test_measuring_costs_the_engine_less_than_one_percent(replayed: Path) -> None:
    steps = [s for s in read_run(replayed).segments if s.kind == "step"]
    spent_s = sum(s.close_s for s in steps)
    busy_s = sum(s.end_s - s.start_s for s in steps)
    assert spent_s < 0.01 * busy_s


def test_planted_spikes_are_seen_in_the_torch_engine(tmp_path: Path) -> None:
    plant = "self_test: {spike: 150MB, hold: 3ms, count: 20, every: 150ms}\n"
    model_of_one_thread(tmp_path, more=plant)
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        "".join(
            json.dumps({"timestamp": i * 200, "input_length": 120, "output_length": 8}) + "\n"
            for i in range(24)
        )
    )
    out = tmp_path / "run"
    assert run(["replay", str(trace), "--out", str(out)]) == 0
    recording = read_run(out)
    assert len(recording.planted) == 20
    # The oracle: without a spike this engine and these small requests stay below this line.
    quiet = recording.engines[0].idle["host.rss"] + 100 * MB
    seen = [
        any(
            s.peak["host.hwm"] > quiet
            for s in recording.segments
            if s.start_s <= spike.gone_s and s.end_s >= spike.resident_s
        )
        for spike in recording.planted
    ]
    assert sum(seen) == 20


def test_the_same_lengths_reach_the_kernels_own_mark_without_resets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests arrive at once, so both runs make the same batches."""
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 400, "output_length": 4}\n' * 4)
    options = ["replay", str(trace), "--model", model_of_one_thread(tmp_path), "--out"]
    assert run([*options, str(tmp_path / "reset")]) == 0
    monkeypatch.setenv("MEMPLAN_KEEP_HIGH_WATER", "1")
    assert run([*options, str(tmp_path / "kept")]) == 0
    by_segments = max(s.peak["host.hwm"] for s in read_run(tmp_path / "reset").segments)
    kept = read_run(tmp_path / "kept").segments
    by_kernel = max(s.gauges["host.hwm_life"] for s in kept)
    # Two processes of the same work differ by a few MB of heap; the exact comparison, with memory
    # known to the byte, is in tests/truth.
    assert by_segments == pytest.approx(by_kernel, rel=0.02)
