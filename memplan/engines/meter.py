"""Closes segments inside an engine worker: the exact peak of an interval, and what was in it.

The worker is the only owner of its own high-water mark. Closing a segment cuts the process's life
there (``cuts``, in C where it can be); what was read is understood later, for many segments at once,
because code that runs once a step finds none of itself in the processor's caches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from memplan.compiled import Compiled
from memplan.engines.chosen_cuts import ChosenCuts
from memplan.engines.composition import HostComposition
from memplan.engines.cuts import Ended
from memplan.engines.family import Family
from memplan.engines.news import News
from memplan.records import SegmentKind

_NOTHING: Mapping[str, int] = MappingProxyType({})
_NO_LIBRARY = Compiled(path=None, reason="no library was given")

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

    @property
    def c_function(self) -> tuple[int, int] | None:
        """Address of what does the same in C: writes the bytes of a cut to where its one argument
        points; and how many bytes those are. None where only Python can."""
        ...


class _Closed(NamedTuple):
    """What is known of a segment beside its reading."""

    kind: SegmentKind
    start_s: float
    close_s: float
    device_peak: Mapping[str, int]
    gauges: Mapping[str, int]
    engine: Mapping[str, int]
    in_flight: tuple[Flight, ...]
    prefill_tokens: int
    decode_tokens: int
    waiting: int


class SegmentMeter:
    """Contiguous segments of one engine's processes, on the clock whose zero is ``epoch_s``.

    ``library`` is that of ``native_cuts``, or the reason why there is none.
    """

    def __init__(
        self, *, epoch_s: float, engine_start: int, library: Compiled = _NO_LIBRARY
    ) -> None:
        self._epoch_s = epoch_s
        self._engine_start = engine_start
        self.device: DevicePeaks | None = None
        self.composition: HostComposition | None = None
        self.last_peak_bytes = 0
        """Exact peak of host resident bytes in the segment that was closed last."""
        self._tensors: TensorCounter | None = None
        self._news = News()
        self._closed: list[_Closed] = []
        self._family = Family(resets=not os.environ.get(KEEP_MARK))
        self._cuts = ChosenCuts(self._family, library, epoch_s=epoch_s)
        self._opened_s = self.now_s()

    @property
    def is_exact(self) -> bool:
        return self._family.is_exact

    @property
    def way(self) -> str:
        """How segments are closed, in words."""
        return self._cuts.way

    @property
    def tensors(self) -> TensorCounter | None:
        return self._tensors

    @tensors.setter
    def tensors(self, counter: TensorCounter | None) -> None:
        self._tensors = counter
        if counter is not None:
            self._cuts.count_tensors(counter.cut, counter.c_function)

    def now_s(self) -> float:
        return monotonic() - self._epoch_s

    def slice_long_segments(self) -> None:
        """From now on what lasts longer than ``LONGEST_SLICE_S`` is cut, and in C if that can be."""
        self._cuts.slice_long_segments()

    def pause_slicing(self, *, is_paused: bool) -> None:
        self._cuts.pause(is_paused=is_paused)

    def stop_slicing(self) -> None:
        """No segment can be closed after this."""
        self._cuts.stop()

    def close(
        self,
        kind: SegmentKind,
        *,
        in_flight: tuple[Flight, ...] = (),
        prefill_tokens: int = 0,
        decode_tokens: int = 0,
        waiting: int = 0,
        compose: bool = False,
        engine: Mapping[str, int] = _NOTHING,
    ) -> float:
        """Ends the open segment and opens the next one; returns when: the instant at which the mark
        was set back. ``engine`` holds gauges of its own. ``take`` tells of the segment."""
        end_s, peak_bytes, began_s = self._cuts.end()
        if end_s < 0:
            end_s, peak_bytes, began_s = self._cuts.end_otherwise()
        device_peak, gauges = self.device() if self.device is not None else (_NOTHING, _NOTHING)
        if compose or self._news.is_due(peak_bytes, end_s):
            gauges = {**gauges, **self._compose(peak_bytes)}
        self.last_peak_bytes = peak_bytes
        start_s, self._opened_s = self._opened_s, end_s
        self._closed.append(
            _Closed(
                kind,
                start_s,
                monotonic() - self._epoch_s - began_s,
                device_peak,
                gauges,
                engine,
                in_flight,
                prefill_tokens,
                decode_tokens,
                waiting,
            )
        )
        return end_s

    @property
    def kept(self) -> int:
        """Segments closed and not taken."""
        return len(self._closed)

    def take(self) -> list[dict[str, Any]]:
        """The segments that were closed since the last call, in order: the fields of a Segment, with
        tuples for in_flight (the fields of InFlight) and slices (those of Slice)."""
        closed, self._closed = self._closed, []
        both = zip(closed, self._cuts.taken(), strict=True)
        return [self._fields_of(one, ended) for one, ended in both]

    # --- steps -----------------------------------------------------------------------------

    def _fields_of(self, closed: _Closed, ended: Ended) -> dict[str, Any]:
        peak = {"host.hwm": ended.peak_bytes, **closed.device_peak}
        gauges = {**ended.gauges_of(), **closed.gauges, **closed.engine}
        fields: dict[str, Any] = {
            "engine_start": self._engine_start,
            "kind": closed.kind,
            "start_s": closed.start_s,
            "end_s": ended.end_s,
            "peak": peak,
            "gauges": gauges,
            "in_flight": closed.in_flight,
            "prefill_tokens": closed.prefill_tokens,
            "decode_tokens": closed.decode_tokens,
            "close_s": closed.close_s,
            "waiting": closed.waiting,
            "slices": ended.slices if len(ended.slices) > 1 else (),
        }
        if self._tensors is not None and ended.tensors is not None:
            tensors = self._tensors.peaks_of(ended.tensors)
            peak["engine.tensors"] = tensors.peak_bytes
            gauges["engine.tensors"] = tensors.live_bytes
            fields |= {"tensors": tensors.by_owner, "peak_module": tensors.module}
        return fields

    def _compose(self, peak_bytes: int) -> Mapping[str, int]:
        if self.composition is None:
            return _NOTHING
        began_s = self.now_s()
        gauges = self.composition.read()
        self._news.was_read(peak_bytes, began_s=began_s, ended_s=self.now_s())
        return gauges
