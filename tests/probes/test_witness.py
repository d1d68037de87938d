"""The 1 kHz sampler against processes of known size, the kernel's own clock, and memplan's death."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memplan.compiled import cache_folder
from memplan.probes.witness import WitnessProbe
from memplan.procfs import ProcessMemory
from memplan.records import Witness
from memplan.units import MIB
from memplan.witness_file import read_witness

MOST_S = 20.0
HELD = 64 * MIB
HOLDER = (
    "import mmap, sys; flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE\n"
    f"held = mmap.mmap(-1, {HELD}, flags=flags); print('held', flush=True); sys.stdin.read()\n"
)
PARENT = (
    "import subprocess, sys\n"
    f"with subprocess.Popen([sys.executable, '-c', {HOLDER!r}]) as child: child.wait()\n"
)


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """One that has said its first line and ends when its stdin does."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as made:
        assert made.stdout is not None
        assert made.stdout.readline() == b"held\n"
        yield made


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + MOST_S
    while not is_so():
        assert time.monotonic() < deadline_s, "nothing happened"
        time.sleep(0.005)


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[WitnessProbe]:
    probe = WitnessProbe(tmp_path / "witness.bin", epoch_s=time.monotonic(), cache=cache_folder())
    assert probe.start() is None
    yield probe
    probe.stop()


def read(folder: Path) -> Witness:
    found, is_whole = read_witness(folder / "witness.bin")
    assert found is not None
    assert is_whole
    return found


def has_readings(folder: Path) -> bool:
    found, _ = read_witness(folder / "witness.bin")
    return found is not None and len(found.t_s) > 0


def test_it_reads_what_the_kernel_says_at_its_pace(tmp_path: Path, witness: WitnessProbe) -> None:
    with process(HOLDER) as holder, ProcessMemory(holder.pid) as memory:
        witness.follow((holder.pid,))
        until(lambda: has_readings(tmp_path))
        resident = memory.read()["host.rss"]
        witness.stop()
    found = read(tmp_path)
    assert abs(found.rss_bytes[-1] - resident) < MIB
    assert found.period_s == 1e-3
    assert found.policy in ("real-time", "nice", "ordinary")
    span_s = found.t_s[-1] - found.t_s[0]
    assert found.cpu_s is not None
    assert 0 < found.cpu_s < span_s
    assert 0.2 < len(found.t_s) / (span_s / 1e-3) <= 1.1
    assert sorted(found.t_s) == list(found.t_s)


def test_it_counts_children(tmp_path: Path, witness: WitnessProbe) -> None:
    with process(PARENT) as parent:
        witness.follow((parent.pid,))
        until(lambda: has_readings(tmp_path))
        witness.stop()
    assert max(read(tmp_path).rss_bytes) > HELD


def test_it_rests_when_all_are_gone_and_follows_the_next(
    tmp_path: Path, witness: WitnessProbe
) -> None:
    with process(HOLDER) as first:
        witness.follow((first.pid,))
        until(lambda: has_readings(tmp_path))
    gone_s = time.monotonic()
    with process(HOLDER) as second:
        attached_s = time.monotonic()
        witness.follow((second.pid,))
        before = (tmp_path / "witness.bin").stat().st_size
        until(lambda: (tmp_path / "witness.bin").stat().st_size > before + 16 * 500)
        witness.stop()
    found = read(tmp_path)
    begun_s = witness._epoch_s
    between = [t for t in found.t_s if gone_s - begun_s + 0.01 < t < attached_s - begun_s]
    assert between == []
    assert found.t_s[-1] > attached_s - begun_s


def test_nothing_of_the_engine_is_reset(tmp_path: Path, witness: WitnessProbe) -> None:
    spiked = HOLDER.replace("print", f"mmap.mmap(-1, {HELD}, flags=flags).close(); print")
    with process(spiked) as holder, ProcessMemory(holder.pid) as memory:
        before = memory.read()["host.hwm"]
        witness.follow((holder.pid,))
        until(lambda: has_readings(tmp_path))
        assert memory.read()["host.hwm"] == before
        assert before > memory.read()["host.rss"] + HELD // 2


def test_it_keeps_off_the_core_that_the_engine_runs_on(witness: WitnessProbe) -> None:
    allowed = os.sched_getaffinity(0)
    busy = "import os; print('held', flush=True)\nwhile os.getppid() > 1: pass\n"
    with process(busy) as engine:
        core = min(allowed)
        os.sched_setaffinity(engine.pid, {core})
        witness.follow((engine.pid,))
        assert witness._process is not None
        sampler = witness._process.pid
        until(lambda: os.sched_getaffinity(sampler) == (allowed - {core} or allowed))
        engine.kill()


def test_it_ends_with_memplan_and_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from memplan.compiled import cache_folder\n"
        "from memplan.probes.witness import WitnessProbe\n"
        f"w = WitnessProbe(Path({str(tmp_path)!r}) / 'witness.bin', epoch_s=time.monotonic(),"
        " cache=cache_folder())\n"
        "w.start(); w.follow((os.getppid(),)); print('held', flush=True)\n"
        "print(w._process.pid, flush=True); sys.stdin.read()\n"
    )
    with process(code) as memplan:
        assert memplan.stdout is not None
        sampler = int(memplan.stdout.readline())
        until(lambda: has_readings(tmp_path))
        memplan.kill()
        memplan.wait()
        until(lambda: not _is_alive(sampler))
    read(tmp_path)


def test_without_a_compiler_it_says_so_and_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    probe = WitnessProbe(tmp_path / "witness.bin", epoch_s=0.0, cache=tmp_path / "empty")
    found = probe.start()
    assert found is not None
    assert found.code == "no_witness"
    assert "no C compiler" in found.text
    probe.follow((os.getpid(),))
    assert probe.read() == {}
    probe.stop()
    assert not (tmp_path / "witness.bin").exists()


def test_a_sampler_that_was_killed_does_not_end_the_run(
    tmp_path: Path, witness: WitnessProbe
) -> None:
    assert witness._process is not None
    witness._process.kill()
    witness._process.wait()
    witness.follow((os.getpid(),))
    witness.stop()
    assert read_witness(tmp_path / "witness.bin")[1]


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
