"""The kernel's high-water mark: whether it sees an allocation and can forget it, and at what cost."""

from __future__ import annotations

import mmap
import time
from statistics import median

from memplan.compiled import cache_folder
from memplan.doctor.check import Check
from memplan.engines.meter import SegmentMeter
from memplan.engines.native_cuts import find_library
from memplan.procfs import ProcessMemory, drift_bound_bytes
from memplan.records import MachineFacts
from memplan.units import bytes_text

_PROBE_BYTES = 32 << 20
_CLOSES = 50


def exact_peaks(machine: MachineFacts) -> Check:
    """Plants 32 MiB, gives them back, and asks whether the mark saw them and could forget them."""
    bound = bytes_text(drift_bound_bytes(machine.cpu_count))
    try:
        with ProcessMemory("self") as memory:
            memory.reset_peak()
            before = memory.read()["host.rss"]
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
            mmap.mmap(-1, _PROBE_BYTES, flags=flags).close()
            seen = memory.take_peak()["host.hwm"] - before
            left = memory.read()["host.hwm"] - before
    except OSError as error:
        return Check(
            name="exact peaks",
            state="no",
            found=str(error),
            means="peaks are readings at the ends of segments; a spike inside one is missed",
            remedy="a Linux kernel with /proc/PID/clear_refs (gVisor has none)",
        )
    works = seen >= 0.95 * _PROBE_BYTES and left < 0.5 * _PROBE_BYTES
    return Check(
        name="exact peaks",
        state="yes" if works else "no",
        found=f"saw {bytes_text(seen)} of 32.0 MiB that lived for an instant",
        means=f"every segment's peak is the kernel's own, at most {bound} too low"
        if works
        else "the kernel's high-water mark does not follow: peaks can be wrong",
        remedy="" if works else "stop other memory profilers, or use another kernel",
    )


def closing_in_c() -> Check:
    """Closes segments of this process as an engine does."""
    meter = SegmentMeter(
        epoch_s=time.monotonic(), engine_start=0, library=find_library(cache_folder())
    )
    meter.slice_long_segments()
    is_native = meter.way == "in C"
    for _ in range(_CLOSES):
        meter.close("idle")
    close_s = median(fields["close_s"] for fields in meter.take())
    meter.stop_slicing()
    return Check(
        name="closing in C",
        state="yes" if is_native else "no",
        found=f"{meter.way}; {close_s * 1e6:.0f} µs in a loop, 2 to 5 times that in a working engine",
        means="segments cost least, and are cut every 50 ms whatever Python does"
        if is_native
        else "segments cost more, one in a C call is not cut, and what comes and goes while its mark "
        "is read and set back is missed",
        remedy="" if is_native else "install a C compiler (apt-get install gcc)",
    )
