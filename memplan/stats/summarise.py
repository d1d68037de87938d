"""A recording in, its RunSummary out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from memplan.records import EngineFacts, Recording, Request, RequestRecord, Segment
from memplan.stats import attribution as parts
from memplan.stats.findings import findings_of
from memplan.stats.ladder import rungs_of, solo_costs_of
from memplan.stats.percentiles import of_segments, of_values
from memplan.stats.summary import (
    Attribution,
    ClassSummary,
    Fidelity,
    Overhead,
    Percentiles,
    PlaceMemory,
    RunSummary,
)

_REQUESTS = "request-weighted, inverted CDF; 95 % interval from order statistics"
_TIME = (
    "time-weighted over segment peaks, inverted CDF; 95 % interval by block bootstrap (narrow on "
    "short runs)"
)
_ATTRIBUTED = "own KV + share of the step's transient by tokens, at its largest; " + _REQUESTS
SERVING = ("idle", "step", "release")
"""The kinds of segments that count for classes: the engine could take requests."""


def summarise(recording: Recording) -> RunSummary:
    """Everything a report says about one run. Pure: the same recording gives the same summary."""
    engines = {engine.engine_start: engine for engine in recording.engines}
    last = recording.engines[-1] if recording.engines else None
    serving = [s for s in recording.segments if s.kind in SERVING and s.engine_start in engines]
    owned = {place: parts.peak_owned_bytes(serving, engines, place) for place in ("cpu", "gpu")}
    classes = tuple(
        _class_summary(name, rule, recording, serving, engines, owned)
        for name, rule in _class_rules(recording).items()
    )
    host, gpu = _attributions(serving, recording.segments, engines)
    done = [o for o in recording.outcomes.values() if o.outcome == "completed"]
    busy_s = _busy_s(recording.outcomes.values())
    return RunSummary(
        path=recording.path,
        kind=recording.header.kind,
        run_id=recording.header.run_id,
        deployment_name=recording.header.deployment_name,
        variant=recording.header.variant,
        idle_bytes=last.idle.get("host.rss") if last else None,
        peak_bytes=_host_peak_bytes(recording),
        gpu_idle_bytes=_gpu_idle_bytes(last),
        gpu_peak_bytes=gpu.total_bytes if gpu else None,
        load_peak_bytes=max(
            (engine.load_peak.get("host.hwm", 0) for engine in recording.engines), default=None
        ),
        shared_bytes=last.idle.get("engine.weights_resident_mapped", 0) if last else 0,
        classes=classes,
        attribution=host,
        gpu_attribution=gpu,
        solo=solo_costs_of(recording),
        rungs=rungs_of(recording),
        fidelity=_fidelity(recording) if recording.header.kind == "replay" else None,
        overhead=_overhead(recording),
        completed_per_s=len(done) / busy_s if busy_s else None,
        output_tokens_per_s=sum(o.output_tokens_run for o in done) / busy_s if busy_s else None,
        duration_s=_duration_s(recording),
        findings=findings_of(recording, classes, tuple(a for a in (host, gpu) if a is not None)),
    )


def _class_rules(recording: Recording) -> Mapping[str, str]:
    """Every class of the model.yaml, and every one that a request has; ladder rungs are no class."""
    rules = dict(recording.header.workload.class_rules)
    for request in recording.requests:
        if request.class_name not in rules and request.class_name != "ladder":
            rules[request.class_name] = "no rule matched"
    return rules if recording.header.kind == "replay" else {}


def _class_summary(
    name: str,
    rule: str,
    recording: Recording,
    serving: Sequence[Segment],
    engines: Mapping[int, EngineFacts],
    owned: Mapping[str, Mapping[str, float]],
) -> ClassSummary:
    requests = [r for r in recording.requests if r.class_name == name]
    outcomes = [recording.outcomes[r.request_id] for r in requests]
    counted = Counter(o.outcome for o in outcomes)
    done = [o for o in outcomes if o.outcome == "completed"]
    on_gpu = any(engine.device != "cpu" for engine in engines.values())
    return ClassSummary(
        name=name,
        rule=rule,
        requests=len(requests),
        completed=counted["completed"],
        failed=counted["failed"],
        rejected=counted["rejected"],
        unfinished=counted["unfinished"],
        not_sent=counted["not_sent"],
        reasons=Counter(o.reason or "unknown" for o in outcomes if o.outcome in _NOT_RUN),
        input_tokens=of_values([r.input_tokens for r in requests], method=_REQUESTS),
        output_tokens=of_values([r.output_tokens for r in requests], method=_REQUESTS),
        cpu=_place("cpu", requests, serving, engines, owned),
        gpu=_place("gpu", requests, serving, engines, owned) if on_gpu else None,
        ttft_s=_latency(
            o.first_token_s - o.intended_s
            for o in done
            if o.first_token_s is not None and o.intended_s is not None
        ),
        tpot_s=_latency(
            (o.end_s - o.first_token_s) / (o.output_tokens_run - 1)
            for o in done
            if o.end_s is not None and o.first_token_s is not None and o.output_tokens_run > 1
        ),
        e2e_s=_latency(
            o.end_s - o.intended_s for o in done if o.end_s is not None and o.intended_s is not None
        ),
    )


_NOT_RUN = ("rejected", "failed")


def _latency(values: object) -> Percentiles:
    return of_values(list(values), method=_REQUESTS)  # type: ignore[call-overload]


def _place(
    place: str,
    requests: Sequence[Request],
    serving: Sequence[Segment],
    engines: Mapping[int, EngineFacts],
    owned: Mapping[str, Mapping[str, float]],
) -> PlaceMemory:
    ids = {r.request_id for r in requests}
    with_class = [s for s in serving if any(f.request_id in ids for f in s.in_flight)]
    if place == "cpu":
        values = [float(s.peak["host.hwm"]) for s in with_class]
    else:
        values = [float(parts.gpu_resident_bytes(s, engines[s.engine_start])) for s in with_class]
    seen = {f.request_id for s in with_class for f in s.in_flight} & ids
    return PlaceMemory(
        co_resident=of_segments(
            values,
            [s.end_s - s.start_s for s in with_class],
            requests=len(seen),
            block_s=_longest_stay_s(with_class, ids),
            method=_TIME,
        ),
        attributed=of_values([owned[place][i] for i in sorted(seen)], method=_ATTRIBUTED),
    )


def _longest_stay_s(segments: Sequence[Segment], ids: set[str]) -> float:
    """The longest time that one of these requests was in flight: what makes neighbours alike."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for segment in segments:
        for flight in segment.in_flight:
            if flight.request_id in ids:
                first.setdefault(flight.request_id, segment.start_s)
                last[flight.request_id] = segment.end_s
    return max((last[i] - first[i] for i in first), default=0.0)


def _attributions(
    serving: Sequence[Segment],
    segments: Sequence[Segment],
    engines: Mapping[int, EngineFacts],
) -> tuple[Attribution | None, Attribution | None]:
    """Of the worst engine start."""
    if not serving:
        return None, None
    worst = max(serving, key=lambda s: s.peak["host.hwm"])
    engine = engines[worst.engine_start]
    mine = [s for s in serving if s.engine_start == worst.engine_start]
    heap_free_bytes = parts.heap_free_bytes_at(segments, worst)
    return (
        parts.host_attribution(mine, engine, heap_free_bytes=heap_free_bytes),
        parts.gpu_attribution(mine, engine),
    )


def _host_peak_bytes(recording: Recording) -> int | None:
    exact = [s.peak["host.hwm"] for s in recording.segments if "host.hwm" in s.peak]
    exact += [s.gauges["host.hwm_life"] for s in recording.segments if "host.hwm_life" in s.gauges]
    sampled = [s.values["host.rss"] for s in recording.samples if "host.rss" in s.values]
    return max(exact + sampled, default=None)


def _gpu_idle_bytes(engine: EngineFacts | None) -> int | None:
    if engine is None or engine.device == "cpu":
        return None
    return engine.idle.get(f"{parts.gpu_prefix(engine)}.device_used")


def _fidelity(recording: Recording) -> Fidelity:
    lags = [
        o.sent_s - o.intended_s
        for o in recording.outcomes.values()
        if o.sent_s is not None and o.intended_s is not None
    ]
    return Fidelity(
        schedule_lag_s=of_values(lags, method=_REQUESTS),
        peak_in_flight=_peak_in_flight(recording),
        dilation=recording.header.workload.dilation,
        length_scale=recording.header.workload.length_scale,
    )


def _peak_in_flight(recording: Recording) -> int:
    """Most requests sent and not ended at once, as the client saw it, queued ones included."""
    edges = []
    for outcome in recording.outcomes.values():
        if outcome.sent_s is not None:
            edges.append((outcome.sent_s, 1))
            if outcome.end_s is not None:
                edges.append((outcome.end_s, -1))
    most = now = 0
    for _, step in sorted(edges):
        now += step
        most = max(most, now)
    return most


def _overhead(recording: Recording) -> Overhead:
    closes = [s.close_s for s in recording.segments if s.kind == "step"]
    return Overhead(
        client_cpu_s=recording.end.client_cpu_s if recording.end else None,
        client_peak_bytes=recording.end.client_peak_bytes if recording.end else None,
        segment_median_s=median(closes) if closes else None,
    )


def _busy_s(outcomes: object) -> float:
    """From the first send to the last end."""
    known = [o for o in outcomes if isinstance(o, RequestRecord)]  # type: ignore[attr-defined]
    sent = [o.sent_s for o in known if o.sent_s is not None]
    ended = [o.end_s for o in known if o.end_s is not None]
    return max(ended) - min(sent) if sent and ended else 0.0


def _duration_s(recording: Recording) -> float:
    if recording.end is not None:
        return recording.end.ended_s
    return max((s.end_s for s in recording.segments), default=0.0)
