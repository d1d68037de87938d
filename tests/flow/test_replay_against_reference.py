"""A replay is held against what the trace's own fleet had in flight; the scripted engine is exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run
from memplan.recording import read_run
from memplan.stats.summarise import summarise

MODEL = """\
memplan: 1
name: pencil
engine: scripted
settings: {block_tokens: 16, max_requests: 32, max_kv_tokens: 65536, max_batch_tokens: 2048}
script:
  weights: 200MiB
  runtime: 100MiB
  kv_bytes_per_token: 1024
  prefill_tokens_per_s: 100000
  decode_s_per_step: 1ms
  activation_bytes_per_token: 2048
  vocab_tokens: 1000
  context_tokens: 4096
"""
FLEET = "prefill=10000,tpot=20ms"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.yaml").write_text(MODEL)
    rows = [
        {
            "timestamp": at * 130 + (at % 7) * 40,
            "input_length": 100 + at % 5 * 300,
            "output_length": 40,
        }
        for at in range(300)
    ]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def replayed(
    folder: Path, capsys: pytest.CaptureFixture[str], *options: str, code: int = 0
) -> dict[str, Any]:
    trace, out = str(folder / "trace.jsonl"), str(folder / "run")
    command = ["replay", trace, "--out", out, "--json", "--force", "--reference", FLEET, *options]
    assert run(command) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_probe_takes_the_lengths_of_the_rows_that_are_replayed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--pace", "--dilation", "auto", "--limit", "1")
    replayed(folder, capsys, *options)
    (only,) = read_run(folder / "run").requests
    probed = read_run(folder / "run-probe").requests
    assert {one.input_tokens for one in probed} == {only.input_tokens} == {100}


def fit_of(document: dict[str, Any]) -> dict[str, Any]:
    fit: dict[str, Any] = document["fidelity"]["against_reference"]
    return fit


def codes(document: dict[str, Any]) -> set[str]:
    return {finding["code"] for finding in document["findings"]}


def test_a_paced_engine_reaches_the_states_of_the_reference(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(folder, capsys, "--pace")
    fit = fit_of(document)
    assert fit["is_paced"]
    # 0.13 s apart, each in service for 0.07 s of prefill on average and 0.8 s of decoding
    assert fit["running"]["reference"]["mean"] == pytest.approx(0.87 / 0.13, rel=0.03)
    assert fit["running"]["w1_ratio"] < 0.05
    assert fit["kv_tokens"]["w1_ratio"] < 0.05
    assert not {"no_reference_concurrency", "states_apart", "not_the_trace"} & codes(document)


def test_a_fast_engine_without_a_pace_is_not_the_trace_and_the_run_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(folder, capsys, code=6)
    fit = fit_of(document)
    assert fit["running"]["reached"]["mean"] < 0.5 * fit["running"]["reference"]["mean"]
    assert "not_the_trace" in codes(document)
    assert run(["report", str(folder / "run"), "--out", str(folder / "page.html")]) == 0
    page = (folder / "page.html").read_text()
    assert "Is it the trace?" in page
    assert "This is not the trace" in page
    assert "How many fit" not in page
    assert run(["plan", str(folder / "run")]) == 5


def test_dilation_and_scaled_lengths_leave_the_states_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fit_of(replayed(folder, capsys, "--pace"))
    scaled = fit_of(replayed(folder, capsys, "--pace", "--dilation", "3", "--length-scale", "0.5"))
    for quantity in ("running", "kv_tokens"):
        before, after = plain[quantity]["reference"], scaled[quantity]["reference"]
        assert after["mean"] == pytest.approx(before["mean"], rel=0.01)
        assert scaled[quantity]["w1_ratio"] < 0.06


def test_windows_are_replayed_where_the_whole_takes_too_long(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(folder, capsys, "--pace", "--within", "25s")
    fit = fit_of(document)
    assert len(fit["windows"]) == 5
    assert 5 < fit["judged_s"] < 25
    assert fit["running"]["w1_ratio"] < 0.1


def test_windows_are_parts_of_one_replay_and_no_repeats_of_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed(folder, capsys, "--pace", "--within", "25s")
    recording = read_run(folder / "run")
    summary = summarise(recording)
    done = sum(one.outcome == "completed" for one in recording.outcomes.values())
    assert len({one.wave for one in recording.requests}) == 5
    for figures in (
        [one.cpu.attributed for one in summary.classes],
        [one.e2e_s for one in summary.classes],
    ):
        assert sum(found.n for found in figures) == done
        assert {found.p50.replays_low for found in figures} == {None}


def test_a_probe_finds_the_dilation_at_which_a_slow_engine_keeps_up(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = MODEL.replace("100000", "2000").replace("1ms", "30ms")
    (folder / "model.yaml").write_text(slow)
    assert fit_of(replayed(folder, capsys, "--pace", code=6))["running"]["w1_ratio"] > 0.25
    document = replayed(folder, capsys, "--pace", "--dilation", "auto")
    assert document["fidelity"]["dilation"] > 2
    assert fit_of(document)["running"]["w1_ratio"] < 0.1
    assert (folder / "run-probe" / "header.json").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--pace",), "--pace: only with a reference"),
        (("--within", "1min"), "--within: only with a reference"),
        (("--reference", "fast"), "--reference: got 'fast'"),
        (("--reference", "observed"), "300 of 300 rows say nothing"),
        (("--reference", FLEET, "--repeat", "2"), "--reference: it is for one engine"),
        (("--reference", FLEET, "--within", "soon"), "--within: "),
        (("--dilation", "auto"), "--dilation auto: it is the one at which"),
        (("--dilation", "slow"), "--dilation: got 'slow'"),
        (("--share", "2/3"), "--share: got '2/3'"),
    ],
)
def test_what_cannot_be_asked_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    assert run(["replay", str(folder / "trace.jsonl"), *options]) == 2
    assert told in capsys.readouterr().err


def test_windows_in_which_little_comes_count_the_time_without_any(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wave ends with its last request, and its window's rest is not the next wave's time."""
    rows = [
        {"timestamp": at * 9000 + at % 3 * 700, "input_length": 400, "output_length": 60}
        for at in range(120)
    ]
    (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = replayed(folder, capsys, "--pace", "--within", "60s")
    fit = fit_of(document)
    assert len(fit["windows"]) >= 3
    assert fit["running"]["reference"]["mean"] < 0.5
    assert fit["running"]["w1_ratio"] < 0.05
    assert fit["kv_tokens"]["w1_ratio"] < 0.1
    windows = read_run(folder / "run").header.workload.windows
    assert fit["judged_s"] == pytest.approx(
        sum(one.end_s - one.start_s for one in windows), rel=0.01
    )
