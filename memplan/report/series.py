"""The data behind each chart, taken from recordings and summaries: plain numbers, no drawing.

Long timelines are thinned by keeping the largest value of each bucket, so that no peak is lost;
the caption says when that was done.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from memplan.records import EngineFacts, Recording, Segment
from memplan.stats.attribution import gpu_prefix, gpu_resident_bytes, peak_owned_bytes
from memplan.stats.kv_pool import pool_bytes
from memplan.stats.summary import Attribution, Percentiles, Rung, RunSummary

MOST_POINTS = 1500
"""More steps than a chart has pixels across only make the file heavier."""

Place = Literal["cpu", "gpu"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTimeline:
    """Exact peaks per segment, sampled readings between them, and what was in flight."""

    id: str
    title: str
    caption: str
    start_s: tuple[float, ...]
    """Where each step begins; it lasts to the next."""
    end_s: float
    peak_bytes: tuple[int | None, ...]
    sample_s: tuple[float, ...]
    sample_bytes: tuple[int, ...]
    sample_name: str
    idle_bytes: int | None
    setup_end_s: tuple[tuple[float, float], ...]
    """Spans in which an engine was started, loaded and warmed up."""
    in_flight: tuple[tuple[str, tuple[int, ...]], ...]
    """Class name and its requests in flight, one count a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTimeline:
    """KV blocks by whose they are, in bytes: layers that lie on each other, and the offload tier."""

    id: str
    title: str
    caption: str
    start_s: tuple[float, ...]
    """Where each step begins; it lasts to the next."""
    end_s: float
    layers: tuple[tuple[str, tuple[int, ...]], ...]
    offloaded_bytes: tuple[int, ...]
    """Beside the pool, not in it; empty where nothing ever was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakParts:
    """Where the peak went; a part can be negative only when it is the unexplained rest."""

    id: str
    title: str
    caption: str
    parts: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPoint:
    class_name: str
    request_id: str
    owned_bytes: float
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAgainstLatency:
    """One point a completed request."""

    id: str
    title: str
    caption: str
    class_names: tuple[str, ...]
    points: tuple[RequestPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BarPanel:
    title: str
    unit: Literal["bytes", "s"]
    groups: tuple[tuple[str, Percentiles], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentileBars:
    id: str
    title: str
    caption: str
    panels: tuple[BarPanel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderPoint:
    x: int
    measured_bytes: int
    kv_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """Measured growth over idle against what the KV formula says."""

    id: str
    title: str
    caption: str
    x_title: str
    runs: tuple[tuple[str, tuple[LadderPoint, ...]], ...]
    """One variant each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallBar:
    """One measured step; ``change_bytes`` None starts anew from zero."""

    name: str
    idle_bytes: float | None
    peak_bytes: float
    change_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackWaterfall:
    """The peak with each step of a stack and all below it, from the base on."""

    id: str
    title: str
    caption: str
    bars: tuple[WaterfallBar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPoint:
    name: str
    latency_s: float
    peak_bytes: float
    peak_reach_bytes: float
    """How far another measurement may be from it, to either side."""
    quality: str
    is_quality_known: bool
    is_on_front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFront:
    """Peak memory against latency, one point a variant, and which of them no other beats."""

    id: str
    title: str
    caption: str
    x_title: str
    points: tuple[VariantPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCurves:
    """Cumulative distributions over time, the reference's beside the one that was reached."""

    id: str
    title: str
    caption: str
    panels: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]
    """Name, and quantiles of both at even steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalRate:
    """How many requests a trace brings, period by period."""

    id: str
    title: str
    caption: str
    period_s: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCurves:
    """Cumulative distributions of lengths, on a logarithmic scale."""

    id: str
    title: str
    caption: str
    lines: tuple[tuple[str, tuple[int, ...]], ...]
    """Name, and quantiles at even steps from the least to the greatest."""


Chart = (
    MemoryTimeline
    | KvTimeline
    | PeakParts
    | MemoryAgainstLatency
    | PercentileBars
    | Ladder
    | StackWaterfall
    | VariantFront
    | StateCurves
    | ArrivalRate
    | LengthCurves
)


def timeline_of(recording: Recording, summary: RunSummary, place: Place, id: str) -> MemoryTimeline:
    """The process over the whole run, from the engine's start."""
    engines = {engine.engine_start: engine for engine in recording.engines}
    segments = _buckets(recording.segments)
    samples = [
        (sample.t_s, reading)
        for sample in recording.samples
        if (reading := _sampled_bytes(sample.values, place)) is not None
    ]
    kept = [max(bucket, key=lambda pair: pair[1]) for bucket in _buckets(samples)]
    busiest = [max(bucket, key=lambda segment: len(segment.in_flight)) for bucket in segments]
    thinned = len(recording.segments) > len(segments) or len(samples) > len(kept)
    return MemoryTimeline(
        id=id,
        title="GPU memory over the run" if place == "gpu" else "Resident memory over the run",
        caption=_timeline_caption(len(recording.segments), len(samples), thinned),
        start_s=tuple(bucket[0].start_s for bucket in segments),
        end_s=recording.segments[-1].end_s if recording.segments else 0.0,
        peak_bytes=tuple(_largest_peak(bucket, engines, place) for bucket in segments),
        sample_s=tuple(t_s for t_s, _ in kept),
        sample_bytes=tuple(reading for _, reading in kept),
        sample_name="sampled, whole device" if place == "gpu" else "sampled resident (RSS)",
        idle_bytes=summary.gpu_idle_bytes if place == "gpu" else summary.idle_bytes,
        setup_end_s=_setup_spans(recording.segments),
        in_flight=_in_flight(recording, summary, busiest),
    )


def kv_timeline_of(recording: Recording, id: str) -> KvTimeline | None:
    """None where blocks were never shared, kept or offloaded: the memory timeline says the rest."""
    told = [one for one in recording.segments if "engine.kv_kept" in one.gauges]
    names = ("engine.kv_shared", "engine.kv_kept", "engine.kv_offloaded")
    if not any(one.gauges.get(name) for one in told for name in names):
        return None
    buckets = _buckets(told)
    fullest = [max(bucket, key=lambda one: pool_bytes(one.gauges)) for bucket in buckets]

    def series(name: str) -> tuple[int, ...]:
        return tuple(one.gauges.get(name, 0) for one in fullest)

    held, shared = series("engine.kv_blocks"), series("engine.kv_shared")
    offloaded = series("engine.kv_offloaded")
    thinned = (
        f" Thinned to at most {MOST_POINTS:,} points by keeping the fullest of each bucket."
        if len(told) > len(buckets)
        else ""
    )
    return KvTimeline(
        id=id,
        title="KV blocks over the run",
        caption="Whole blocks at the end of each segment, each counted once. What is kept makes way as "
        f"soon as its room is needed.{thinned}",
        start_s=tuple(bucket[0].start_s for bucket in buckets),
        end_s=told[-1].end_s,
        layers=(
            ("of one request", tuple(a - b for a, b in zip(held, shared, strict=True))),
            ("of several requests", shared),
            ("kept", series("engine.kv_kept")),
        ),
        offloaded_bytes=offloaded if any(offloaded) else (),
    )


def _timeline_caption(segments: int, samples: int, thinned: bool) -> str:
    exact = (
        f"The step line is the exact high-water mark of each of {segments:,} segments; the thin "
        f"line joins {samples:,} samples and can miss what the steps cannot. Shaded: the engine "
        "starts, loads and warms up."
    )
    if not thinned:
        return exact
    return (
        f"{exact} Thinned to at most {MOST_POINTS:,} points by keeping the largest of each "
        "bucket, and for requests in flight the busiest segment of each: no peak is lost."
    )


def _buckets(items: Sequence[T]) -> list[Sequence[T]]:
    """At most MOST_POINTS runs of neighbours, as even as they come."""
    size = -(-len(items) // MOST_POINTS) or 1
    return [items[at : at + size] for at in range(0, len(items), size)]


def _largest_peak(
    bucket: Sequence[Segment], engines: Mapping[int, EngineFacts], place: Place
) -> int | None:
    found = (_peak_bytes(one, engines.get(one.engine_start), place) for one in bucket)
    return max((peak for peak in found if peak is not None), default=None)


def _peak_bytes(segment: Segment, engine: EngineFacts | None, place: Place) -> int | None:
    if place == "cpu":
        return segment.peak.get("host.hwm")
    # Before the engine has said which device it is on, nothing can be charged to one.
    if engine is None or f"{gpu_prefix(engine)}.reserved" not in segment.peak:
        return None
    return gpu_resident_bytes(segment, engine)


def _sampled_bytes(values: Mapping[str, int], place: Place) -> int | None:
    if place == "cpu":
        return values.get("host.rss")
    return next((values[name] for name in values if re.fullmatch(r"nvml\.\d+\.used", name)), None)


def _setup_spans(segments: Sequence[Segment]) -> tuple[tuple[float, float], ...]:
    spans: list[tuple[float, float]] = []
    for segment in segments:
        if segment.kind not in ("start", "load", "warmup"):
            continue
        if spans and spans[-1][1] == segment.start_s:
            spans[-1] = (spans[-1][0], segment.end_s)
        else:
            spans.append((segment.start_s, segment.end_s))
    return tuple(spans)


def _in_flight(
    recording: Recording, summary: RunSummary, segments: Sequence[Segment]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    class_of = {request.request_id: request.class_name for request in recording.requests}
    names = tuple(one.name for one in summary.classes)
    counts = [Counter(class_of.get(part.request_id) for part in one.in_flight) for one in segments]
    return tuple((name, tuple(count[name] for count in counts)) for name in names)


def parts_of(attribution: Attribution) -> tuple[tuple[str, int], ...]:
    """The parts in the order in which a process takes them, the unexplained rest last."""
    return (
        ("weights", attribution.weights_bytes),
        ("runtime", attribution.runtime_bytes),
        ("page cache", attribution.page_cache_bytes),
        ("KV cache", attribution.kv_bytes),
        ("activations", attribution.activations_bytes),
        ("allocator slack", attribution.allocator_slack_bytes),
        ("unexplained", attribution.unexplained_bytes),
    )


def latency_points_of(recording: Recording, place: Place) -> tuple[tuple[RequestPoint, ...], int]:
    """Completed requests with the most each of them owned, and how many there were.

    More than MOST_POINTS are thinned evenly, in the order in which they came to run.
    """
    class_of = {request.request_id: request.class_name for request in recording.requests}
    engines = {engine.engine_start: engine for engine in recording.engines}
    points = []
    for request_id, bytes_ in peak_owned_bytes(recording.segments, engines, place).items():
        record = recording.outcomes.get(request_id)
        if record is None or record.end_s is None or record.intended_s is None:
            continue
        if record.outcome == "completed":
            points.append(
                RequestPoint(
                    class_name=class_of.get(request_id, "unknown"),
                    request_id=request_id,
                    owned_bytes=bytes_,
                    latency_s=record.end_s - record.intended_s,
                )
            )
    step = -(-len(points) // MOST_POINTS) or 1
    return tuple(points[::step]), len(points)


def length_points_of(rungs: Sequence[Rung]) -> tuple[LadderPoint, ...]:
    """The rungs with one request alone, by its length."""
    return tuple(
        LadderPoint(
            x=rung.tokens_per_request,
            measured_bytes=rung.peak_bytes - rung.idle_bytes,
            kv_bytes=rung.kv_bytes,
        )
        for rung in sorted(rungs, key=lambda rung: rung.tokens_per_request)
        if rung.requests == 1 and rung.tokens_per_request > 0
    )


def batch_points_of(rungs: Sequence[Rung]) -> tuple[LadderPoint, ...]:
    """The rungs with several requests at once, by how many; of equal counts the largest."""
    largest: dict[int, Rung] = {}
    for rung in rungs:
        known = largest.get(rung.requests)
        if rung.requests > 1 and (known is None or rung.peak_bytes > known.peak_bytes):
            largest[rung.requests] = rung
    return tuple(
        LadderPoint(
            x=count,
            measured_bytes=rung.peak_bytes - rung.idle_bytes,
            kv_bytes=rung.kv_bytes,
        )
        for count, rung in sorted(largest.items())
    )
