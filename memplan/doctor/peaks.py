"""The kernel's high-water mark: whether it sees an allocation and can forget it."""

from __future__ import annotations

import mmap

from memplan.doctor.check import Check
from memplan.procfs import ProcessMemory, drift_bound_bytes
from memplan.records import MachineFacts
from memplan.units import bytes_text

_PROBE_BYTES = 32 << 20


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
