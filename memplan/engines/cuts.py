"""Where a process's life is cut into intervals with exact peaks: the seam, and the way in Python."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from memplan.engines.family import Cut, Family

LONGEST_SLICE_S = 0.05
"""No interval without a reading is longer; in Python, but for C code that does not let Python run."""

Slices = tuple[tuple[float, int], ...]
"""(end_s, peak_bytes) of each part of a segment."""


CutTensors = Callable[[], bytes]
"""Ends the interval in which live tensors are counted; what was counted, not yet understood."""


class Ended(NamedTuple):
    """A segment's reading. What it held when it ended is understood when that is asked for."""

    slices: Slices
    gauges_of: Callable[[], Mapping[str, int]]
    tensors: bytes | None

    @property
    def end_s(self) -> float:
        return self.slices[-1][0]

    @property
    def peak_bytes(self) -> int:
        return max(peak_bytes for _, peak_bytes in self.slices)


class Cuts(Protocol):
    """Ends segments at the instant at which the mark is set back: what was resident before belongs to
    the one that ends, what is resident after to the next."""

    @property
    def end(self) -> Callable[[], tuple[float, int, float]]:
        """Ends the open segment: when, its peak, and when ending it began. A time below 0: nothing was
        ended, because there is no room until ``taken``, or because another way must go on."""
        ...

    def taken(self) -> list[Ended]:
        """Those that ended since the last call, in order."""
        ...

    def pause(self, *, is_paused: bool) -> None:
        """While paused nothing is cut but by ``end``."""
        ...

    def stop(self) -> Slices:
        """Cuts no more; what the open segment has been cut into so far. ``taken`` still tells of those
        that ended."""
        ...


class PythonCuts:
    """Also for processes that have children, and for marks that cannot be set back.

    ``family`` owns the marks. Between reading and resetting another thread of Python may run: what it
    makes and drops meanwhile is seen by neither side. ``slices`` are those of the open segment so far;
    a thread goes on cutting it where it ``is_slicing``.
    """

    def __init__(
        self,
        family: Family,
        *,
        epoch_s: float,
        slices: Slices,
        cut_tensors: CutTensors | None,
        is_slicing: bool,
    ) -> None:
        self._family = family
        self._epoch_s = epoch_s
        self._cut_tensors = cut_tensors
        self._lock = threading.Lock()
        self._slices = list(slices)
        self._ended: list[Ended] = []
        self._is_over = threading.Event()
        self._is_paused = False
        self.cut_s = self._now_s()
        """When the mark was set back last."""
        if is_slicing:
            threading.Thread(target=self._keep_cutting, name="memplan-slices", daemon=True).start()

    def end(self) -> tuple[float, int, float]:
        began_s = self._now_s()
        with self._lock:
            last = self._cut()
            slices, self._slices = tuple(self._slices), []
        tensors = self._cut_tensors() if self._cut_tensors is not None else None
        ended = Ended(slices, lambda: self._family.gauges_of(last), tensors)
        self._ended.append(ended)
        return ended.end_s, ended.peak_bytes, began_s

    def taken(self) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def pause(self, *, is_paused: bool) -> None:
        with self._lock:
            self._is_paused = is_paused

    def stop(self) -> Slices:
        self._is_over.set()
        with self._lock:
            return tuple(self._slices)

    # --- steps -----------------------------------------------------------------------------

    def _cut(self) -> Cut:
        """Ends a slice; the lock is held."""
        cut = self._family.cut()
        self.cut_s = cut.at_s - self._epoch_s
        if self._slices and self._slices[-1][1] == cut.peak_bytes:
            self._slices.pop()  # two of one height are one
        self._slices.append((self.cut_s, cut.peak_bytes))
        return cut

    def _keep_cutting(self) -> None:
        while not self._is_over.wait(max(0.001, self.cut_s + LONGEST_SLICE_S - self._now_s())):
            with self._lock:
                is_due = self._now_s() >= self.cut_s + LONGEST_SLICE_S
                if is_due and not self._is_paused and not self._is_over.is_set():
                    self._cut()

    def _now_s(self) -> float:
        return time.monotonic() - self._epoch_s
