"""Segments of processes that do not know of memplan: their marks are read and set back from outside."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from memplan.engines.cuts import LONGEST_SLICE_S
from memplan.engines.family import Family
from memplan.records import InFlight, Segment, SegmentKind, Slice

SHORTEST_SEGMENT_S = 0.005
"""Requests that begin or end within it share a segment: reading is work, and beside the server."""


class OutsideMeter:
    """The whole trees of ``pids``, whose only owner of marks it is from now on.

    With several processes a peak is the sum of their peaks, an upper bound (``host.processes``). Where
    marks may not be set back peaks are readings at the ends. Raises ProcessLookupError when one of
    ``pids`` is gone, and PermissionError where it may not be read.
    """

    def __init__(self, pids: Sequence[int], *, epoch_s: float, engine_start: int) -> None:
        self._families = [Family(resets=True, pid=pid) for pid in pids]
        for family in self._families:
            family.look_for_children()
        self._epoch_s = epoch_s
        self._engine_start = engine_start
        self._slices: list[Slice] = []
        self._gauges: Mapping[str, int] = {}
        self._opened_s = self._cut_s = self.now_s()

    @property
    def is_exact(self) -> bool:
        return all(family.is_exact for family in self._families)

    @property
    def is_due(self) -> bool:
        """Whether the open slice is as long as one may be. Where memplan itself pauses one is longer,
        and its peak exact all the same."""
        return self.now_s() >= self._cut_s + LONGEST_SLICE_S

    @property
    def is_young(self) -> bool:
        return self.now_s() < self._opened_s + SHORTEST_SEGMENT_S

    def now_s(self) -> float:
        return time.monotonic() - self._epoch_s

    def all_pids(self) -> tuple[int, ...]:
        """Those whose memory it sums."""
        return tuple(pid for family in self._families for pid in family.pids)

    def slice(self) -> None:
        """Ends a slice of the open segment. Raises ProcessLookupError, as ``close`` does."""
        cuts = [family.cut() for family in self._families]
        self._cut_s = cuts[-1].at_s - self._epoch_s
        gauges: dict[str, int] = {}
        for family, cut in zip(self._families, cuts, strict=True):
            for name, size in family.gauges_of(cut).items():
                gauges[name] = gauges.get(name, 0) + size
        self._gauges = gauges
        peak_bytes = sum(cut.peak_bytes for cut in cuts)
        if self._slices and self._slices[-1].peak_bytes == peak_bytes:
            self._slices.pop()
        self._slices.append(Slice(end_s=self._cut_s, peak_bytes=peak_bytes))

    def close(
        self,
        kind: SegmentKind,
        *,
        in_flight: tuple[InFlight, ...] = (),
        prefill_tokens: int = 0,
        decode_tokens: int = 0,
        waiting: int = 0,
        engine: Mapping[str, int] | None = None,
    ) -> Segment:
        """Ends the open segment and opens the next. ``engine`` holds the server's own gauges."""
        began_s = self.now_s()
        self.slice()
        start_s, self._opened_s = self._opened_s, self._cut_s
        slices, self._slices = tuple(self._slices), []
        return Segment(
            engine_start=self._engine_start,
            kind=kind,
            start_s=start_s,
            end_s=self._cut_s,
            peak={"host.hwm": max(one.peak_bytes for one in slices)},
            gauges={**self._gauges, **(engine or {})},
            in_flight=in_flight,
            prefill_tokens=prefill_tokens,
            decode_tokens=decode_tokens,
            close_s=self.now_s() - began_s,
            waiting=waiting,
            slices=slices if len(slices) > 1 else (),
        )
