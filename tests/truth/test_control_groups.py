"""The control group against memory that is known: what is charged, and a limit that kills."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from memplan.cgroups import make_group, place_of
from memplan.cli import run
from memplan.engines.witnessed import OF_LIFE, OF_SERVING
from memplan.errors import MachineError
from memplan.recording import read_run
from memplan.records import Recording
from memplan.stats.summarise import summarise

MB = 10**6
# At rest 135 MiB; each request of 1,600 tokens adds 31 MiB of KV and 4 MiB of activations.
MODEL = """\
memplan: 1
name: ballast
engine: ballast
settings: {max_requests: 4, max_kv_tokens: 8192, device: cpu, block_tokens: 16}
script: {weights: 100MiB, runtime: 20MiB, kv_bytes_per_token: 20480, prefill_tokens_per_s: 20000,
         decode_s_per_step: 5ms, activation_bytes_per_token: 8192, vocab_tokens: 1000,
         context_tokens: 4096}
"""


def lines(requests: int) -> str:
    row = {"input_length": 1600, "output_length": 40}
    return "".join(json.dumps({"timestamp": i * 100, **row}) + "\n" for i in range(requests))


LIMIT_CODES = {
    "witnesses_disagree",
    "no_charged_witness",
    "oom_killed",
    "engine_died",
    "refaults",
    "memory_pressure",
    "cgroup_peak_differs",
}


@pytest.fixture(autouse=True)
def _needs_groups() -> None:
    try:
        make_group(2**30).remove()
    except MachineError as error:
        pytest.skip(error.message)


def command(folder: Path, *options: str, requests: int = 8) -> list[str]:
    (folder / "model.yaml").write_text(MODEL)
    (folder / "trace.jsonl").write_text(lines(requests))
    return ["replay", str(folder / "trace.jsonl"), "--out", str(folder / "run"), *options]


def codes(recording: Recording) -> set[str]:
    return {finding.code for finding in summarise(recording).findings}


def groups_left(pid: int) -> list[Path]:
    place = place_of()
    assert place is not None
    return list(place.folder.glob(f"memplan-{pid}-*"))


def test_the_charged_peak_is_that_of_resident_memory_and_page_cache(tmp_path: Path) -> None:
    assert run(command(tmp_path)) == 0
    recording = read_run(tmp_path / "run")
    facts = recording.engines[0]
    assert facts.settings["charged_peak"] in (OF_SERVING, OF_LIFE)
    # 100 MiB of weights, 20 of runtime and an interpreter; serving adds KV and activations.
    assert 120 * 2**20 < facts.load_peak["cgroup.peak"] < 160 * 2**20
    charged = max(s.values["cgroup.peak"] for s in recording.samples)
    cache = max(s.values.get("cgroup.file", 0) for s in recording.samples)
    exact = max(s.peak["host.hwm"] - s.gauges["host.file"] for s in recording.segments)
    assert exact - recording.header.drift_bound_bytes <= charged <= exact + 5 * MB + cache
    assert "of the engine alone, no limit" in recording.engines[0].settings["cgroup"]
    assert codes(recording) & LIMIT_CODES == set()
    summary = summarise(recording)
    assert summary.truths is not None and summary.truths.after is not None
    assert summary.truths.charged_peak_bytes == charged
    assert summary.truths.after.proportional_bytes is not None


def test_a_limit_above_the_need_changes_nothing(tmp_path: Path) -> None:
    assert run(command(tmp_path, "--memory-limit", "1GiB")) == 0
    recording = read_run(tmp_path / "run")
    assert "limit 1,073,741,824 bytes" in recording.engines[0].settings["cgroup"]
    assert {o.outcome for o in recording.outcomes.values()} == {"completed"}
    assert codes(recording) & LIMIT_CODES == set()


def test_a_limit_below_the_need_is_a_recorded_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tmp_path, "--memory-limit", "160MiB")) == 4
    assert "what each request class costs" in capsys.readouterr().out
    recording = read_run(tmp_path / "run")
    failed = [o for o in recording.outcomes.values() if o.outcome == "failed"]
    assert failed
    assert {o.reason for o in failed} == {"oom_killed"}
    (finding,) = (f for f in recording.findings if f.code == "oom_killed")
    assert "its limit of 160.0 MiB; 160.0 MiB were charged" in finding.text
    assert failed[0].request_id in finding.text
    assert recording.end is not None and recording.end.reason == "engine_died"
    charged = max(s.values["cgroup.peak"] for s in recording.samples)
    assert charged == pytest.approx(160 * 2**20, abs=MB)
    assert groups_left(os.getpid()) == []


def test_a_restarted_engine_goes_on_with_the_schedule(tmp_path: Path) -> None:
    # One start takes as long as some requests: more of them than three restarts can swallow.
    options = ("--memory-limit", "160MiB", "--restart-engine")
    assert run(command(tmp_path, *options, requests=60)) == 4
    recording = read_run(tmp_path / "run")
    found = [finding.code for finding in recording.findings]
    assert found.count("oom_killed") == 4
    assert found.count("engine_restarted") == 3
    assert [engine.engine_start for engine in recording.engines] == [0, 1, 2, 3]
    assert groups_left(os.getpid()) == []


def test_a_limit_below_the_load_peak_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tmp_path, "--memory-limit", "60MiB")) == 4
    err = capsys.readouterr().err
    assert "cannot load its model within the memory limit of 60.0 MiB" in err
    assert "60.0 MiB charged at the peak" in err
    assert groups_left(os.getpid()) == []


def test_kill_9_of_memplan_leaves_at_most_a_group_that_the_next_run_removes(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "memplan", *command(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        requests = tmp_path / "run" / "requests.jsonl"
        deadline_s = time.monotonic() + 30
        while not (requests.exists() and requests.read_bytes()):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        (group,) = groups_left(process.pid)
        (pid,) = (group / "cgroup.procs").read_text().split()
        engine = psutil.Process(int(pid))
        assert engine in psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
    with contextlib.suppress(psutil.NoSuchProcess):
        engine.wait(timeout=30)

    make_group(None).remove()
    assert not group.exists()
