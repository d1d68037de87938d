"""Runs held against each other and against what was asked for, through the real CLI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memplan.cli import run

MODEL = """\
memplan: 1
name: gate
engine: scripted
settings: {{block_tokens: 16, max_requests: 8, max_kv_tokens: 65536, max_batch_tokens: 512}}
classes:
  - {{name: all, {limits}}}
script: {{prefill_tokens_per_s: 100000, decode_s_per_step: 1ms, kv_bytes_per_token: {kv}}}
"""
KEPT = "budget: {cpu: 8MiB}, slo: {e2e: 10s}"


def measured(
    folder: Path, name: str, *, limits: str = KEPT, kv: int = 1024, requests: int = 400
) -> Path:
    (folder / f"{name}.yaml").write_text(MODEL.format(limits=limits, kv=kv))
    trace = folder / f"{requests}.jsonl"
    trace.write_text(
        "".join(
            f'{{"timestamp": {at * 50}, "input_length": {100 + at % 7}, "output_length": 3}}\n'
            for at in range(requests)
        )
    )
    out = folder / name
    assert (
        run(["replay", str(trace), "--model", str(folder / f"{name}.yaml"), "--out", str(out)]) == 0
    )
    return out


def test_a_run_within_its_budget_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = measured(tmp_path, "kept")
    capsys.readouterr()
    assert run(["check", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert {one["outcome"] for one in found["limits"]} == {"kept"}


def test_a_broken_budget_fails_with_its_own_code_and_is_written_for_a_pull_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = measured(tmp_path, "kept")
    strict = tmp_path / "strict.yaml"
    strict.write_text(MODEL.format(limits="budget: {cpu: 64KiB}", kv=1024))
    page = tmp_path / "check.md"
    capsys.readouterr()
    assert run(["check", str(folder), "--budget", str(strict), "--out", str(page)]) == 6
    said = capsys.readouterr()
    assert "FAILED" in said.out
    assert "all: memory budget, CPU broken" in said.err
    assert "memplan explain" in said.err
    text = page.read_text()
    assert "| all | memory budget, CPU | 64.0 KiB |" in text
    assert "**broken**" in text


def test_memory_that_grew_beyond_the_tolerance_is_a_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = measured(tmp_path, "before"), measured(tmp_path, "after", kv=2048)
    capsys.readouterr()
    assert run(["check", str(after), "--against", str(before)]) == 6
    assert "all: owned regressed by" in capsys.readouterr().err
    assert run(["check", str(before), "--against", str(before), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["outcome"] for one in found["regressions"]} == {"held"}
    assert run(["check", str(after), "--against", str(before), "--tolerance", "200%"]) == 0


def test_what_a_short_run_cannot_tell_never_passes_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = measured(tmp_path, "short", requests=3)
    capsys.readouterr()
    assert run(["check", str(folder)]) == 6
    assert "2 figures cannot be told (all); --allow-unknown passes them" in capsys.readouterr().err
    assert run(["check", str(folder), "--allow-unknown"]) == 0
    assert "unknown" in capsys.readouterr().out


def test_compare_says_what_changed_and_which_settings_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = measured(tmp_path, "before"), measured(tmp_path, "after", kv=2048)
    capsys.readouterr()
    assert run(["compare", str(before), str(after), "--out", str(tmp_path / "c.html")]) == 0
    said = capsys.readouterr().out
    assert "The same workload on the same machine." in said
    assert "more" in said
    assert "Each figure before and after" in (tmp_path / "c.html").read_text()
    assert run(["compare", str(before), str(after), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    p50 = next(one for one in found["changes"] if one["figure"] == "owned" and one["p"] == 0.5)
    # 103 prompt tokens and two more of KV, at twice the bytes a token; activations are the same.
    assert p50["difference"] == pytest.approx(105 * 1024, rel=0.05)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["check", "{run}", "--tolerance", "2"],
            "--tolerance: got '2', expected a share such as 2%",
        ),
        (["check", "{run}", "--against", "{short}"], "not the same workload"),
        (["check", "{bare}"], "there is nothing to check"),
        (["compare", "{run}", "{run}", "--out", "{run}.pdf"], "expected .html or .md"),
        (["check", "{run}", "--budget", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    folders = {
        "run": measured(tmp_path, "run"),
        "short": measured(tmp_path, "short", requests=3),
        "bare": measured(tmp_path, "bare", limits="typical: {input_tokens: 3}"),
    }
    capsys.readouterr()
    assert run([word.format(**folders) for word in words]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "→" in said


def test_a_folder_of_several_runs_is_not_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(tmp_path, "a"), measured(tmp_path, "b")
    capsys.readouterr()
    assert run(["compare", str(tmp_path), str(tmp_path / "a")]) == 2
    assert "holds 2 runs, expected one" in capsys.readouterr().err
