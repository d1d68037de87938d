"""Closes segments inside an engine worker: reads the exact peak of an interval, then resets it.

The worker is the only owner of its own high-water mark. One close costs a read of one small file
and a one-byte write; both are timed and travel with the segment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from memplan.engines.allocator import heap_gauges
from memplan.procfs import ProcessMemory
from memplan.records import InFlight, Segment, SegmentKind

# malloc's own account takes 0.2 ms, ten times what closing a segment does: it is asked for only when
# the peak grew by this much.
_COMPOSE_STEP_BYTES = 256 << 10

DevicePeaks = Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]
"""Reads a device's (peak, gauges) and resets its peak."""


class SegmentMeter:
    """Contiguous segments of one engine process, on the clock whose zero is ``epoch_s``."""

    def __init__(self, *, epoch_s: float, engine_start: int) -> None:
        self._epoch_s = epoch_s
        self._engine_start = engine_start
        self.device: DevicePeaks | None = None
        self._memory = ProcessMemory("self")
        self._composed_bytes = 0
        self._memory.reset_peak()
        self._opened_s = self.now_s()

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
        gauges = {**self._memory.read(), **(engine or {})}
        self._memory.reset_peak()
        peak = {"host.hwm": gauges.pop("host.hwm")}
        if self.device is not None:
            device_peak, device_gauges = self.device()
            peak |= device_peak
            gauges |= device_gauges
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
