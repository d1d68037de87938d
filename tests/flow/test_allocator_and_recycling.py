"""The allocator and the recycling of a model.yaml, by the command that replays it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from memplan.cli import run
from memplan.engines.allocator import preload
from memplan.engines.allocator.preload import find_allocator, library_folders
from memplan.engines.embedded import EmbeddedEngine
from memplan.errors import MachineError
from memplan.specs import load_deployment

SCRIPT = "weights: 20MiB, runtime: 10MiB, kv_bytes_per_token: 4096, vocab_tokens: 1000"
MODEL = """\
memplan: 1
name: small
engine: {engine}
settings: {{max_requests: 4, max_kv_tokens: 8192, device: cpu, {settings}}}
script: {{{script}}}
"""
WAIT_S = 30.0


def write(folder: Path, engine: str, settings: str, *, requests: int) -> Path:
    (folder / "model.yaml").write_text(
        MODEL.format(engine=engine, settings=settings, script=SCRIPT)
    )
    lines = (
        json.dumps({"timestamp": 200 * n, "input_length": 200, "output_length": 3})
        for n in range(requests)
    )
    (folder / "trace.jsonl").write_text("\n".join(lines))
    return folder / "trace.jsonl"


def replayed(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert run(["replay", str(folder / "trace.jsonl"), "--out", str(folder / "run"), *options]) == 0
    return capsys.readouterr().out


def test_an_allocator_that_is_not_installed_is_one_sentence_and_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine without it cannot be passed through the command line.
    monkeypatch.setattr(preload, "library_folders", lambda: (tmp_path,))
    trace = write(tmp_path, "ballast", "allocator: jemalloc", requests=1)
    assert run(["replay", str(trace), "--out", str(tmp_path / "run")]) == 3
    err = " ".join(capsys.readouterr().err.split())
    assert "settings.allocator is jemalloc, and libjemalloc.so.2 is not installed" in err
    assert "apt-get install libjemalloc2" in err
    assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("allocator", "library"), [("jemalloc", "libjemalloc"), ("tcmalloc", "libtcmalloc")]
)
def test_the_allocator_is_mapped_into_the_engine_and_glibcs_variables_are_not_set(
    tmp_path: Path, allocator: str, library: str
) -> None:
    try:
        find_allocator(allocator, library_folders())
    except MachineError as missing:
        pytest.skip(f"{missing.message}: {missing.hint}")
    write(tmp_path, "ballast", f"allocator: {allocator}", requests=1)
    engine = EmbeddedEngine(
        load_deployment(tmp_path / "model.yaml"),
        epoch_s=time.monotonic(),
        number=0,
        log=tmp_path / "engine.log",
    )
    try:
        facts = engine.start()
        process = psutil.Process(facts.pids[0])
        assert any(library in one.path for one in process.memory_maps())
        assert "MALLOC_ARENA_MAX" not in process.environ()
    finally:
        engine.stop()


def test_a_recycled_engine_shows_in_the_document_and_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "scripted", "recycle_after_requests: 4", requests=10)
    text = replayed(tmp_path, capsys)
    assert "engine recycled" in text and "2 times" in text
    document: dict[str, Any] = json.loads(replayed(tmp_path, capsys, "--json", "--force"))
    assert document["fidelity"]["recyclings"] == 2
    assert document["fidelity"]["recycling_s"] == 0.0, "a scripted engine starts in no time"
    assert sum(one["completed"] for one in document["classes"]) == 10


def test_a_run_without_recycling_does_not_speak_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "scripted", "max_batch_tokens: 512", requests=10)
    assert "recycled" not in replayed(tmp_path, capsys)


def test_a_profile_is_not_recycled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "scripted", "recycle_after_requests: 1", requests=1)
    model, out = str(tmp_path / "model.yaml"), tmp_path / "profile"
    assert run(["profile", model, "--out", str(out), "--json"]) == 0
    capsys.readouterr()
    lines = [line for path in out.rglob("events.jsonl") for line in path.read_text().splitlines()]
    engines = [one for one in map(json.loads, lines) if one["type"] == "engine"]
    assert len(engines) > 1, "rungs of its own have fresh engines"
    assert {one["recycled_s"] for one in engines} == {None}


def engine_starts(folder: Path) -> int:
    path = folder / "events.jsonl"
    return path.read_text().count('"engine_start"') if path.exists() else 0


def test_real_engines_are_recycled_and_kill_9_between_two_leaves_a_run_that_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write(tmp_path, "ballast", "recycle_after_requests: 2", requests=200)
    memplan = subprocess.Popen(
        [sys.executable, "-m", "memplan", "replay", str(trace), "--out", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline_s = time.monotonic() + WAIT_S
    while engine_starts(tmp_path / "run") < 3 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    engines = psutil.Process(memplan.pid).children(recursive=True)
    memplan.kill()
    memplan.communicate()
    psutil.wait_procs(engines, timeout=WAIT_S)
    assert not any(one.is_running() for one in engines)

    assert run(["report", str(tmp_path / "run"), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert "run_cut_off" in {finding["code"] for finding in document["findings"]}
    assert document["fidelity"]["recyclings"] >= 2
    assert document["fidelity"]["recycling_s"] > 0
    assert sum(one["completed"] for one in document["classes"]) >= 4
