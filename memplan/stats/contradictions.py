"""Segments that other readings contradict: their mark was reset by somebody else.

The kernel's mark is never below what is resident, so a reading inside a segment that is above its peak,
or a peak below what was resident when the segment opened, cannot come from one owner's resets. What
was read at an uncertain time proves nothing and is left out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from memplan.records import EngineFacts, Recording, Segment

EDGE_S = 1e-3
"""A reading this near to a segment's end, or to its closing, belongs to neither side of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """``excess_bytes``: by how much a reading is above the segment's exact peak."""

    segment: Segment
    excess_bytes: int


def above_peaks(recording: Recording) -> list[Contradiction]:
    """Segments with a reading of the witness or of the timeline above their peak and the drift bound.

    One for each segment, with its largest excess.
    """
    found: dict[int, Contradiction] = {}
    for segments in _by_engine(recording):
        for one in (*_of_witness(recording, segments), *_of_timeline(recording, segments)):
            known = found.get(id(one.segment))
            if known is None or one.excess_bytes > known.excess_bytes:
                found[id(one.segment)] = one
    bound_bytes = recording.header.drift_bound_bytes
    return [one for one in found.values() if one.excess_bytes > bound_bytes]


def below_own_ends(recording: Recording) -> list[Contradiction]:
    """Segments whose peak is below what was resident when they opened or when they closed."""
    found = []
    for segments in _by_engine(recording):
        for before, segment in pairwise(segments):
            at_ends = max(before.gauges.get("host.rss", 0), segment.gauges.get("host.rss", 0))
            excess_bytes = at_ends - segment.peak.get("host.hwm", at_ends)
            if before.close_s > EDGE_S:
                continue  # between the reading and the reset another thread can give memory back
            if excess_bytes > recording.header.drift_bound_bytes and _alike(before, segment):
                found.append(Contradiction(segment=segment, excess_bytes=excess_bytes))
    return found


def _alike(before: Segment, segment: Segment) -> bool:
    """Sums over as many processes; a child that ended took its memory, and no peak, with it."""
    return before.gauges.get("host.processes", 1) == segment.gauges.get("host.processes", 1)


def _by_engine(recording: Recording) -> Iterator[list[Segment]]:
    """Of each engine the segments whose marks were reset, in order of time."""
    for engine in recording.engines:
        if engine.settings.get("segment_peaks", "exact") == "exact":
            yield [
                s
                for s in recording.segments
                if s.engine_start == engine.engine_start
                and "host.hwm" in s.peak
                and "host.hwm_life" not in s.gauges  # from here on the right to reset was lost
            ]


def _of_witness(recording: Recording, segments: list[Segment]) -> Iterator[Contradiction]:
    if recording.witness is None or not segments:
        return
    times, values = recording.witness.t_s, recording.witness.rss_bytes
    followed_s = _followed_s(recording, segments)
    opening_s = 0.0
    for segment in segments:
        # Its mark was read before its end and set back after it: both while it was being closed.
        first = bisect_right(times, max(segment.start_s + opening_s + EDGE_S, followed_s[0]))
        last = bisect_left(times, min(segment.end_s - segment.close_s - EDGE_S, followed_s[1]))
        opening_s = segment.close_s
        if first < last:
            excess_bytes = max(values[first:last]) - segment.peak["host.hwm"]
            yield Contradiction(segment=segment, excess_bytes=excess_bytes)


def _of_timeline(recording: Recording, segments: list[Segment]) -> Iterator[Contradiction]:
    """A sample was read some time between the stamp of the one before and its own, because memplan
    can lose its core between reading and stamping: it contradicts what holds that whole time."""
    if not segments:
        return
    ends = [segment.end_s for segment in segments]
    starts = [segment.start_s for segment in segments]
    followed_s = _followed_s(recording, segments)
    before_s = None
    for sample in recording.samples:
        since_s, before_s = before_s, sample.t_s
        if since_s is None or not followed_s[0] <= since_s or not sample.t_s <= followed_s[1]:
            continue
        low_s, high_s = since_s - EDGE_S, sample.t_s + EDGE_S
        first, last = bisect_left(ends, low_s), bisect_right(starts, high_s)
        if low_s < starts[0] or high_s > ends[-1]:
            continue
        if any(s.close_s > EDGE_S for s in segments[max(0, first - 1) : last]):
            continue  # it may have been read between the reading of a mark and its reset
        highest = max(segments[first:last], key=lambda s: s.peak["host.hwm"])
        excess_bytes = sample.values.get("host.rss", 0) - highest.peak["host.hwm"]
        yield Contradiction(segment=highest, excess_bytes=excess_bytes)


def _followed_s(recording: Recording, segments: list[Segment]) -> tuple[float, float]:
    """While outside readings were of this engine: from ready until another one was."""
    ready = {engine.engine_start: engine for engine in recording.engines}
    mine: EngineFacts = ready[segments[0].engine_start]
    later = [e.ready_s for e in recording.engines if e.ready_s > mine.ready_s]
    return mine.ready_s, min(later, default=float("inf"))
