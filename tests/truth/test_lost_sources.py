"""Sources that really fail while they are in use: each is a finding, none a crash or a silent number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import engine, recording
from hidden_processes import run_where_hidden, why_nothing_can_be_hidden

from memplan.cli import run
from memplan.engines.embedded import segment_of
from memplan.engines.meter import SegmentMeter
from memplan.probes.host import HostProbe
from memplan.recording import read_run
from memplan.records import Finding, Recording, Sample, Segment
from memplan.stats.findings import clocks, lost
from memplan.units import MIB

MODEL = """\
memplan: 1
name: tiny
engine: {engine}
settings: {{max_requests: 4, max_kv_tokens: 8192, device: cpu}}
script: {{weights: 20MiB, runtime: 10MiB, kv_bytes_per_token: 4096, prefill_tokens_per_s: 20000,
         decode_s_per_step: 5ms, activation_bytes_per_token: 1024, vocab_tokens: 1000,
         context_tokens: 4096}}
"""
LINES = [
    json.dumps({"timestamp": n * 100, "input_length": 100, "output_length": 5}) for n in range(25)
]


def measured(folder: Path, engine: str) -> Path:
    """A replay of 2.5 s, whole."""
    (folder / "model.yaml").write_text(MODEL.format(engine=engine))
    (folder / "trace.jsonl").write_text("\n".join(LINES) + "\n")
    assert run(["replay", str(folder / "trace.jsonl"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def findings_in(run: Recording) -> list[Finding]:
    return [found for rule in (*lost.RULES, *clocks.RULES) for found in rule(run)]


def codes(recording: Recording) -> set[str]:
    return {finding.code for finding in findings_in(recording)}


def document(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["report", str(folder), "--force"]) == 0, "the page can be made"
    capsys.readouterr()
    assert run(["report", str(folder), "--json"]) == 0
    read: dict[str, Any] = json.loads(capsys.readouterr().out)
    return read


# --- the mark ---------------------------------------------------------------------------------


def closed(meter: SegmentMeter, count: int) -> list[Segment]:
    for _ in range(count):
        meter.close("step")
    return [segment_of(fields) for fields in meter.take()]


def test_a_mark_that_can_no_longer_be_reset_is_told_from_its_second_on() -> None:
    meter = SegmentMeter(epoch_s=time.monotonic(), engine_start=0)
    exact = closed(meter, 3)
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and link.readlink().name == "clear_refs":
            # The kernel now answers every write with ENOSPC.
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, int(link.name))
            os.close(full)
    by_ends = closed(meter, 3)
    assert all("host.hwm_life" not in s.gauges for s in exact)
    assert all(s.gauges["host.hwm_life"] >= s.peak["host.hwm"] for s in by_ends)

    (found,) = findings_in(recording(segments=(*exact, *by_ends)))
    assert found.code == "reset_lost"
    assert f"From {by_ends[0].start_s:.1f} s on" in found.text
    assert "reset_lost" not in codes(recording(segments=tuple(exact)))


# --- processes of the engine ------------------------------------------------------------------

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", sys.argv[1]],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
for line in sys.stdin:
    child.kill()
    if line == "wait\\n":
        child.wait()
    else:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    print("done", flush=True)
"""
CHILD = """
import mmap, sys
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
held = mmap.mmap(-1, 32 << 20, flags=flags)
print("ready", flush=True)
sys.stdin.read()  # until its parent is gone
"""


class Engine:
    """A process with a child of 32 MiB that it can be told to end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.child_pid = int(self._told())

    def end_child(self, how: str) -> None:
        """``how``: ``wait``, or ``leave`` it a zombie."""
        assert self.process.stdin is not None
        print(how, file=self.process.stdin, flush=True)
        self._told()

    def _told(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextmanager
def started() -> Iterator[Engine]:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", PARENT, CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        running = Engine(process)
        try:
            yield running
        finally:
            process.kill()


def attached(pid: int) -> HostProbe:
    probe = HostProbe(look_every_s=0.0)
    probe.attach(engine(pids=(pid,)))
    return probe


@pytest.mark.parametrize("how", ["wait", "leave"])
def test_a_child_that_ends_between_two_readings_is_counted_once_and_leaves_no_number(
    how: str,
) -> None:
    with started() as family:
        probe = attached(family.process.pid)
        before = probe.read()
        family.end_child(how)
        after = [probe.read() for _ in range(3)]
    assert (before["host.processes"], before["host.processes_gone"]) == (2, 0)
    for reading in after:
        assert (reading["host.processes"], reading["host.processes_gone"]) == (1, 1)
        assert before["host.anon"] - reading["host.anon"] >= 32 * MIB

    readings = (before, *after)
    run = recording(samples=tuple(Sample(t_s=n / 10, values=r) for n, r in enumerate(readings)))
    assert "process_vanished" in codes(run)
    later = tuple(replace(sample, t_s=sample.t_s + 9.0) for sample in run.samples)
    assert "process_vanished" not in codes(replace(run, samples=later)), "nothing was in flight"


def test_a_child_that_ends_after_it_was_listed_and_before_it_was_read_is_counted() -> None:
    with started() as family:
        family.end_child("wait")
        listed = [[family.process.pid, family.child_pid], [family.process.pid]]
        probe = HostProbe(list_family=lambda root: listed.pop(0) if listed else [root])
        probe.attach(engine(pids=(family.process.pid,)))
        reading = probe.read()
    assert (reading["host.processes"], reading["host.processes_gone"]) == (1, 1)


def test_children_that_end_with_their_engine_are_its_death_and_no_loss_of_theirs() -> None:
    with started() as family, started() as child, started() as orphan:
        tree = [one.process.pid for one in (family, child, orphan)]
        probe = HostProbe(list_family=lambda _: tree)
        probe.attach(engine(pids=(family.process.pid,)))
        assert probe.read()["host.processes"] == 3
        for one in (family, child):
            one.process.kill()
            os.waitid(os.P_PID, one.process.pid, os.WEXITED | os.WNOWAIT)
        left = probe.read()
        assert (left["host.processes"], left["host.processes_gone"]) == (1, 0)


# The engine's user is memplan's; its child is root's.
HIDDEN = """
import json, subprocess, sys
from builders import engine
from hidden_processes import become_nobody
from memplan.probes.host import HostProbe

family = subprocess.Popen([sys.executable, "-S", "-c", sys.argv[1], sys.argv[2]],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
family.stdout.readline()
become_nobody()
probe = HostProbe()
probe.attach(engine(pids=(family.pid,)))
print(json.dumps(dict(probe.read())))
"""
FAMILY = """
import subprocess, sys
from hidden_processes import become_nobody
child = subprocess.Popen([sys.executable, "-S", "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
become_nobody()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("hidepid", [0, 1, 2])
def test_a_child_of_another_user_is_counted_where_proc_hides_it(hidepid: int) -> None:
    if reason := why_nothing_can_be_hidden():
        pytest.skip(reason)
    reading = json.loads(run_where_hidden(hidepid, HIDDEN, FAMILY, CHILD))
    is_hidden = hidepid > 0
    assert reading["host.processes"] == (1 if is_hidden else 2)
    assert reading["host.processes_hidden"] == (1 if is_hidden else 0)
    assert (reading["host.anon"] < 32 * MIB) == is_hidden
    run = recording(samples=(Sample(t_s=0.0, values=reading),))
    assert ("process_hidden" in codes(run)) == is_hidden


# --- the files of a run -----------------------------------------------------------------------


def test_a_timeline_that_was_cut_between_two_entries_says_how_many_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = measured(tmp_path, "ballast")
    whole = read_run(folder)
    assert whole.end is not None and whole.end.samples == len(whole.samples)
    assert "samples_missing" not in codes(whole)

    timeline = folder / "timeline.jsonl"
    lines = timeline.read_text().splitlines(keepends=True)
    timeline.write_text("".join(lines[:3]))  # the names and two samples

    cut = read_run(folder)
    assert cut.samples == whole.samples[:2]
    assert "torn_tail" not in codes(cut), "the file reads as whole"
    (found,) = (f for f in document(folder, capsys)["findings"] if f["code"] == "samples_missing")
    missing = whole.end.samples - len(cut.samples)
    assert f"{missing:,} of {whole.end.samples:,} samples" in found["text"]


def test_a_run_whose_clock_stepped_back_can_be_reported_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = measured(tmp_path, "scripted")
    before = document(folder, capsys)
    assert "clock_stepped_back" not in {f["code"] for f in before["findings"]}

    segments = (folder / "segments.jsonl").read_text().splitlines()
    changed = [json.loads(line) for line in segments]
    stepped = next(s for s in changed if s["kind"] == "step" and s["in_flight"])
    stepped["end_s"] = stepped["start_s"] - 5.0
    (folder / "segments.jsonl").write_text("".join(json.dumps(s) + "\n" for s in changed))
    records = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    records[0]["first_token_s"] = records[0]["end_s"] = records[0]["sent_s"] - 5.0
    (folder / "requests.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    after = document(folder, capsys)
    (found,) = (f for f in after["findings"] if f["code"] == "clock_stepped_back")
    assert "5.0" in found["text"] and "1 segments, 1 requests" in found["text"]
    for latency in ("ttft_s", "e2e_s"):
        was, now = (
            sum(one["latency"][latency]["n"] for one in read["classes"]) for read in (before, after)
        )
        assert now == was - 1
    peaks = [one["memory"]["cpu"]["co_resident"]["peak_bytes"] for one in after["classes"]]
    assert peaks == [one["memory"]["cpu"]["co_resident"]["peak_bytes"] for one in before["classes"]]
    assert after["process"]["peak_bytes"] == before["process"]["peak_bytes"]


# --- the wall clock ---------------------------------------------------------------------------


def test_the_wall_clock_of_a_real_run_agrees_and_a_virtual_one_has_none(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = read_run(measured(tmp_path / "real", "ballast"))
    assert real.end is not None and real.end.wall_s is not None
    assert real.end.wall_s == pytest.approx(real.end.ended_s, abs=0.1)
    assert "wall_clock_moved" not in codes(real)
    (tmp_path / "virtual").mkdir()
    virtual = read_run(measured(tmp_path / "virtual", "scripted"))
    assert virtual.end is not None and virtual.end.wall_s is None
