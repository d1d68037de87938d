"""Peaks of processes that do not know of memplan, against memory that the test itself allocates."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplan.engines.servers.outside_meter import OutsideMeter

MIB = 2**20
HOLDER = """
import sys, time, mmap, os
for line in sys.stdin:
    size, hold_s = line.split()
    block = mmap.mmap(-1, int(size))
    for at in range(0, int(size), 4096):
        block[at] = 1
    time.sleep(float(hold_s))
    block.close()
    print("done", flush=True)
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    time.sleep(0.3)
    with process:
        yield process
        process.kill()


def held(process: subprocess.Popen[str], size: int, hold_s: float) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{size} {hold_s}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_a_spike_between_two_readings_is_in_the_segment_and_not_in_the_next(
    holder: subprocess.Popen[str],
) -> None:
    meter = OutsideMeter([holder.pid], epoch_s=time.monotonic(), engine_start=0)
    before = meter.close("idle")
    held(holder, 50 * MIB, 0.0)
    spike = meter.close("step")
    after = meter.close("idle")
    assert meter.is_exact
    rise = spike.peak["host.hwm"] - before.gauges["host.rss"]
    assert abs(rise - 50 * MIB) <= MIB
    assert after.peak["host.hwm"] - before.gauges["host.rss"] <= MIB
    assert before.end_s == spike.start_s
    assert spike.end_s == after.start_s


def test_slices_are_contiguous_and_the_largest_of_them_is_the_segments(
    holder: subprocess.Popen[str],
) -> None:
    meter = OutsideMeter([holder.pid], epoch_s=time.monotonic(), engine_start=0)
    meter.close("idle")
    for size in (4 * MIB, 30 * MIB, 8 * MIB):
        held(holder, size, 0.0)
        meter.slice()
    segment = meter.close("step")
    ends = [one.end_s for one in segment.slices]
    assert ends == sorted(ends)
    assert segment.peak["host.hwm"] == max(one.peak_bytes for one in segment.slices)


def test_children_are_summed(holder: subprocess.Popen[str]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c",
         "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"]
    )  # fmt: skip
    try:
        time.sleep(0.7)
        meter = OutsideMeter([parent.pid], epoch_s=time.monotonic(), engine_start=0)
        segment = meter.close("idle")
        assert segment.gauges["host.processes"] == 2
        assert len(meter.all_pids()) == 2
        page_bytes = os.sysconf("SC_PAGESIZE")
        held = [
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page_bytes
            for pid in meter.all_pids()
        ]
        assert min(held) > MIB
        assert abs(segment.gauges["host.rss"] - sum(held)) <= MIB
        assert segment.peak["host.hwm"] >= sum(held) - MIB
    finally:
        for pid in reversed(meter.all_pids()):
            subprocess.run(["kill", "-9", str(pid)], check=False)
        parent.wait()


def test_a_process_that_is_gone_is_told(holder: subprocess.Popen[str]) -> None:
    meter = OutsideMeter([holder.pid], epoch_s=time.monotonic(), engine_start=0)
    holder.kill()
    holder.wait()
    with pytest.raises(ProcessLookupError):
        meter.close("idle")
