"""The real CLI over the scripted engine and clock, held against figures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run

MIB = 2**20
SCRIPT = """\
memplan: 1
name: pencil
engine: scripted
settings: {block_tokens: 16, max_requests: 4, max_kv_tokens: 4096, max_batch_tokens: 512}
classes:
  - {name: short, when: {input_tokens: "<512"}}
  - {name: long, when: {input_tokens: ">=512"}}
script:
  weights: 200MiB
  runtime: 100MiB
  kv_bytes_per_token: 1024
  prefill_tokens_per_s: 1000
  decode_s_per_step: 100ms
  activation_bytes_per_token: 2048
  vocab_tokens: 1000
  context_tokens: 2048
"""
TWO_REQUESTS = (
    '{"timestamp": 0, "input_length": 100, "output_length": 3}\n'
    '{"timestamp": 10000, "input_length": 600, "output_length": 1}\n'
)


@pytest.fixture
def pencil(tmp_path: Path) -> Path:
    (tmp_path / "model.yaml").write_text(SCRIPT)
    (tmp_path / "trace.jsonl").write_text(TWO_REQUESTS)
    return tmp_path


def replayed(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    trace, out = str(folder / "trace.jsonl"), str(folder / "run")
    assert run(["replay", trace, "--out", out, "--json", "--force", *options]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_figures_of_two_requests_are_those_of_pencil_and_paper(
    pencil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(pencil, capsys)
    short, long = document["classes"]

    idle = 300 * MIB
    # Request 1: 100 prompt tokens in one step of 0.1 s, then two decode steps of 0.1 s. It holds
    # ceil(102 / 16) = 7 blocks of 16 KiB; its largest step moved 100 tokens of 2 KiB activations.
    assert short["latency"]["ttft_s"]["p50"] == pytest.approx(0.1)
    assert short["latency"]["tpot_s"]["p50"] == pytest.approx(0.1)
    assert short["latency"]["e2e_s"]["p50"] == pytest.approx(0.3)
    assert short["memory"]["cpu"]["attributed"]["peak_bytes"] == 100 * 1024 + 100 * 2048
    assert short["memory"]["cpu"]["co_resident"]["peak_bytes"] == idle + 7 * 16384 + 100 * 2048
    # Request 2: steps of 512 and 88 tokens; after the first it holds 32 blocks, after both 38.
    assert long["latency"]["e2e_s"]["p50"] == pytest.approx(0.6)
    assert long["memory"]["cpu"]["attributed"]["peak_bytes"] == 512 * 1024 + 512 * 2048
    assert document["process"]["idle_bytes"] == idle
    assert document["process"]["peak_bytes"] == idle + 32 * 16384 + 512 * 2048
    assert sum(document["process"]["attribution"].values()) == document["process"]["peak_bytes"]
    assert document["process"]["attribution"]["unexplained_bytes"] == 0
    assert document["schema"] == "memplan.replay/1"
    assert document["fidelity"]["peak_in_flight"] == 1
    assert document["fidelity"]["schedule_lag_s"]["p50"] == 0


def test_a_trace_that_is_replayed_again_has_the_same_figures_and_says_how_often(
    pencil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = replayed(pencil, capsys)
    thrice = replayed(pencil, capsys, "--repeat", "3")
    header = json.loads((pencil / "run" / "header.json").read_text())
    assert header["repeats"] == 3
    for one, three in zip(once["classes"], thrice["classes"], strict=True):
        assert (one["requests"], three["requests"], three["completed"]) == (1, 3, 3)
        for rule in ("co_resident", "co_resident_by_request", "attributed"):
            figure, again = one["memory"]["cpu"][rule], three["memory"]["cpu"][rule]
            assert (figure["replays"], again["replays"]) == (1, 3)
            assert (figure["n"], again["n"]) == (1, 1)
            assert figure["p50_bytes"] == again["p50_bytes"]
            # A virtual clock: no replay differs from another.
            assert again["p50_replays_low_bytes"] == again["p50_bytes"]
    assert thrice["fidelity"]["schedule_lag_s"]["n"] == 6
    assert thrice["fidelity"]["schedule_lag_s"]["peak"] == pytest.approx(0, abs=1e-9)
    assert thrice["fidelity"]["peak_in_flight"] == 1
    assert thrice["throughput"]["completed_per_s"] == pytest.approx(
        once["throughput"]["completed_per_s"]
    )


def test_two_runs_give_the_same_document(pencil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = replayed(pencil, capsys), replayed(pencil, capsys)
    for document in (first, second):
        del document["overhead"]
    assert first.keys() == second.keys()
    assert first["classes"] == second["classes"]
    assert first["process"] == second["process"]


def test_report_reads_the_same_figures_from_the_folder(
    pencil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed_document = replayed(pencil, capsys)
    assert run(["report", str(pencil / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == replayed_document


def test_length_scale_and_dilation_change_what_is_sent(
    pencil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(pencil, capsys, "--length-scale", "0.5", "--dilation", "2")
    short = document["classes"][0]
    schedule = (pencil / "run" / "schedule.jsonl").read_text().splitlines()
    second = json.loads(schedule[1])
    assert (second["input_tokens"], second["trace_input_tokens"]) == (300, 600)
    assert second["class_name"] == "long", "classes are decided on the trace's own lengths"
    assert second["arrival_s"] == pytest.approx(20.0)
    assert short["latency"]["ttft_s"]["p50"] == pytest.approx(0.05)
    assert document["fidelity"]["dilation"] == 2


def test_withheld_percentiles_are_null_and_have_a_finding(
    pencil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(pencil, capsys)
    assert document["classes"][0]["memory"]["cpu"]["attributed"]["p99_bytes"] is None
    assert "percentile_withheld" in {finding["code"] for finding in document["findings"]}


def test_a_prompt_longer_than_the_context_is_refused_before_anything_runs(
    pencil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pencil / "trace.jsonl").write_text(
        '{"timestamp": 0, "input_length": 3000, "output_length": 5}\n'
    )
    assert run(["replay", str(pencil / "trace.jsonl"), "--out", str(pencil / "run")]) == 2
    said = capsys.readouterr().err
    assert "1 of 1 requests are longer than the context of 2,048 tokens" in said
    assert "--length-scale 0.681" in said
    assert not (pencil / "run").exists()


def test_oversize_reject_sends_them_and_records_why(
    pencil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pencil / "trace.jsonl").write_text(
        TWO_REQUESTS + '{"timestamp": 11000, "input_length": 3000, "output_length": 5}\n'
    )
    document = replayed(pencil, capsys, "--oversize", "reject")
    long = document["classes"][1]
    assert (long["requests"], long["completed"], long["rejected"]) == (2, 1, 1)
    assert "1 × exceeds_context" in str(document["findings"])


def test_profile_measures_every_variant_into_its_own_folder(
    workloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "profile"
    arguments = ["profile", str(workloads / "scripted.yaml"), "--out", str(out), "--json"]
    assert run([*arguments, "--repeats", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.profile/1"
    assert sorted(p.name for p in out.iterdir()) == ["base", "half-the-requests"]
    assert run(["report", str(out)]) == 0
    assert (out / "report.html").stat().st_size > 1_000_000


def test_the_terminal_result_is_on_stdout_and_the_progress_on_stderr(
    pencil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out = str(pencil / "trace.jsonl"), str(pencil / "run")
    assert run(["replay", trace, "--out", out]) == 0
    said = capsys.readouterr()
    assert "what each request class costs in memory" in said.out
    assert "starting the engine" in said.err
    assert f"run: {out}" in said.err


def test_nothing_is_overwritten_without_force(
    pencil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out = str(pencil / "trace.jsonl"), str(pencil / "run")
    assert run(["replay", trace, "--out", out]) == 0
    assert run(["replay", trace, "--out", out]) == 5
    assert "add --force to replace the run" in capsys.readouterr().err
    assert run(["report", out]) == 0
    assert run(["report", out]) == 2
    assert run(["report", out, "--force"]) == 0
