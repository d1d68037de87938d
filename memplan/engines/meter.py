"""Closes segments inside an engine worker: reads the exact peak of an interval, then resets it.

The worker is the only owner of its own high-water mark. One close costs a read of one small file
and a one-byte write; both are timed and travel with the segment.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memplan.engines.composition import HostComposition
from memplan.engines.family import Family
from memplan.records import InFlight, Segment, SegmentKind, Slice

LONGEST_SLICE_S = 0.05
"""No interval without a reading is longer, but for C code that does not let Python run."""

# What the process is made of takes 3 ms to read, and 40 ms where malloc has many free chunks to count.
# It is read when the peak grew by a part of itself, as long as that takes no more than a part of the
# time, and otherwise still more seldom.
_BIG_NEWS_RATIO, _SMALL_NEWS_RATIO = 0.01, 0.001
_SMALL_NEWS_TIME_RATIO, _NO_NEWS_TIME_RATIO = 0.02, 0.001

KEEP_MARK = "MEMPLAN_KEEP_HIGH_WATER"
"""Environment variable of the engine: leaves the kernel's high-water mark to run on, so that it can
be compared with the peaks of another run."""

DevicePeaks = Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]
"""Reads a device's (peak, gauges) and resets its peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPeaks:
    """Live host tensors in an interval that has just ended, in bytes."""

    peak_bytes: int
    live_bytes: int
    """At its end."""
    by_owner: Mapping[str, int]
    """At the instant of the peak, by the part of the model that made them; weights left out."""
    module: str | None
    """The one that was running at that instant."""


class SegmentMeter:
    """Contiguous segments of one engine's processes, on the clock whose zero is ``epoch_s``."""

    def __init__(self, *, epoch_s: float, engine_start: int) -> None:
        self._epoch_s = epoch_s
        self._engine_start = engine_start
        self.device: DevicePeaks | None = None
        self.tensors: Callable[[], TensorPeaks] | None = None
        self.composition: HostComposition | None = None
        self._composed_bytes = 0
        self._composed_s = 0.0
        self._composing_s = 0.0
        self._family = Family(resets=not os.environ.get(KEEP_MARK))
        self._lock = threading.Lock()
        self._slices: list[Slice] = []
        self._is_over = threading.Event()
        self._opened_s = self._cut_s = self.now_s()

    @property
    def is_exact(self) -> bool:
        return self._family.is_exact

    def now_s(self) -> float:
        return time.monotonic() - self._epoch_s

    def slice_long_segments(self) -> None:
        """Starts a thread that cuts what lasts longer than ``LONGEST_SLICE_S``."""
        threading.Thread(target=self._keep_cutting, name="memplan-slices", daemon=True).start()

    def stop_slicing(self) -> None:
        self._is_over.set()

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
        with self._lock:
            gauges = self._cut()
            slices, self._slices = tuple(self._slices), []
        peak = {"host.hwm": max(part.peak_bytes for part in slices)}
        gauges |= engine or {}
        if self.device is not None:
            device_peak, device_gauges = self.device()
            peak |= device_peak
            gauges |= device_gauges
        tensors = self.tensors() if self.tensors is not None else None
        if tensors is not None:
            peak["engine.tensors"] = tensors.peak_bytes
            gauges["engine.tensors"] = tensors.live_bytes
        if compose or self._is_news(peak["host.hwm"], began_s):
            gauges |= self._compose(peak["host.hwm"])
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
            slices=slices if len(slices) > 1 else (),
            tensors=tensors.by_owner if tensors is not None else {},
            peak_module=tensors.module if tensors is not None else None,
        )

    # --- steps -----------------------------------------------------------------------------

    def _cut(self) -> dict[str, int]:
        """Ends a slice; the lock is held. Returns the gauges at its end."""
        peak_bytes, gauges = self._family.take()
        self._cut_s = self.now_s()
        if self._slices and self._slices[-1].peak_bytes == peak_bytes:
            self._slices.pop()  # two of one height are one
        self._slices.append(Slice(end_s=self._cut_s, peak_bytes=peak_bytes))
        return gauges

    def _keep_cutting(self) -> None:
        while not self._is_over.wait(max(0.001, self._cut_s + LONGEST_SLICE_S - self.now_s())):
            with self._lock:
                if self.now_s() >= self._cut_s + LONGEST_SLICE_S:
                    self._cut()

    def _is_news(self, peak_bytes: int, now_s: float) -> bool:
        grown = peak_bytes / max(1, self._composed_bytes) - 1
        since_s = now_s - self._composed_s
        return (
            grown > _BIG_NEWS_RATIO
            or (grown > _SMALL_NEWS_RATIO and self._composing_s < _SMALL_NEWS_TIME_RATIO * since_s)
            or self._composing_s < _NO_NEWS_TIME_RATIO * since_s
        )

    def _compose(self, peak_bytes: int) -> Mapping[str, int]:
        if self.composition is None:
            return {}
        began_s = self.now_s()
        gauges = self.composition.read()
        self._composed_bytes = max(self._composed_bytes, peak_bytes)
        self._composed_s = self.now_s()
        self._composing_s = self._composed_s - began_s
        return gauges
