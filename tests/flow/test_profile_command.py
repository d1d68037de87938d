"""A profile with a matrix and a stack through the real CLI: measured, killed, resumed, reported."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run

MIB = 2**20
MODEL = """\
memplan: 1
name: pencil
engine: scripted
settings: {max_requests: 4, max_kv_tokens: 4096, max_batch_tokens: 512}
classes:
  - {name: short, when: {input_tokens: "<512"}}
  - {name: long, when: {input_tokens: ">=512"}}
matrix: {max_batch_tokens: [512, 480], block_tokens: [16, 64]}
stack:
  - {name: small-steps, max_batch_tokens: 64}
  - {name: fewer, max_requests: 2}
script: {weights: 200MiB, runtime: 100MiB, kv_bytes_per_token: 1024, prefill_tokens_per_s: 1000,
         decode_s_per_step: 100ms, activation_bytes_per_token: 20480, vocab_tokens: 1000,
         context_tokens: 2048}
"""
VARIANTS = [
    "base",
    "max_batch_tokens-512-block_tokens-64",
    "max_batch_tokens-480-block_tokens-16",
    "max_batch_tokens-480-block_tokens-64",
    "stack-1-small-steps",
    "stack-2-fewer",
]
WAIT_S = 30.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(MODEL)
    return path


Profiled = Callable[..., dict[str, Any]]


@pytest.fixture
def profiled(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Profiled:
    def measure(*options: str) -> dict[str, Any]:
        capsys.readouterr()
        out = str(tmp_path / "out")
        arguments = ["profile", str(model), "--out", out, "--repeats", "2", "--json"]
        assert run([*arguments, *options]) == 0
        said = capsys.readouterr()
        document: dict[str, Any] = json.loads(said.out)
        document["said"] = " ".join(said.err.split())
        return document

    return measure


def test_the_figures_of_a_matrix_and_a_stack_are_those_of_pencil_and_paper(
    profiled: Profiled,
) -> None:
    document = profiled()
    assert [one["variant"] for one in document["variants"]] == VARIANTS
    compared = {one["variant"]: one for one in document["comparison"]["variants"]}
    base = compared["base"]

    # The long prompt, 2032 tokens in steps of 512: after the last, of 496, it holds 2032 KiB of KV,
    # and moved 496 tokens of 20 KiB; the one before held less by more than it moved more.
    assert base["peak_bytes"]["value"] == 300 * MIB + (2032 + 496 * 20) * 1024
    assert base["idle_bytes"] == {
        "value": 300 * MIB, "low": 300 * MIB, "high": 300 * MIB, "n": 5,
    }  # fmt: skip
    assert base["decode_step_s"]["value"] == pytest.approx(0.1)
    assert base["decode_requests"] == base["requests_at_once"] == 4
    assert base["first_token_s"]["value"] == pytest.approx(0.768)
    assert base["first_token_tokens"] == 768
    assert base["first_token_s"]["n"] == 2
    # Four prompts of 256 tokens are 1.024 s; 16 tokens each, the first two a step before the rest.
    assert base["batch_s"]["value"] == pytest.approx(1.024 + 1.7)
    assert base["output_tokens_per_s"] == pytest.approx(64 / 2.724)
    assert base["perplexity_ratio"] is None and base["verdict"] is None

    small = compared["max_batch_tokens-480-block_tokens-16"]
    assert small["changes"] == {"max_batch_tokens": 480}
    # In steps of 480: 1920 tokens after the fourth, and 112 more in the fifth.
    assert small["peak_bytes"]["value"] == 300 * MIB + (1920 + 480 * 20) * 1024
    assert compared["stack-1-small-steps"]["verdict"] == "too_slow"
    assert compared["stack-2-fewer"]["verdict"] is None, "no first: it stands on another"
    assert compared["stack-2-fewer"]["decode_step_s"] is None, "it never ran four at once"

    steps = document["comparison"]["stack"]
    assert [step["variant"] for step in steps] == ["base", *VARIANTS[-2:]]
    for below, step in pairwise(steps):
        assert step["peak_bytes"] - below["peak_bytes"] == step["peak_change_bytes"]
    assert steps[0]["peak_change_bytes"] is None


def test_the_answer_names_what_it_would_cost(
    profiled: Profiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = profiled()["comparison"]["first"]
    assert first["variant"] is None
    assert first["text"].startswith("Nothing to turn on first is shown")
    assert (
        "stack-1-small-steps takes 8.48 MiB off the peak and is 40 % slower (whole batch)"
        in first["text"]
    )
    assert run(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Nothing to turn on first is shown" in page
    assert 'id="stack-waterfall"' in page and 'id="variants-front"' in page
    assert run(["report", str(tmp_path / "out"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert [one["variant"] for one in again["variants"]] == VARIANTS, "in the order of the file"


def test_a_finished_profile_is_kept_as_it_is(profiled: Profiled) -> None:
    first, second = profiled(), profiled("--resume")
    assert second["said"].count("kept: it is finished") == len(VARIANTS)
    assert "measuring" not in second["said"]
    del first["said"], second["said"]
    assert first == second


def ids_of(document: dict[str, Any]) -> dict[str, str]:
    return {one["variant"]: one["run_id"] for one in document["variants"]}


def test_only_what_is_not_finished_or_has_changed_is_measured_again(
    profiled: Profiled, model: Path, tmp_path: Path
) -> None:
    first = profiled()
    out = tmp_path / "out"
    events = out / VARIANTS[1] / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(lines[:-1]))  # as if killed
    (out / VARIANTS[2] / "header.json").write_text("{")
    header = out / VARIANTS[3] / "header.json"
    header.write_text(header.read_text().replace('"memplan_version":"', '"memplan_version":"0.0.'))
    model.write_text(
        MODEL.replace("{name: fewer, max_requests: 2}", "{name: fewer, max_requests: 3}")
    )
    second = profiled("--resume")
    before, after = ids_of(first), ids_of(second)
    assert [name for name in VARIANTS if before[name] == after[name]] == ["base", VARIANTS[4]]
    said = second["said"]
    assert f"pencil {VARIANTS[1]} (variant 2 of 6): measured again: it was cut off" in said
    assert "(variant 3 of 6): measured again: " in said and "cannot be read" in said
    assert "(variant 4 of 6): measured again: memplan 0.0." in said
    assert "(variant 6 of 6): measured again: settings.max_requests is another now" in said


def test_another_ladder_is_measured_again(profiled: Profiled) -> None:
    profiled("--variant", "base", "--variant", VARIANTS[1])
    again = profiled("--variant", "base", "--longest", "256", "--resume")
    assert "measured again: its ladder is another one" in again["said"]
    rungs = [rung["tokens_per_request"] for rung in again["variants"][0]["rungs"]]
    assert max(rungs) == 256 + 16
    assert {one["input_tokens"] for one in again["variants"][0]["solo"]} == {256}


def test_a_profile_killed_with_signal_9_can_be_read_and_goes_on(
    model: Path, tmp_path: Path, profiled: Profiled, capsys: pytest.CaptureFixture[str]
) -> None:
    model.write_text(MODEL.replace("block_tokens: [16, 64]", "block_tokens: [16, 32, 48, 64, 80]"))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "memplan", "profile", str(model), "--out", str(out),
         "--repeats", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline_s = time.monotonic() + WAIT_S
    while len(list(out.glob("*/header.json"))) < 3:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    process.kill()
    process.wait()

    assert run(["report", str(out), "--json"]) == 0
    killed = json.loads(capsys.readouterr().out)
    assert 3 <= len(killed["variants"]) < 12
    resumed = profiled("--resume")
    assert len(resumed["variants"]) == 12
    before, after = ids_of(killed), ids_of(resumed)
    kept = [name for name in before if before[name] == after[name]]
    assert kept == list(before)[: len(kept)] and len(kept) >= 2
    assert resumed["said"].count("kept: it is finished") == len(kept)
    assert not any("run_cut_off" in str(one["findings"]) for one in resumed["variants"])


def test_without_resume_what_is_there_is_refused_before_anything_is_measured(
    profiled: Profiled, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiled("--variant", VARIANTS[5])
    assert run(["profile", str(model), "--out", str(tmp_path / "out")]) == 5
    assert "add --resume to keep finished variants" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [VARIANTS[5]]


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--resume"], "which profile is to go on?"), (["--resume", "--force"], "--resume")],
)
def test_resume_needs_a_folder_and_no_force(
    model: Path, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--out", str(tmp_path / "out")] if "--force" in options else []
    assert run(["profile", str(model), *where, *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_progress_says_which_variant_of_how_many_and_what_is_left(profiled: Profiled) -> None:
    said = profiled()["said"]
    assert "pencil base (variant 1 of 6): measuring" in said
    assert "pencil stack-2-fewer (variant 6 of 6): measuring; about " in said
    assert "for all that is left" in said
