"""Summaries as JSON for machines: raw bytes and seconds, versioned keys, null for unknown.

A percentile that the run cannot support is null and a finding says so. docs/json-document.md
explains every key; keys are only ever added within one schema version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from memplan.records import Finding, Recording
from memplan.report.admission_json import admission_json, class_admission_json
from memplan.report.on_demand_json import garbage_json, on_demand_json
from memplan.report.quality_json import quality_json
from memplan.report.truths_json import truths_json
from memplan.report.variants_json import comparison_json, timed_json
from memplan.stats.explanation import Explanation, RunExplanation
from memplan.stats.paths import GatewaySummary
from memplan.stats.summary import (
    Attribution,
    ClassSummary,
    Fidelity,
    KvSlope,
    Overhead,
    Percentiles,
    PlaceMemory,
    ReferenceFit,
    RunSummary,
    WitnessSummary,
)

REPLAY_SCHEMA = "memplan.replay/1"
PROFILE_SCHEMA = "memplan.profile/1"
EXPLAIN_SCHEMA = "memplan.explain/1"

Json = dict[str, Any]


def replay_document(summary: RunSummary) -> Json:
    """One replay; every value is ready for ``json.dumps``."""
    return {
        "schema": REPLAY_SCHEMA,
        **_identity(summary),
        "classes": [_class(one) for one in summary.classes],
        "process": {
            **_process(summary),
            "attribution": _parts(summary.attribution),
            "attribution_of": _attributed_peak(summary.attribution),
            "gpu_attribution": _parts(summary.gpu_attribution),
            "gpu_attribution_of": _attributed_peak(summary.gpu_attribution),
        },
        "throughput": {
            "completed_per_s": summary.completed_per_s,
            "output_tokens_per_s": summary.output_tokens_per_s,
            "duration_s": summary.duration_s,
        },
        "fidelity": _fidelity(summary.fidelity),
        "overhead": _overhead(summary.overhead),
        "kv_slope": _kv_slope(summary.kv_slope),
        "on_demand": on_demand_json(summary.on_demand),
        "gc": garbage_json(summary.garbage),
        "admission": admission_json(summary.admission),
        "quality": quality_json(summary),
        "witness": _witness(summary.witness),
        "findings": _findings(summary.findings),
    }


def profile_document(summaries: Sequence[RunSummary]) -> Json:
    """Profiles of one deployment, one entry a variant, in the order given."""
    return {
        "schema": PROFILE_SCHEMA,
        "variants": [_variant(summary) for summary in summaries],
        "comparison": comparison_json(summaries),
    }


def explain_json(recording: Recording, explained: RunExplanation) -> Json:
    """One run; every request in flight is listed, the largest owner first."""
    header = recording.header
    return {
        "schema": EXPLAIN_SCHEMA,
        "run": recording.path,
        "run_id": header.run_id,
        "deployment": header.deployment_name,
        "variant": header.variant,
        "place": explained.place,
        "classes": [_explanation(one) for one in explained.classes],
        "never_in_flight": list(explained.never_in_flight),
    }


def _explanation(one: Explanation) -> Json:
    return {
        "name": one.class_name,
        "segment": {
            "engine_start": one.engine_start,
            "kind": one.kind,
            "start_s": one.start_s,
            "end_s": one.end_s,
            "prefill_tokens": one.prefill_tokens,
            "decode_tokens": one.decode_tokens,
            "waiting": one.waiting,
            "transient_bytes": one.transient_bytes,
        },
        "attribution": _parts(one.attribution),
        "attribution_of": _attributed_peak(one.attribution),
        "in_flight": [
            {
                "request_id": held.request_id,
                "class": held.class_name,
                "input_tokens": held.input_tokens,
                "output_tokens": held.output_tokens,
                "kv_used_bytes": held.kv_used_bytes,
                "kv_reserved_bytes": held.kv_reserved_bytes,
                "transient_bytes": held.transient_bytes,
                "owned_bytes": held.owned_bytes,
            }
            for held in one.held
        ],
        "suggestions": [
            {
                "code": suggestion.code,
                "change": suggestion.change,
                "effect": suggestion.effect,
                "saves_bytes": suggestion.saves_bytes,
                "is_measured": suggestion.is_measured,
            }
            for suggestion in one.suggestions
        ],
    }


def _variant(summary: RunSummary) -> Json:
    return {
        **_identity(summary),
        "process": _process(summary),
        "solo": [
            {
                "class": solo.class_name,
                "place": solo.place,
                "input_tokens": solo.input_tokens,
                "output_tokens": solo.output_tokens,
                "n": solo.n,
                "median_bytes": solo.median_bytes,
                "min_bytes": solo.min_bytes,
                "max_bytes": solo.max_bytes,
                "kv_formula_bytes": solo.kv_bytes,
                "ttft_s": timed_json(solo.ttft),
                "tpot_s": timed_json(solo.tpot),
            }
            for solo in summary.solo
        ],
        "rungs": [
            {
                "wave": rung.wave,
                "place": rung.place,
                "requests": rung.requests,
                "tokens_per_request": rung.tokens_per_request,
                "idle_bytes": rung.idle_bytes,
                "peak_bytes": rung.peak_bytes,
                "kv_formula_bytes": rung.kv_bytes,
                "e2e_s": rung.e2e_s,
                "completed": rung.completed,
                "output_tokens_per_s": rung.output_tokens_per_s,
                "decode_step_s": timed_json(rung.decode_step),
            }
            for rung in summary.rungs
        ],
        "quality": quality_json(summary),
        "overhead": _overhead(summary.overhead),
        "witness": _witness(summary.witness),
        "findings": _findings(summary.findings),
    }


def _identity(summary: RunSummary) -> Json:
    return {
        "run": summary.path,
        "run_id": summary.run_id,
        "deployment": summary.deployment_name,
        "variant": summary.variant,
    }


def _class(one: ClassSummary) -> Json:
    return {
        "name": one.name,
        "rule": one.rule,
        "requests": one.requests,
        "completed": one.completed,
        "failed": one.failed,
        "rejected": one.rejected,
        "cancelled": one.cancelled,
        "unfinished": one.unfinished,
        "not_sent": one.not_sent,
        "reasons": dict(sorted(one.reasons.items())),
        "tokens": {
            "input": _percentiles(one.input_tokens, ""),
            "output": _percentiles(one.output_tokens, ""),
        },
        "memory": {"cpu": place_json(one.cpu), "gpu": place_json(one.gpu) if one.gpu else None},
        "latency": {
            "ttft_s": _percentiles(one.ttft_s, ""),
            "tpot_s": _percentiles(one.tpot_s, ""),
            "e2e_s": _percentiles(one.e2e_s, ""),
        },
        "admission": class_admission_json(one.admission, _percentiles),
    }


def place_json(memory: PlaceMemory) -> Json:
    return {
        "co_resident": _percentiles(memory.co_resident, "_bytes"),
        "co_resident_by_request": _percentiles(memory.co_resident_by_request, "_bytes"),
        "attributed": _percentiles(memory.attributed, "_bytes"),
    }


def gateway_document(gateway: GatewaySummary, pools: Json) -> Json:
    """``memplan.gateway/1``; ``pools`` is the document of their runs."""
    return {
        "schema": "memplan.gateway/1",
        "requests": gateway.requests,
        "answered": gateway.answered,
        "is_whole": gateway.is_whole,
        "handed": dict(gateway.handed),
        "paths": [
            {
                "class": use.class_name,
                "path": use.path,
                "outcome": use.outcome,
                "requests": use.requests,
                "ratio": use.ratio,
                "under_pressure": use.under_pressure,
                "waited_s": _percentiles(use.waited_s, ""),
                "ttft_s": None if use.ttft_s is None else _percentiles(use.ttft_s, ""),
                "e2e_s": None if use.e2e_s is None else _percentiles(use.e2e_s, ""),
            }
            for use in gateway.uses
        ],
        "pools": pools,
    }


def _percentiles(percentiles: Percentiles, unit: str) -> Json:
    """``unit`` ends every key that holds a value: ``p95_bytes``, ``p95_low_bytes``."""
    found: Json = {
        "n": percentiles.n,
        "method": percentiles.method,
        "replays": percentiles.replays,
        "excursions": percentiles.excursions,
        "block_s": percentiles.block_s,
    }
    for name, quantile in (
        ("p50", percentiles.p50),
        ("p95", percentiles.p95),
        ("p99", percentiles.p99),
    ):
        found[f"{name}{unit}"] = quantile.value
        found[f"{name}_low{unit}"] = quantile.low
        found[f"{name}_high{unit}"] = quantile.high
        found[f"{name}_interval"] = quantile.basis
        found[f"{name}_replays_low{unit}"] = quantile.replays_low
        found[f"{name}_replays_high{unit}"] = quantile.replays_high
    found[f"peak{unit}"] = percentiles.peak
    return found


def _process(summary: RunSummary) -> Json:
    truths = summary.truths
    return {
        "idle_bytes": summary.idle_bytes,
        "peak_bytes": summary.peak_bytes,
        "load_peak_bytes": summary.load_peak_bytes,
        "shared_bytes": summary.shared_bytes,
        "gpu_idle_bytes": summary.gpu_idle_bytes,
        "gpu_peak_bytes": summary.gpu_peak_bytes,
        "charged_peak_bytes": truths.charged_peak_bytes if truths else None,
        "charged_load_peak_bytes": truths.charged_load_peak_bytes if truths else None,
        "truths": truths_json(truths) if truths else None,
    }


def _attributed_peak(attribution: Attribution | None) -> Json | None:
    """Which peak the parts are of: they add up to its ``total_bytes``."""
    if attribution is None:
        return None
    return {
        "total_bytes": attribution.total_bytes,
        "at_s": attribution.at_s,
        "method": attribution.method,
        "runtime_parts_bytes": dict(attribution.runtime_parts),
        "kv_parts_bytes": dict(attribution.kv_parts),
        "tensors_bytes": dict(attribution.tensors),
        "peak_module": attribution.peak_module,
    }


def _parts(attribution: Attribution | None) -> Json | None:
    """Bytes only, so that summing the values gives the peak."""
    if attribution is None:
        return None
    return {
        "weights_bytes": attribution.weights_bytes,
        "kv_bytes": attribution.kv_bytes,
        "activations_bytes": attribution.activations_bytes,
        "runtime_bytes": attribution.runtime_bytes,
        "allocator_slack_bytes": attribution.allocator_slack_bytes,
        "page_cache_bytes": attribution.page_cache_bytes,
        "unexplained_bytes": attribution.unexplained_bytes,
    }


def _fidelity(fidelity: Fidelity | None) -> Json | None:
    if fidelity is None:
        return None
    return {
        "schedule_lag_s": _percentiles(fidelity.schedule_lag_s, ""),
        "peak_in_flight": fidelity.peak_in_flight,
        "dilation": fidelity.dilation,
        "length_scale": fidelity.length_scale,
        "recyclings": fidelity.recyclings,
        "recycling_s": fidelity.recycling_s,
        "recycled_after": dict(sorted(fidelity.recycled_after.items())),
        "against_reference": _reference(fidelity.against_reference),
    }


def _reference(fit: ReferenceFit | None) -> Json | None:
    if fit is None:
        return None
    states = {"running": fit.running, "kv_tokens": fit.kv_tokens}
    return {
        "reference": fit.reference,
        "is_paced": fit.is_paced,
        "windows": list(fit.windows),
        "judged_s": fit.judged_s,
        **{
            name: None
            if one is None
            else {
                "w1_ratio": one.w1_ratio,
                "reference": dataclasses.asdict(one.reference),
                "reached": dataclasses.asdict(one.reached),
            }
            for name, one in states.items()
        },
    }


def _overhead(overhead: Overhead) -> Json:
    return {
        "client_cpu_s": overhead.client_cpu_s,
        "client_peak_bytes": overhead.client_peak_bytes,
        "segment_median_s": overhead.segment_median_s,
    }


def _kv_slope(found: KvSlope | None) -> Json | None:
    if found is None:
        return None
    return {"slope": found.slope, "low": found.low, "high": found.high, "n": found.n}


def _witness(witness: WitnessSummary | None) -> Json | None:
    if witness is None:
        return None
    return {
        "n": witness.n,
        "gap_p50_s": witness.gap_p50_s,
        "gap_p99_s": witness.gap_p99_s,
        "gap_max_s": witness.gap_max_s,
        "max_bytes": witness.max_bytes,
        "policy": witness.policy,
        "cpu_s": witness.cpu_s,
    }


def _findings(findings: Sequence[Finding]) -> list[Json]:
    return [{"code": one.code, "text": one.text, "hint": one.hint} for one in findings]
