"""Whether the time of a run can be believed: every duration and latency is a difference of two times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from memplan.records import Finding, Recording

_MOVED_S = 1.0
_MOVED_RATIO = 0.001
"""A margin only: NTP slews the monotonic clock like the wall clock (clock_gettime(2))."""


def _stepped_back(recording: Recording) -> Iterator[Finding]:
    """What has a step in it is left out of every duration and latency, never counted as negative."""
    requests = [
        _largest_step_s(t for t in times if t is not None)
        for o in recording.outcomes.values()
        for times in [(o.intended_s, o.sent_s, o.admitted_s, o.first_token_s, o.end_s)]
    ]
    steps_s = {
        "segments": [s.start_s - s.end_s for s in recording.segments],
        "samples": [a.t_s - b.t_s for a, b in pairwise(recording.samples)],
        "requests": requests,
    }
    back = {what: [step for step in steps if step > 0] for what, steps in steps_s.items()}
    told = ", ".join(f"{len(steps)} {what}" for what, steps in back.items() if steps)
    if told:
        largest_s = max(step for steps in back.values() for step in steps)
        yield Finding(
            code="clock_stepped_back",
            text=f"Time ran backwards by up to {largest_s:.3f} s in {told}: how long they lasted is "
            "unknown. Such segments have no weight and such latencies are left out; their peaks "
            "count.",
            hint="A monotonic clock does not do this: look for a machine that was restored or moved "
            "meanwhile, or for files of a run that were changed; replay again.",
        )


def _largest_step_s(times: Iterable[float]) -> float:
    """By how much a time lies before the one that should come before it; 0 where none does."""
    return max((a - b for a, b in pairwise(times)), default=0.0)


def _wall_moved(recording: Recording) -> Iterator[Finding]:
    end = recording.end
    if end is None or end.wall_s is None:
        return
    ahead_s = end.wall_s - end.ended_s
    if abs(ahead_s) > _MOVED_S + _MOVED_RATIO * end.ended_s:
        way, cause = (
            ("more", "set forward, or the machine slept") if ahead_s > 0 else ("less", "set back")
        )
        yield Finding(
            code="wall_clock_moved",
            text=f"The wall clock moved {abs(ahead_s):.1f} s {way} than the run's own clock: it was "
            f"{cause}. Durations are by the run's own clock, which rests while a machine sleeps: "
            "what the engine did around a sleep is not its usual pace.",
            hint="If the machine slept, replay on one that does not; if its clock was set, only the "
            "times of day in logs are off.",
        )


RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (_stepped_back, _wall_moved)
