"""Cutting in C and in Python: nothing is lost where one takes over from the other, or between two."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from memplan.compiled import Compiled, cache_folder, compile_once
from memplan.engines import chosen_cuts, planted
from memplan.engines.cuts import LONGEST_SLICE_S
from memplan.engines.meter import KEEP_MARK, SegmentMeter
from memplan.engines.native_cuts import OFF, find_library
from memplan.procfs import ProcessMemory, drift_bound_bytes
from memplan.units import MIB

SPIKE_BYTES = 32 * MIB
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
DRIFT_BYTES = drift_bound_bytes(os.cpu_count() or 1)


@pytest.fixture(params=[0, 1 << 60], ids=["mark of getrusage", "mark of status"])
def meter(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SegmentMeter]:
    """Both ways to read it; which one is taken depends on what this process was before."""
    monkeypatch.setattr(chosen_cuts, "largest_resident_bytes", lambda: request.param)
    opened = SegmentMeter(
        epoch_s=time.monotonic(), engine_start=0, library=find_library(cache_folder())
    )
    opened.slice_long_segments()
    assert opened.way == "in C"
    yield opened
    opened.stop_slicing()


def spike() -> None:
    mmap.mmap(-1, SPIKE_BYTES, flags=FLAGS).close()


def rises(segments: list[dict[str, Any]]) -> list[bool]:
    """Which of them saw the spike."""
    low = min(one["gauges"]["host.rss"] for one in segments)
    return [one["peak"]["host.hwm"] >= low + SPIKE_BYTES - DRIFT_BYTES for one in segments]


def test_in_c_while_c_code_holds_pythons_lock_a_segment_is_cut_all_the_same(
    meter: SegmentMeter,
) -> None:
    meter.close("idle")
    meter.take()
    ctypes.PyDLL(None).usleep(round(6 * LONGEST_SLICE_S * 1e6))
    spike()  # or all slices would be of one height, and one
    ctypes.PyDLL(None).usleep(round(6 * LONGEST_SLICE_S * 1e6))
    end_s = meter.close("step")
    (segment,) = meter.take()
    assert len(segment["slices"]) >= 3
    assert segment["slices"][-1][0] == segment["end_s"] == end_s


def test_what_is_in_the_mark_when_c_takes_over_is_not_forgotten() -> None:
    meter = SegmentMeter(
        epoch_s=time.monotonic(), engine_start=0, library=find_library(cache_folder())
    )
    meter.close("warmup")
    spike()
    meter.slice_long_segments()
    assert meter.way == "in C"
    for _ in range(2):
        meter.close("step")
    meter.stop_slicing()
    assert rises(meter.take()) == [False, True, False]


def test_a_child_is_counted_from_when_it_is_seen_until_it_is_gone(meter: SegmentMeter) -> None:
    meter.close("idle")
    holds = (
        f"import mmap, sys; m = mmap.mmap(-1, {SPIKE_BYTES}, flags={int(FLAGS)}); sys.stdin.read()"
    )
    ways, segments = {meter.way}, []

    def close_until(way: str) -> None:
        until_s = time.monotonic() + 10
        while meter.way != way and time.monotonic() < until_s:
            time.sleep(0.02)
            meter.close("step")
            segments.extend(meter.take())
        ways.add(meter.way)

    with subprocess.Popen([sys.executable, "-S", "-c", holds], stdin=subprocess.PIPE):
        close_until("in Python: the engine has child processes")
    counted = [one["gauges"].get("host.processes", 1) for one in segments]
    close_until("in C")
    meter.close("step")
    assert ways == {"in C", "in Python: the engine has child processes"}
    assert counted[0] == 1 and counted[-1] == 2
    assert all(b["start_s"] == a["end_s"] for a, b in pairwise(segments))
    (last,) = meter.take()
    assert "host.processes" not in last["gauges"]


def test_a_right_that_is_lost_while_c_cuts_is_said_and_segments_go_on(meter: SegmentMeter) -> None:
    meter.close("step")
    before = meter.take()
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and link.readlink().name == "clear_refs":
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, int(link.name))
            os.close(full)
    for _ in range(2):
        meter.close("step")
    after = meter.take()
    assert (meter.is_exact, meter.way) == (False, "in Python: marks are not set back")
    assert all("host.hwm_life" in one["gauges"] for one in after)
    assert all("host.hwm_life" not in one["gauges"] for one in before)
    assert after[0]["start_s"] == before[-1]["end_s"]


def test_more_segments_than_there_is_room_for_are_kept_until_they_are_taken(
    meter: SegmentMeter,
) -> None:
    ends = [
        meter.close("step", told=lambda number=number: ((), 0, 0, number)) for number in range(1000)
    ]
    taken = meter.take()
    assert [one["end_s"] for one in taken] == ends
    assert [one["waiting"] for one in taken] == list(range(1000))


def test_what_is_held_at_an_end_is_what_the_status_says(meter: SegmentMeter) -> None:
    held = mmap.mmap(-1, SPIKE_BYTES, flags=FLAGS)
    shared = mmap.mmap(-1, SPIKE_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    time.sleep(2 * LONGEST_SLICE_S)  # what only the status tells is as old as a slice at most
    meter.close("step")
    with ProcessMemory() as memory:
        said = memory.read()
    (segment,) = meter.take()
    for gauge in ("host.rss", "host.anon", "host.file", "host.shmem"):
        assert segment["gauges"][gauge] == pytest.approx(said[gauge], abs=DRIFT_BYTES), gauge
    assert segment["gauges"]["host.shmem"] >= SPIKE_BYTES
    for gauge in ("host.page_tables", "host.swap"):
        assert segment["gauges"][gauge] == pytest.approx(said[gauge], abs=64 << 10), gauge
    held.close()
    shared.close()


def test_while_paused_only_ends_cut(meter: SegmentMeter) -> None:
    meter.pause_slicing(is_paused=True)
    meter.close("idle")
    time.sleep(2 * LONGEST_SLICE_S)
    spike()
    time.sleep(2 * LONGEST_SLICE_S)
    meter.close("idle")
    meter.pause_slicing(is_paused=False)
    assert [one["slices"] for one in meter.take()] == [(), ()]


def test_short_spikes_of_another_thread_are_in_a_segment_of_their_time_wherever_it_was_cut(
    meter: SegmentMeter,
) -> None:
    """Where the mark was read before whoever fills or frees the spike let go of the process's map, and
    set back after that, one in a thousand was in no segment."""
    source = Path(planted.__file__).with_name("planted_spike.c")
    library = compile_once(source, "library", cache_folder()).path
    plant = ctypes.CDLL(str(library)).memplan_plant
    epoch_s, lives = time.monotonic() - meter.now_s(), []

    def plant_all() -> None:
        draw, times = random.Random(3), (ctypes.c_int64 * 3)()
        for _ in range(150):
            time.sleep(draw.uniform(0.0005, 0.004))
            assert plant(ctypes.c_int64(SPIKE_BYTES), ctypes.c_int64(0), times) == 0
            lives.append(tuple(at_ns * 1e-9 - epoch_s for at_ns in times))

    segments = []
    thread, draw = threading.Thread(target=plant_all), random.Random(4)
    thread.start()
    while thread.is_alive():
        time.sleep(draw.uniform(0.0005, 0.004))
        meter.close("step")
        segments += meter.take()
    meter.close("step")
    segments += meter.take()
    seen = rises(segments)
    unseen = [
        (resident_s, gone_s)
        for _, resident_s, gone_s in lives
        if not any(
            saw
            for one, saw in zip(segments, seen, strict=True)
            if one["start_s"] <= gone_s and one["end_s"] >= resident_s
        )
    ]
    assert len(lives) == 150
    assert unseen == []


def test_why_segments_are_closed_in_python_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def way_with(library: Compiled) -> str:
        meter = SegmentMeter(epoch_s=time.monotonic(), engine_start=0, library=library)
        meter.slice_long_segments()
        meter.stop_slicing()
        return meter.way

    assert way_with(Compiled(path=None, reason="no compiler")) == "in Python: no compiler"
    broken = Compiled(path=Path(__file__))
    assert way_with(broken).startswith("in Python: ")
    monkeypatch.setenv(KEEP_MARK, "1")
    assert way_with(find_library(cache_folder())) == "in Python: marks are not set back"
    monkeypatch.setenv(OFF, "1")
    assert find_library(cache_folder()) == Compiled(path=None, reason=f"{OFF} is set")
