"""`memplan explain` on runs of the scripted engine, held against figures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run

MIB = 2**20
MODEL = """\
memplan: 1
name: pencil
engine: scripted
settings: {block_tokens: 16, max_requests: 4, max_kv_tokens: 4096, max_batch_tokens: 512}
classes:
  - {name: short, when: {input_tokens: "<512"}, budget: {cpu: 128KiB}}
  - {name: long, when: {input_tokens: "512..1024"}}
  - {name: huge, when: {input_tokens: ">1024"}}
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
TRACE = (
    '{"timestamp": 0, "input_length": 100, "output_length": 3}\n'
    '{"timestamp": 10000, "input_length": 600, "output_length": 1}\n'
)


@pytest.fixture
def replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "model.yaml").write_text(MODEL)
    (tmp_path / "trace.jsonl").write_text(TRACE)
    out = tmp_path / "run"
    assert run(["replay", str(tmp_path / "trace.jsonl"), "--out", str(out)]) == 0
    capsys.readouterr()
    return out


def test_the_worst_segments_are_those_of_pencil_and_paper(
    replayed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", str(replayed), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["place"]) == ("memplan.explain/1", "cpu")
    assert document["never_in_flight"] == ["huge"]
    short, long = document["classes"]
    # 100 tokens in one step of 0.1 s: 7 blocks of 16 KiB, and 2 KiB of activations a token.
    assert short["segment"]["end_s"] - short["segment"]["start_s"] == pytest.approx(0.1)
    assert short["attribution"] == {
        "weights_bytes": 200 * MIB,
        "kv_bytes": 7 * 16384,
        "activations_bytes": 100 * 2048,
        "runtime_bytes": 100 * MIB,
        "allocator_slack_bytes": 0,
        "page_cache_bytes": 0,
        "unexplained_bytes": 0,
    }
    (held,) = short["in_flight"]
    assert held["owned_bytes"] == 100 * 1024 + 100 * 2048
    assert (held["input_tokens"], held["output_tokens"]) == (100, 3)
    saved = {one["code"]: one["saves_bytes"] for one in short["suggestions"]}
    assert saved == {"over_budget": 300 * 1024 - 128 * 1024, "max_batch_tokens": 50 * 2048}
    # The second request's first step moved 512 tokens into 32 blocks.
    assert sum(long["attribution"].values()) == 300 * MIB + 32 * 16384 + 512 * 2048
    assert long["segment"]["prefill_tokens"] == 512


def test_the_terminal_says_when_who_and_what_to_change(
    replayed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(["explain", str(replayed)]) == 0
    said = capsys.readouterr().out
    assert "pencil: why each request class peaked" in said
    assert "Never in flight, so not explained: huge." in said
    assert "short: peaked at 300.3 MiB" in said
    assert "max_batch_tokens: 50 (now 512)" in said
    assert "exceeded by 172.0 KiB" in said


def test_a_profiles_folder_is_explained_variant_by_variant(
    workloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "profile")
    assert run(["profile", str(workloads / "scripted.yaml"), "--out", out, "--repeats", "1"]) == 0
    capsys.readouterr()
    assert run(["explain", out, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.runs/1"
    assert [one["variant"] for one in document["runs"]] == ["base", "half-the-requests"]
    assert all(one["classes"] for one in document["runs"])


def test_a_folder_without_a_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(tmp_path)]) == 5
    assert "→" in capsys.readouterr().err
