"""Segments: contiguous, sliced where they last, and composed where something new is to be told."""

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from memplan.compiled import Compiled, cache_folder
from memplan.engines.composition import HostComposition
from memplan.engines.cuts import LONGEST_SLICE_S
from memplan.engines.embedded import segment_of
from memplan.engines.meter import SegmentMeter
from memplan.engines.native_cuts import find_library
from memplan.engines.raw_segments import TensorNames, unpacked_segments
from memplan.procfs import drift_bound_bytes
from memplan.records import Segment, SegmentKind
from memplan.units import MIB

FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
DRIFT_BYTES = drift_bound_bytes(os.cpu_count() or 1)


def closed(meter: SegmentMeter, kind: SegmentKind, **told: Any) -> Segment:
    end_s = meter.close(kind, **told)
    segment = segment_of(*meter.take())
    assert segment.end_s == end_s
    return segment


class Tensors:
    """Counts what it is told."""

    c_function = None
    names = TensorNames(("mlp", "weights"), (None, "layers.0.mlp"), "weights")

    def cut(self) -> bytes:
        return array("q", [9, 4, 1, 5, 7, 0]).tobytes()


@pytest.fixture(params=["in C", "in Python"])
def meter(request: pytest.FixtureRequest) -> Iterator[SegmentMeter]:
    without = Compiled(path=None, reason="none")
    library = find_library(cache_folder()) if request.param == "in C" else without
    opened = SegmentMeter(epoch_s=time.monotonic(), engine_start=3, library=library)
    yield opened
    opened.stop_slicing()  # or it would go on to reset the marks of this process


def test_segments_are_contiguous_and_carry_what_they_are_told(meter: SegmentMeter) -> None:
    first = closed(meter, "start")
    second = closed(meter, "step", told=lambda: ((), 5, 2, 1), engine={"a": 7})
    assert first.end_s == second.start_s
    assert (second.engine_start, second.prefill_tokens, second.decode_tokens) == (3, 5, 2)
    assert (second.waiting, second.gauges["a"]) == (1, 7)
    assert 0 < second.close_s < 1


def test_a_long_segment_is_cut_into_slices_whose_largest_peak_is_its_own(
    meter: SegmentMeter,
) -> None:
    meter.slice_long_segments()
    closed(meter, "idle")
    time.sleep(4 * LONGEST_SLICE_S)
    spike = mmap.mmap(-1, 32 * MIB, flags=FLAGS | mmap.MAP_POPULATE)
    spike.close()
    time.sleep(3 * LONGEST_SLICE_S)
    segment = closed(meter, "step")
    assert len(segment.slices) >= 3  # before, with and after the spike; equal ones are one
    assert segment.slices[-1].end_s == segment.end_s
    assert sorted(segment.slices, key=lambda part: part.end_s) == list(segment.slices)
    peaks = [part.peak_bytes for part in segment.slices]
    assert max(peaks) == segment.peak["host.hwm"]
    high = [peak for peak in peaks if peak >= min(peaks) + 32 * MIB - DRIFT_BYTES]
    assert 1 <= len(high) <= 2  # a cut may fall into its short life
    assert peaks[0] < max(peaks) and peaks[-1] < max(peaks)


def test_segments_are_kept_in_order_until_they_are_taken(meter: SegmentMeter) -> None:
    meter.close("load")
    meter.close("idle")
    assert [fields["kind"] for fields in meter.take()] == ["load", "idle"]
    assert meter.take() == []


def test_a_short_segment_has_no_slices(meter: SegmentMeter) -> None:
    meter.slice_long_segments()
    assert closed(meter, "step").slices == ()


def test_tensors_travel_with_the_segment(meter: SegmentMeter) -> None:
    meter.tensors = Tensors()
    segment = closed(meter, "step")
    assert (segment.peak["engine.tensors"], segment.gauges["engine.tensors"]) == (9, 4)
    assert (segment.tensors, segment.peak_module) == ({"mlp": 5}, "layers.0.mlp")


def test_the_composition_is_read_at_a_new_peak_and_else_seldom(meter: SegmentMeter) -> None:
    closed(meter, "idle")  # its peak may be of memory that the test before gave back
    news_bytes = 16 * MIB + meter.last_peak_bytes // (50 * MIB) * MIB  # of tests before, maybe much
    area = mmap.mmap(-1, news_bytes + 64 * MIB, flags=FLAGS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    meter.composition = HostComposition(
        pool=(start, start + len(area)), interpreter_bytes=lambda: 5
    )
    assert closed(meter, "idle").gauges["engine.kv_resident"] == 0
    assert "engine.kv_resident" not in closed(meter, "idle").gauges  # no news, and too soon
    area[:news_bytes] = bytes([1]) * news_bytes
    grown = closed(meter, "step").gauges
    assert grown["engine.kv_resident"] == news_bytes
    assert grown["host.interpreter"] == 5
    assert closed(meter, "step", compose=True).gauges["engine.kv_resident"] == news_bytes


def test_code_that_was_compiled_while_the_process_ran_is_told_apart() -> None:
    before = HostComposition(pool=None, interpreter_bytes=None).read()["host.jit_code"]
    code = mmap.mmap(-1, 3 * MIB, flags=FLAGS, prot=mmap.PROT_READ | mmap.PROT_WRITE | 4)
    code[: 2 * MIB] = bytes([1]) * (2 * MIB)
    after = HostComposition(pool=None, interpreter_bytes=None).read()["host.jit_code"]
    assert after - before == pytest.approx(2 * MIB, abs=64 << 10)
    code.close()


FREED = """
import ctypes, json
from memplan.engines.composition import HostComposition

composition = HostComposition(pool=None, interpreter_bytes=None)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = (ctypes.c_void_p,)
blocks = [libc.malloc(60_000) for _ in range(500)]
for block in blocks:
    ctypes.memset(block, 1, 60_000)
pin = libc.malloc(60_000)  # nothing below it can be given back by lowering the heap's end
found = [dict(composition.read())]
for block in blocks:
    libc.free(block)
found.append(dict(composition.read()))
libc.malloc_trim(0)
found.append(dict(composition.read()))
print(json.dumps(found))
"""


def test_what_malloc_keeps_free_is_told_by_its_resident_pages() -> None:
    """In a process of its own: the heap of one that ran other tests has holes that blocks fall into."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, check=True)
    held, freed, trimmed = json.loads(done.stdout)
    assert freed["host.heap_free"] - held["host.heap_free"] == pytest.approx(30e6, rel=0.05)
    assert held["host.heap_used"] - freed["host.heap_used"] == pytest.approx(30e6, rel=0.05)
    # Free bytes that are not resident are no slack, whatever malloc still counts as free.
    assert trimmed["host.heap_free"] - held["host.heap_free"] < 3e6


def test_segments_are_the_same_at_the_other_end_of_the_channel(meter: SegmentMeter) -> None:
    meter.tensors = Tensors()
    meter.close("idle")
    meter.close("step", told=lambda: ((("r1", 1, 2, 3),), 0, 1, 0), engine={"engine.x": 5})
    raw = unpacked_segments(meter.take_packed())
    assert raw[1].in_flight == (("r1", 1, 2, 3),)
    assert raw[1].gauges["engine.x"] == 5
