"""What the engine gave up when its memory limit came near: which steps, how often, for how long.

A segment's gauge says how many of the deployment's ``degrade`` steps were taken; they are taken in
their order, so the number names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memplan.records import Recording, RequestRecord, Segment

LEVEL = "engine.degradation"
_REASON = "memory_pressure"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenStep:
    name: str
    times: int
    """How often it was taken."""
    lasted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Degraded:
    steps: tuple[TakenStep, ...]
    """All of the deployment's, in their order; those never taken have 0 times."""
    lasted_s: float
    """With at least one of them taken."""
    served_s: float
    """In all."""
    at_bytes: int | None
    """The threshold; None where the recording does not say."""
    most_bytes: int | None
    """The largest working set at which the engine decided."""
    rejected: int
    """Requests that were not taken because of it."""
    waited: int
    """Requests that waited for it."""
    preempted: int
    """Of them, those that had run already."""
    shortened: int
    """Requests sent meanwhile that were answered with fewer tokens: the queue was full."""


def degraded_of(recording: Recording, serving: Sequence[Segment]) -> Degraded | None:
    """None where no engine says that it would give anything up."""
    known = [segment for segment in serving if LEVEL in segment.gauges]
    if not known:
        return None
    settings = recording.header.deployment.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    names = _names(settings, known)
    outcomes = recording.outcomes.values()
    waited = [one for one in outcomes if one.waited_s.get(_REASON)]
    spells = [(s.start_s, s.end_s) for s in known if s.gauges[LEVEL]]
    return Degraded(
        steps=tuple(_step(number, name, known) for number, name in enumerate(names, 1)),
        lasted_s=sum(max(0.0, end_s - start_s) for start_s, end_s in spells),
        served_s=sum(max(0.0, s.end_s - s.start_s) for s in known),
        at_bytes=_at_bytes(settings),
        most_bytes=max(
            (s.gauges["engine.working_set"] for s in known if "engine.working_set" in s.gauges),
            default=None,
        ),
        rejected=sum(one.outcome == "rejected" and one.reason == _REASON for one in outcomes),
        waited=len(waited),
        preempted=sum(one.preemptions > 0 for one in waited),
        shortened=sum(one.is_shortened and _is_within(one, spells) for one in outcomes),
    )


def _names(settings: Mapping[str, object], known: Sequence[Segment]) -> tuple[str, ...]:
    """As the deployment has them; by their number where it does not say."""
    named = settings.get("degrade")
    names = [str(name) for name in named] if isinstance(named, Sequence) else []
    most = max(segment.gauges[LEVEL] for segment in known)
    return (*names, *(f"step {number}" for number in range(len(names) + 1, most + 1)))


def _step(number: int, name: str, known: Sequence[Segment]) -> TakenStep:
    times = 0
    before = 0
    start: int | None = None
    for segment in known:
        if segment.engine_start != start:
            start, before = segment.engine_start, 0
        level = segment.gauges[LEVEL]
        times += before < number <= level
        before = level
    return TakenStep(name=name, times=times, lasted_s=sum(_lasting(number, known)))


def _lasting(number: int, known: Sequence[Segment]) -> Iterator[float]:
    for segment in known:
        if segment.gauges[LEVEL] >= number:
            yield max(0.0, segment.end_s - segment.start_s)


def _at_bytes(settings: Mapping[str, object]) -> int | None:
    limit, ratio = settings.get("memory_limit_bytes"), settings.get("degrade_at")
    if isinstance(limit, int) and isinstance(ratio, int | float):
        return int(ratio * limit)
    return None


def _is_within(outcome: RequestRecord, spells: Sequence[tuple[float, float]]) -> bool:
    sent_s = outcome.sent_s
    return sent_s is not None and any(start_s <= sent_s <= end_s for start_s, end_s in spells)
