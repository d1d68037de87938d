"""Closes segments inside an engine worker: reads the exact peak of an interval, then resets it.

The worker is the only owner of its own high-water mark. One close costs a read of one small file
and a one-byte write; both are timed and travel with the segment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from memplan.engines.allocator import heap_gauges
from memplan.procfs import ProcessMemory
from memplan.records import InFlight, Segment, SegmentKind

# malloc's own account takes 0.2 ms, ten times what closing a segment does: it is asked for only when
# the peak grew by this much.
_COMPOSE_STEP_BYTES = 256 << 10

KEEP_MARK = "MEMPLAN_KEEP_HIGH_WATER"
"""Environment variable of the engine: leaves the kernel's high-water mark to run on, so that it can
be compared with the peaks of another run."""

DevicePeaks = Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]
"""Reads a device's (peak, gauges) and resets its peak."""


TensorPeaks = Callable[[], tuple[int, int]]
"""Reads (peak, live now) of host tensors, in bytes, and resets the peak."""


class SegmentMeter:
    """Contiguous segments of one engine process, on the clock whose zero is ``epoch_s``."""

    def __init__(self, *, epoch_s: float, engine_start: int) -> None:
        self._epoch_s = epoch_s
        self._engine_start = engine_start
        self.device: DevicePeaks | None = None
        self.tensors: TensorPeaks | None = None
        self._memory = ProcessMemory("self")
        self._composed_bytes = 0
        self.is_exact = self._reset()
        self._last_rss_bytes = self._memory.read()["host.rss"]
        self._opened_s = self.now_s()

    def _reset(self) -> bool:
        """False where the kernel's mark cannot be reset, or a comparison asks to leave it alone."""
        if os.environ.get(KEEP_MARK):
            return False
        try:
            self._memory.reset_peak()
        except OSError:
            return False
        return True

    def _take(self) -> tuple[int, dict[str, int]]:
        """The open segment's peak and the gauges at its end. Without a reset only its two ends are
        known; the mark itself then covers the life of the process and is kept as ``host.hwm_life``."""
        gauges = dict(self._memory.take_peak() if self.is_exact else self._memory.read())
        mark = gauges.pop("host.hwm")
        if self.is_exact:
            return mark, gauges
        gauges["host.hwm_life"] = mark
        before, self._last_rss_bytes = self._last_rss_bytes, gauges["host.rss"]
        return max(before, gauges["host.rss"]), gauges

    def now_s(self) -> float:
        return time.monotonic() - self._epoch_s

    def close(
        self,
        kind: SegmentKind,
        *,
        in_flight: tuple[InFlight, ...] = (),
        prefill_tokens: int = 0,
        decode_tokens: int = 0,
        waiting: int = 0,
        compose: bool = False,
        engine: Mapping[str, int] | None = None,
    ) -> Segment:
        """Ends the open segment and opens the next one. ``engine`` holds gauges of its own."""
        began_s = self.now_s()
        peak_bytes, gauges = self._take()
        peak = {"host.hwm": peak_bytes}
        gauges |= engine or {}
        if self.device is not None:
            device_peak, device_gauges = self.device()
            peak |= device_peak
            gauges |= device_gauges
        if self.tensors is not None:
            peak["engine.tensors"], gauges["engine.tensors"] = self.tensors()
        if compose or peak["host.hwm"] >= self._composed_bytes + _COMPOSE_STEP_BYTES:
            gauges |= heap_gauges()
            self._composed_bytes = max(self._composed_bytes, peak["host.hwm"])
        opened_s, self._opened_s = self._opened_s, self.now_s()
        return Segment(
            engine_start=self._engine_start,
            kind=kind,
            start_s=opened_s,
            end_s=self._opened_s,
            peak=peak,
            gauges=gauges,
            in_flight=in_flight,
            prefill_tokens=prefill_tokens,
            decode_tokens=decode_tokens,
            close_s=self._opened_s - began_s,
            waiting=waiting,
        )
