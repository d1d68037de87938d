"""Sources that were lost on the way, and what was therefore measured by less than before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from memplan.records import Finding, Recording, Segment


def _reset_lost(recording: Recording) -> Iterator[Finding]:
    """A mark of the whole life beside a segment means that the segment's own could not be reset."""
    for engine in recording.engines:
        mine = [s for s in recording.segments if s.engine_start == engine.engine_start]
        lost = [s for a, s in pairwise(mine) if not _is_by_ends(a) and _is_by_ends(s)]
        if lost:
            yield Finding(
                code="reset_lost",
                text=f"From {lost[0].start_s:.1f} s on the kernel's high-water mark could not be "
                "reset any more. Peaks before that are exact; after it they are readings at the ends "
                "of segments, and a spike inside one is missed. The peak of the whole run is still "
                "the kernel's own.",
                hint="Find out who withdrew /proc/PID/clear_refs from the engine (a sandbox, a "
                "security module) and replay again.",
            )


def _is_by_ends(segment: Segment) -> bool:
    return "host.hwm_life" in segment.gauges


def _process_hidden(recording: Recording) -> Iterator[Finding]:
    most = max((s.values.get("host.processes_hidden", 0) for s in recording.samples), default=0)
    if most:
        yield Finding(
            code="process_hidden",
            text=f"Of the engine's processes up to {most} could not be read (/proc hides them from "
            "this user): what they hold is missing from the timeline and from every peak. The charged "
            "peak of the engine's control group has it.",
            hint="Run memplan as root, or on a machine whose /proc is mounted with hidepid=0.",
        )


def _process_vanished(recording: Recording) -> Iterator[Finding]:
    """Only while requests ran: what ends with a wave or a start is an engine's own affair."""
    counted = [
        (s.t_s, s.values["host.processes_gone"])
        for s in recording.samples
        if "host.processes_gone" in s.values
    ]
    gone = sum(
        after - before
        for (a, before), (b, after) in pairwise(counted)
        if after > before and _was_serving(recording, a, b)
    )
    if gone:
        yield Finding(
            code="process_vanished",
            text=f"{gone} of the engine's child processes ended while requests ran: what they held is "
            "missing from their last segment's peak and from every later one, and a request's memory "
            "may have fallen for no reason of its own.",
            hint="Look for the fall in the timeline; where children come and go, size by the charged "
            "peak of the engine's control group (cgroup.peak).",
        )


def _was_serving(recording: Recording, begin_s: float, end_s: float) -> bool:
    return any(
        o.sent_s is not None and o.sent_s <= end_s and (o.end_s is None or o.end_s >= begin_s)
        for o in recording.outcomes.values()
    )


def _samples_missing(recording: Recording) -> Iterator[Finding]:
    """A timeline that was cut between two batches reads as whole; only the end knows better."""
    if recording.end is None:
        return
    missing = recording.end.samples - len(recording.samples)
    if missing > 0:
        yield Finding(
            code="samples_missing",
            text=f"{missing:,} of {recording.end.samples:,} samples are not in the timeline: it ends "
            "early, and so does what only samples can say (children, charges, pressure). Exact peaks "
            "are not touched.",
            hint="Look for a disk that was full or a folder that was copied in part; replay again.",
        )


RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (
    _reset_lost,
    _process_hidden,
    _process_vanished,
    _samples_missing,
)
