"""Closes segments inside an engine worker: reads the exact peak of an interval, then resets it.

The worker is the only owner of its own high-water mark. Closing a segment reads one small file and
writes one byte; what was read is understood later, for many segments at once, because code that runs
once a step finds none of itself in the processor's caches.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from memplan.engines.composition import HostComposition
from memplan.engines.family import Cut, Family
from memplan.records import SegmentKind

LONGEST_SLICE_S = 0.05
"""No interval without a reading is longer, but for C code that does not let Python run."""

# What the process is made of takes 1 to 3 ms to read, and 40 ms where malloc has many free chunks to
# count. It is read when the peak grew by a part of itself, as long as that takes no more than a part
# of the time, and otherwise still more seldom.
_BIG_NEWS_RATIO, _SMALL_NEWS_RATIO = 0.01, 0.001
_SMALL_NEWS_TIME_RATIO, _NO_NEWS_TIME_RATIO = 0.002, 0.0005

KEEP_MARK = "MEMPLAN_KEEP_HIGH_WATER"
"""Environment variable of the engine: leaves the kernel's high-water mark to run on, so that it can
be compared with the peaks of another run."""

Flight = tuple[str, int, int, int]
"""The fields of InFlight, in their order."""

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


class TensorCounter(Protocol):
    """Counts live host tensors. An interval ends in a hurry and is understood later."""

    def cut(self) -> bytes:
        """Ends the interval since the last call."""
        ...

    def peaks_of(self, cut: bytes) -> TensorPeaks: ...


class _Closed(NamedTuple):
    """A segment as it was read."""

    kind: SegmentKind
    start_s: float
    end_s: float
    close_s: float
    slices: tuple[tuple[float, int], ...]
    last: Cut
    tensors: bytes | None
    peak: Mapping[str, int]
    gauges: Mapping[str, int]
    in_flight: tuple[Flight, ...]
    prefill_tokens: int
    decode_tokens: int
    waiting: int


class SegmentMeter:
    """Contiguous segments of one engine's processes, on the clock whose zero is ``epoch_s``."""

    def __init__(self, *, epoch_s: float, engine_start: int) -> None:
        self._epoch_s = epoch_s
        self._engine_start = engine_start
        self.device: DevicePeaks | None = None
        self.tensors: TensorCounter | None = None
        self.composition: HostComposition | None = None
        self._composed_bytes = 0
        self._composed_s = 0.0
        self._composing_s = 0.0
        self._family = Family(resets=not os.environ.get(KEEP_MARK))
        self._lock = threading.Lock()
        self._slices: list[tuple[float, int]] = []
        self._closed: list[_Closed] = []
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
        in_flight: tuple[Flight, ...] = (),
        prefill_tokens: int = 0,
        decode_tokens: int = 0,
        waiting: int = 0,
        compose: bool = False,
        engine: Mapping[str, int] | None = None,
    ) -> float:
        """Ends the open segment and opens the next one; returns when. ``engine`` holds gauges of its
        own. ``take`` tells of the segment."""
        began_s = self.now_s()
        with self._lock:
            last = self._cut()
            slices, self._slices = tuple(self._slices), []
        tensors = self.tensors.cut() if self.tensors is not None else None
        device_peak, gauges = self.device() if self.device is not None else ({}, {})
        peak_bytes = max(peak for _, peak in slices)
        if compose or self._is_news(peak_bytes, began_s):
            gauges = {**gauges, **self._compose(peak_bytes)}
        opened_s, self._opened_s = self._opened_s, self.now_s()
        self._closed.append(
            _Closed(
                kind=kind,
                start_s=opened_s,
                end_s=self._opened_s,
                close_s=self._opened_s - began_s,
                slices=slices,
                last=last,
                tensors=tensors,
                peak={"host.hwm": peak_bytes, **device_peak},
                gauges={**gauges, **(engine or {})},
                in_flight=in_flight,
                prefill_tokens=prefill_tokens,
                decode_tokens=decode_tokens,
                waiting=waiting,
            )
        )
        return self._opened_s

    @property
    def kept(self) -> int:
        """Segments closed and not taken."""
        return len(self._closed)

    def take(self) -> list[dict[str, Any]]:
        """The segments that were closed since the last call, in order: the fields of a Segment, with
        tuples for in_flight (the fields of InFlight) and slices (those of Slice)."""
        closed, self._closed = self._closed, []
        return [self._fields_of(one) for one in closed]

    # --- steps -----------------------------------------------------------------------------

    def _fields_of(self, closed: _Closed) -> dict[str, Any]:
        peak, gauges = dict(closed.peak), self._family.gauges_of(closed.last)
        fields: dict[str, Any] = {
            "engine_start": self._engine_start,
            "kind": closed.kind,
            "start_s": closed.start_s,
            "end_s": closed.end_s,
            "peak": peak,
            "gauges": gauges,
            "in_flight": closed.in_flight,
            "prefill_tokens": closed.prefill_tokens,
            "decode_tokens": closed.decode_tokens,
            "close_s": closed.close_s,
            "waiting": closed.waiting,
            "slices": closed.slices if len(closed.slices) > 1 else (),
        }
        gauges |= closed.gauges
        if self.tensors is not None and closed.tensors is not None:
            tensors = self.tensors.peaks_of(closed.tensors)
            peak["engine.tensors"] = tensors.peak_bytes
            gauges["engine.tensors"] = tensors.live_bytes
            fields |= {"tensors": tensors.by_owner, "peak_module": tensors.module}
        return fields

    def _cut(self) -> Cut:
        """Ends a slice; the lock is held."""
        cut = self._family.cut()
        self._cut_s = self.now_s()
        if self._slices and self._slices[-1][1] == cut.peak_bytes:
            self._slices.pop()  # two of one height are one
        self._slices.append((self._cut_s, cut.peak_bytes))
        return cut

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
