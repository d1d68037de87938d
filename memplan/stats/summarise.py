"""A recording in, its RunSummary out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from memplan.records import EngineFacts, Recording, Request, RequestRecord, Segment
from memplan.stats import attribution as parts
from memplan.stats.admission import class_admission, run_admission
from memplan.stats.class_memory import (
    BY_RANKS,
    Served,
    place_memory,
    request_percentiles,
    served_of,
)
from memplan.stats.findings import findings_of
from memplan.stats.host_parts import composed_at, host_attribution
from memplan.stats.kv_slope import kv_slope_of
from memplan.stats.ladder import rungs_of, solo_costs_of, variant_facts_of
from memplan.stats.on_demand import garbage_of, on_demand_of
from memplan.stats.percentiles import of_values
from memplan.stats.quality import quality_figures
from memplan.stats.reference_states import reference_fit
from memplan.stats.summary import (
    Attribution,
    ClassSummary,
    Fidelity,
    Overhead,
    Percentiles,
    RunSummary,
)
from memplan.stats.truths import truths_of
from memplan.stats.witness import witness_summary

SERVING = ("idle", "step", "release")
"""The kinds of segments that count for classes: the engine could take requests."""


def summarise(recording: Recording) -> RunSummary:
    """Everything a report says about one run. Pure: the same recording gives the same summary."""
    engines = {engine.engine_start: engine for engine in recording.engines}
    last = recording.engines[-1] if recording.engines else None
    serving = [s for s in recording.segments if s.kind in SERVING and s.engine_start in engines]
    owned = {place: parts.peak_owned_bytes(serving, engines, place) for place in ("cpu", "gpu")}
    served = served_of(recording, serving, engines)
    kv_slope = kv_slope_of(recording, serving, engines)
    classes = tuple(
        _class_summary(name, rule, recording, served, owned)
        for name, rule in _class_rules(recording).items()
    )
    host, gpu = _attributions(serving, recording.segments, engines)
    done = [o for o in recording.outcomes.values() if o.outcome == "completed"]
    busy_s = _busy_s(recording)
    fidelity = _fidelity(recording) if recording.header.kind == "replay" else None
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
            (e.load_peak["host.hwm"] for e in recording.engines if "host.hwm" in e.load_peak),
            default=None,
        ),
        shared_bytes=last.idle.get("engine.weights_resident_mapped", 0) if last else 0,
        classes=classes,
        attribution=host,
        gpu_attribution=gpu,
        solo=solo_costs_of(recording),
        rungs=rungs_of(recording),
        fidelity=fidelity,
        overhead=_overhead(recording),
        completed_per_s=len(done) / busy_s if busy_s else None,
        output_tokens_per_s=sum(o.output_tokens_run for o in done) / busy_s if busy_s else None,
        duration_s=_duration_s(recording),
        truths=truths_of(recording, serving),
        findings=findings_of(
            recording, classes, tuple(a for a in (host, gpu) if a is not None), kv_slope, fidelity
        ),
        witness=witness_summary(recording),
        kv_slope=kv_slope,
        admission=run_admission(recording, serving),
        quality=recording.quality,
        on_demand=on_demand_of(recording),
        garbage=garbage_of(recording),
        quality_figures=quality_figures(recording.quality) if recording.quality else None,
        variant_facts=variant_facts_of(recording),
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
    served: Served,
    owned: Mapping[str, Mapping[str, float]],
) -> ClassSummary:
    requests = [r for r in recording.requests if r.class_name == name]
    outcomes = [recording.outcomes[r.request_id] for r in requests]
    by_id = {o.request_id: o for o in outcomes if o.outcome == "completed"}
    counted = Counter(o.outcome for o in outcomes)
    on_gpu = any(engine.device != "cpu" for engine in served.engines.values())
    cpu = place_memory("cpu", requests, served, owned["cpu"])

    def percentiles(value_of: Callable[[Request], float | None]) -> Percentiles:
        return request_percentiles(requests, served, value_of, block_s=cpu.attributed.block_s)

    def latency(value_of: Callable[[RequestRecord], float | None]) -> Percentiles:
        """Of completed requests. A negative one is none: ``clock_stepped_back`` counts them."""

        def known(request: Request) -> float | None:
            outcome = by_id.get(request.request_id)
            value = value_of(outcome) if outcome is not None else None
            return value if value is not None and value >= 0 else None

        return percentiles(known)

    return ClassSummary(
        name=name,
        rule=rule,
        requests=len(requests),
        completed=counted["completed"],
        failed=counted["failed"],
        rejected=counted["rejected"],
        cancelled=counted["cancelled"],
        unfinished=counted["unfinished"],
        not_sent=counted["not_sent"],
        reasons=Counter(o.reason or "unknown" for o in outcomes if o.outcome in _NOT_RUN),
        input_tokens=percentiles(lambda r: r.input_tokens),
        output_tokens=percentiles(lambda r: r.output_tokens),
        cpu=cpu,
        gpu=place_memory("gpu", requests, served, owned["gpu"]) if on_gpu else None,
        ttft_s=latency(ttft_s_of),
        tpot_s=latency(tpot_s_of),
        e2e_s=latency(e2e_s_of),
        admission=class_admission(requests, recording.outcomes, percentiles),
    )


_NOT_RUN = ("rejected", "failed")


def ttft_s_of(outcome: RequestRecord) -> float | None:
    if outcome.first_token_s is None or outcome.intended_s is None:
        return None
    return outcome.first_token_s - outcome.intended_s


def tpot_s_of(outcome: RequestRecord) -> float | None:
    if outcome.end_s is None or outcome.first_token_s is None or outcome.output_tokens_run < 2:
        return None
    return (outcome.end_s - outcome.first_token_s) / (outcome.output_tokens_run - 1)


def e2e_s_of(outcome: RequestRecord) -> float | None:
    if outcome.end_s is None or outcome.intended_s is None:
        return None
    return outcome.end_s - outcome.intended_s


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
    return (
        host_attribution(mine, engine, composed=composed_at(segments, worst)),
        parts.gpu_attribution(mine, engine),
    )


def _host_peak_bytes(recording: Recording) -> int | None:
    exact = [s.peak["host.hwm"] for s in recording.segments if "host.hwm" in s.peak]
    exact += [s.gauges["host.hwm_life"] for s in recording.segments if "host.hwm_life" in s.gauges]
    sampled = [s.values["host.rss"] for s in recording.samples if "host.rss" in s.values]
    if recording.witness is not None and recording.witness.rss_bytes:
        sampled.append(max(recording.witness.rss_bytes))
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
    recycled = [e.recycled_s for e in recording.engines if e.recycled_s is not None]
    return Fidelity(
        schedule_lag_s=of_values([lag for lag in lags if lag >= 0], method=BY_RANKS),
        peak_in_flight=_peak_in_flight(recording),
        dilation=recording.header.workload.dilation,
        length_scale=recording.header.workload.length_scale,
        recyclings=len(recycled),
        recycling_s=sum(recycled),
        against_reference=reference_fit(recording),
        recycled_after=Counter(e.recycled_after for e in recording.engines if e.recycled_after),
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


def _busy_s(recording: Recording) -> float:
    """From the first send to the last end, of every wave: between them an engine may be loading."""
    waves: dict[str, list[RequestRecord]] = {}
    for request in recording.requests:
        waves.setdefault(request.wave, []).append(recording.outcomes[request.request_id])
    busy_s = 0.0
    for outcomes in waves.values():
        sent = [o.sent_s for o in outcomes if o.sent_s is not None]
        ended = [o.end_s for o in outcomes if o.end_s is not None]
        busy_s += max(ended) - min(sent) if sent and ended else 0.0
    return busy_s


def _duration_s(recording: Recording) -> float:
    if recording.end is not None:
        return recording.end.ended_s
    return max((s.end_s for s in recording.segments), default=0.0)
