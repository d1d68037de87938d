"""Replicas simulated from a replay through the real CLI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run

MODEL = """\
memplan: 1
name: simulated
engine: scripted
settings: {block_tokens: 16, max_requests: 4, max_kv_tokens: 16384, max_batch_tokens: 512EXTRA}
classes:
  - {name: short, when: {input_tokens: "<512"}, slo: {ttft: 2s}}
  - {name: long, slo: {ttft: 4s}}
script: {prefill_tokens_per_s: 4000, decode_s_per_step: 20ms, kv_bytes_per_token: 100000}
"""


def replayed(folder: Path, extra: str = "", model: str = MODEL) -> Path:
    (folder / "model.yaml").write_text(model.replace("EXTRA", extra))
    rows = (
        f'{{"timestamp": {at * 700 + (at * 7919) % 500}, "input_length": '
        f'{2000 if at % 9 == 0 else 100 + at % 50}, "output_length": {20 + at % 30}}}\n'
        for at in range(200)
    )
    (folder / "trace.jsonl").write_text("".join(rows))
    asked = ["--model", str(folder / "model.yaml"), "--out", str(folder / "run")]
    assert run(["replay", str(folder / "trace.jsonl"), *asked]) == 0
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replayed(tmp_path_factory.mktemp("simulate"))


def simulated(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["simulate", str(folder / "run"), *arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_runs_own_requests_take_about_what_they_took(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = simulated(folder, capsys)
    assert found["schema"] == "memplan.simulation/1"
    assert found["requests"] == found["own_run"]["requests"] == 200
    assert found["own_run"]["e2e_ratio"] == pytest.approx(1, abs=0.15)
    assert {one["name"]: one["requests"] for one in found["classes"]} == {"long": 23, "short": 177}
    assert found["findings"] == []
    for one in found["classes"]:
        # KV alone of the longest: 2,049 tokens and 178 of 100,000 bytes.
        kv_bytes = 1e5 * (2049 if one["name"] == "long" else 198)
        assert one["owned_p99_bytes"] == pytest.approx(kv_bytes, rel=0.3)
        assert one["owned_beyond"] is None
    assert found["failed"] == 0
    assert found["what_if"] == []


def test_more_traffic_fails_and_more_replicas_carry_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = str(folder / "trace.jsonl")
    one = simulated(folder, capsys, trace, "--rate", "8")
    many = simulated(folder, capsys, trace, "--rate", "8", "--replicas", "8")
    assert one["requests_per_s"] == pytest.approx(8)
    assert one["failed"] > 50
    assert one["busy_share"] > 0.9
    assert many["failed"] < one["failed"] / 10
    helps = {each["name"]: each["failed"] for each in one["what_if"]}
    assert one["what_if"][0]["failed"] == min(helps.values())
    assert helps["twice the replicas"] < one["failed"]
    assert sum(each["late"] for each in one["classes"]) == one["failed"]
    assert sum(each["failed"] for each in one["by_length"]) == one["failed"]
    assert sum(each["requests"] for each in one["by_length"]) == one["requests"]
    shares = [each["failed"] / each["requests"] for each in one["by_length"]]
    assert shares == sorted(shares, reverse=True)
    assert one["with_one_less"] is None
    seven = simulated(folder, capsys, trace, "--rate", "8", "--replicas", "7")
    assert many["with_one_less"] == seven["failed"]


def test_what_is_asked_of_memory_beyond_the_run_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = simulated(folder, capsys, str(folder / "trace.jsonl"), "--rate", "30")
    assert found["memory"]["beyond"]["kv_bytes"] > 1
    assert found["most_running"] == 4
    assert found["peak_kv_tokens"] <= found["pool_tokens"]


def test_requests_of_several_waves_are_simulated_by_arrival(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = folder / "twice", str(folder / "model.yaml")
    asked = ["--repeat", "2", "--limit", "60", "--model", model, "--out", str(out)]
    assert run(["replay", str(folder / "trace.jsonl"), *asked]) == 0
    capsys.readouterr()
    assert run(["simulate", str(out), "--replicas", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["requests"] == 120
    # Each request comes twice at once, and the two replicas are dealt one each.
    once = simulated(folder, capsys, str(folder / "trace.jsonl"), "--limit", "60")
    assert found["classes"][0]["e2e_s"]["p50"] == pytest.approx(
        once["classes"][0]["e2e_s"]["p50"], rel=0.2
    )
    assert found["own_run"]["e2e_ratio"] == pytest.approx(1, abs=0.15)


def test_more_replicas_than_requests_stand_idle(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = simulated(folder, capsys, "--limit", "3", "--replicas", "1000")
    assert (found["replicas"], found["requests"], found["failed"]) == (1000, 3, 0)
    assert found["busy_share"] < 0.01


def test_a_page_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder / "simulated.html"
    assert run(["simulate", str(folder / "run"), "--out", str(page)]) == 0
    text = page.read_text()
    assert "1 replica keeps every objective of this traffic." in text
    assert "Nothing here was measured but the run" in text
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--rate", "0"], 2, "--rate: got 0 requests/s"),
        (["--rate", "nan"], 2, "--rate: got nan requests/s"),
        (["--limit", "1", "--rate", "3"], 2, "all come at once"),
        (["missing.csv"], 2, "missing.csv"),
        (["TRACE", "--length-scale", "0"], 2, "length"),
        (["--replicas", "0"], 2, "replicas"),
        (["--length-scale", "2"], 2, "name a TRACE"),
    ],
)
def test_wrong_input_is_one_sentence(
    folder: Path,
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [str(folder / "trace.jsonl") if one == "TRACE" else one for one in arguments]
    try:
        found = run(["simulate", str(folder / "run"), *asked])
    except SystemExit as error:  # typer's own ranges
        found = int(error.code or 0)
    assert found == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_a_trace_without_rows_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = folder / "empty.csv"
    empty.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    assert run(["simulate", str(folder / "run"), str(empty)]) == 2
    assert "empty.csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (", prefix_sharing: kept", "prefix_sharing: kept"),
        (", lanes: [{up_to_tokens: 512}, {}]", "lanes: "),
    ],
)
def test_rules_that_are_not_simulated_are_named(
    tmp_path: Path, extra: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = replayed(tmp_path, extra)
    capsys.readouterr()
    assert run(["simulate", str(made / "run")]) == 5
    assert words in capsys.readouterr().err


def test_budgets_in_flight_are_not_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = MODEL.replace("{ttft: 4s}", "{ttft: 4s}, budget: {in_flight: 1GB}")
    made = replayed(tmp_path, model=limited)
    capsys.readouterr()
    assert run(["simulate", str(made / "run")]) == 5
    assert "budget.in_flight of class long" in capsys.readouterr().err
