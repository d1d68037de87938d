"""Runs that end badly leave a run that can be read, with a finding, and no engine behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from memplan.cli import run

MODEL = """\
memplan: 1
name: ballast
engine: ballast
settings: {max_requests: 4, max_kv_tokens: 8192, device: cpu}
script: {weights: 20MiB, runtime: 10MiB, kv_bytes_per_token: 4096, prefill_tokens_per_s: 4000,
         decode_s_per_step: 20ms, activation_bytes_per_token: 1024, vocab_tokens: 1000,
         context_tokens: 4096}
"""
LINES = "".join(
    json.dumps({"timestamp": i * 200, "input_length": 200, "output_length": 10}) + "\n"
    for i in range(100)
)
WAIT_S = 30.0


class Replay:
    """A replay of 20 s in a process of its own, over real memory."""

    def __init__(self, folder: Path, preexec: Callable[[], None] | None = None) -> None:
        (folder / "model.yaml").write_text(MODEL)
        (folder / "trace.jsonl").write_text(LINES)
        self.out = folder / "run"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "memplan", "replay", str(folder / "trace.jsonl"),
             "--out", str(self.out)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=preexec,
        )  # fmt: skip

    def wait_for_requests(self, count: int) -> None:
        deadline_s = time.monotonic() + WAIT_S
        path = self.out / "requests.jsonl"
        while time.monotonic() < deadline_s:
            if path.exists() and path.read_bytes().count(b"\n") >= count:
                return
            time.sleep(0.02)
        raise AssertionError(f"no {count} requests within {WAIT_S} s")

    def engine_pid(self) -> int:
        """Of memplan's children the one that runs Python: the other is its sampler."""
        (engine,) = (
            child
            for child in psutil.Process(self.process.pid).children()
            if "memplan.engines.worker" in child.cmdline()
        )
        return engine.pid

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=WAIT_S)
        assert "Traceback" not in err
        return self.process.returncode, out, err


def document(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["report", str(run_folder), "--json"]) == 0
    read: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert run(["report", str(run_folder)]) == 0, "the HTML can be made too"
    return read


def codes(read: dict[str, Any]) -> set[str]:
    return {finding["code"] for finding in read["findings"]}


def test_kill_9_of_memplan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay = Replay(tmp_path)
    replay.wait_for_requests(5)
    engine = psutil.Process(replay.engine_pid())
    replay.process.kill()
    replay.process.communicate()
    engine.wait(timeout=WAIT_S)

    read = document(replay.out, capsys)
    assert "run_cut_off" in codes(read)
    assert read["classes"][0]["completed"] >= 5
    assert read["process"]["peak_bytes"] > 30 * 2**20


def test_kill_9_of_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay = Replay(tmp_path)
    replay.wait_for_requests(5)
    os.kill(replay.engine_pid(), signal.SIGKILL)
    code, out, err = replay.finish()

    assert code == 4
    assert "what each request class costs" in out, "what was measured is still printed"
    assert "the engine died during the run" in err
    read = document(replay.out, capsys)
    assert "engine_died" in codes(read)
    assert "SIGKILL" in str(read["findings"])


def test_first_ctrl_c_ends_the_recording_properly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay = Replay(tmp_path)
    replay.wait_for_requests(5)
    engine = psutil.Process(replay.engine_pid())
    replay.process.send_signal(signal.SIGINT)
    code, out, _ = replay.finish()

    assert code == 130
    assert "what each request class costs" in out
    engine.wait(timeout=WAIT_S)
    read = document(replay.out, capsys)
    assert "interrupted" in codes(read)
    assert "run_cut_off" not in codes(read)


def _at_most_64_kib_a_file() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def test_a_disk_that_fills_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay = Replay(tmp_path, preexec=_at_most_64_kib_a_file)
    code, _, err = replay.finish()

    assert code == 5
    assert "cannot write the run" in err and "memplan report" in err
    read = document(replay.out, capsys)
    assert "run_cut_off" in codes(read)
    assert read["process"]["peak_bytes"] > 30 * 2**20
