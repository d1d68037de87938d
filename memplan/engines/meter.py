"""Closes segments inside an engine worker: the exact peak of an interval, and what was in it.

The worker is the only owner of its own high-water mark. Closing a segment cuts the process's life
there (``cuts``, in C where it can be); what was read is understood later, for many segments at once,
because code that runs once a step finds none of itself in the processor's caches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Protocol

from memplan.compiled import Compiled
from memplan.engines.chosen_cuts import ChosenCuts
from memplan.engines.composition import HostComposition
from memplan.engines.family import Family
from memplan.engines.news import News
from memplan.engines.raw_segments import (
    NOTHING_RAN,
    Known,
    TensorNames,
    Told,
    fields_of,
    packed_segments,
    unpacked_segments,
)
from memplan.records import SegmentKind

_NOTHING: Mapping[str, int] = {}  # no proxy: marshal packs plain dicts only
_NO_LIBRARY = Compiled(path=None, reason="no library was given")

KEEP_MARK = "MEMPLAN_KEEP_HIGH_WATER"
"""Environment variable of the engine: leaves the kernel's high-water mark to run on, so that it can
be compared with the peaks of another run."""

DevicePeaks = Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]
"""Reads a device's (peak, gauges) and resets its peak."""


class TensorCounter(Protocol):
    """Counts live host tensors. An interval ends in a hurry and is understood later, by
    ``raw_segments.tensor_peaks``."""

    def cut(self) -> bytes:
        """Ends the interval since the last call."""
        ...

    @property
    def names(self) -> TensorNames: ...

    @property
    def c_function(self) -> tuple[int, int] | None:
        """Address of what does the same in C: writes the bytes of a cut to where its one argument
        points; and how many bytes those are. None where only Python can."""
        ...


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
        self._closed: list[tuple[Known, Callable[[], Told]]] = []
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
        told: Callable[[], Told] = lambda: NOTHING_RAN,
        compose: bool = False,
        engine: Mapping[str, int] = _NOTHING,
    ) -> float:
        """Ends the open segment and opens the next one; returns when: the instant at which the mark
        was set back. ``engine`` holds gauges of its own. ``take`` tells of the segment, and asks what is
        ``told`` of it only then."""
        end_s, peak_bytes, began_s = self._cuts.end()
        if end_s < 0:
            end_s, peak_bytes, began_s = self._cuts.end_otherwise()
        device_peak, gauges = self.device() if self.device is not None else (_NOTHING, _NOTHING)
        if compose or self._news.is_due(peak_bytes, end_s):
            gauges = {**gauges, **self._compose(peak_bytes)}
        self.last_peak_bytes = peak_bytes
        start_s, self._opened_s = self._opened_s, end_s
        close_s = monotonic() - self._epoch_s - began_s
        self._closed.append(((kind, start_s, close_s, device_peak, gauges, engine), told))
        return end_s

    @property
    def kept(self) -> int:
        """Segments closed and not taken."""
        return len(self._closed)

    def take_packed(self) -> bytes:
        """The segments that were closed since the last call, in order, for ``unpacked_segments``."""
        closed, self._closed = self._closed, []
        told = [(known, tell()) for known, tell in closed]
        return packed_segments(told, self._cuts.taken_raw())

    def take(self) -> list[dict[str, Any]]:
        """The same, understood: the fields of Segments."""
        return [
            fields_of(one, self.tensor_names, engine_start=self._engine_start)
            for one in unpacked_segments(self.take_packed())
        ]

    @property
    def tensor_names(self) -> TensorNames | None:
        """None where live tensors are not counted."""
        return self._tensors.names if self._tensors is not None else None

    # --- steps -----------------------------------------------------------------------------

    def _compose(self, peak_bytes: int) -> Mapping[str, int]:
        if self.composition is None:
            return _NOTHING
        began_s = self.now_s()
        gauges = self.composition.read()
        self._news.was_read(peak_bytes, began_s=began_s, ended_s=self.now_s())
        return gauges
