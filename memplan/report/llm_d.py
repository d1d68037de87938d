"""One run as a Benchmark Report of llm-d (schema 0.2.1), with the memory fields filled.

The format is llm-d's (PyPI: llmd-benchmark-report), written here as plain data. Latencies are of
completed requests, from the intended send. What that schema has no place for, memory by request class,
stands under ``results.observability.memplan``, where it allows more.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from memplan.records import Recording, RequestRecord, Segment
from memplan.report.json_document import place_json
from memplan.stats.percentiles import weighted_quantiles
from memplan.stats.summarise import e2e_s_of, tpot_s_of, ttft_s_of
from memplan.stats.summary import RunSummary

Json = dict[str, Any]
Weighted = Sequence[tuple[float, float]]
"""(value, weight); weights above 0."""

VERSION = "0.2.1"
_LEVELS = {
    "p0p1": 0.001, "p1": 0.01, "p5": 0.05, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75,
    "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99p9": 0.999,
}  # fmt: skip


def llm_d_report(summary: RunSummary, recording: Recording) -> Json:
    header = recording.header
    return {
        "version": VERSION,
        "run": {
            "uid": header.run_id,
            "time": {
                "start": header.started_at or None,
                "duration": f"PT{recording.end.ended_s:.3f}S" if recording.end else None,
            },
            "description": f"memplan {header.kind} of {header.workload.source}",
            "keywords": ["memplan", header.deployment_name, header.variant],
        },
        "scenario": {"stack": [_engine(recording)], "load": _load(recording)},
        "results": {
            "request_performance": {"aggregate": _requests(recording)},
            "observability": {
                "components": [{"component_label": "engine", "aggregate": _resources(recording)}],
                "memplan": _by_class(summary),
            },
        },
    }


def _engine(recording: Recording) -> Json:
    header = recording.header
    facts = recording.engines[-1] if recording.engines else None
    on_gpu = facts is not None and facts.device != "cpu"
    return {
        "metadata": {
            "label": "engine",
            "cfg_id": _digest(header.deployment),
            "description": f"{header.deployment_name}, variant {header.variant}",
        },
        "standardized": {
            "kind": "inference_engine",
            "tool": facts.engine if facts else str(header.deployment.get("engine", "unknown")),
            "tool_version": facts.version if facts else "unknown",
            "role": "replica",
            "replicas": 1,
            "model": {"name": header.deployment_name},
            "accelerator": {
                "model": (facts.device_name or facts.device) if facts and on_gpu else "none",
                "count": 1 if on_gpu else 0,
                "parallelism": {"tp": 1, "dp": 1, "dp_local": 1, "workers": 1, "ep": 1, "pp": 1},
            },
        },
        "native": {"config": dict(header.deployment)},
    }


def _load(recording: Recording) -> Json:
    header, workload = recording.header, recording.header.workload
    rate = len(recording.requests) / (workload.span_s * workload.dilation or math.inf)
    return {
        "metadata": {"cfg_id": workload.sha256, "description": workload.source},
        "standardized": {
            "tool": "memplan",
            "tool_version": header.memplan_version,
            "source": "random",
            "input_seq_len": _lengths([one.input_tokens for one in recording.requests]),
            "output_seq_len": _lengths([one.output_tokens for one in recording.requests]),
            "rate_qps": rate or None,
        },
        "native": {
            "args": {"command": list(header.command)},
            "config": {
                "format": workload.format,
                "length_scale": workload.length_scale,
                "dilation": workload.dilation,
            },
        },
    }


def _lengths(tokens: Sequence[int]) -> Json:
    return {
        "distribution": "other",
        "value": sum(tokens) / len(tokens) if tokens else 0,
        "min": min(tokens, default=None),
        "max": max(tokens, default=None),
    }


def _requests(recording: Recording) -> Json:
    outcomes = [recording.outcomes[one.request_id] for one in recording.requests]
    sent = [one for one in outcomes if one.outcome != "not_sent"]
    done = [one for one in sent if one.outcome == "completed"]
    span_s = _span_s(done)

    def rate(amount: int, units: str) -> Json | None:
        return {"units": units, "mean": amount / span_s} if span_s else None

    read = sum(one.input_tokens_run for one in done)
    said = sum(one.output_tokens_run for one in done)
    return {
        "requests": {
            "total": len(sent),
            "failures": sum(one.outcome in ("failed", "rejected") for one in sent),
            "incomplete": sum(one.outcome in ("unfinished", "cancelled") for one in sent),
            "input_length": _statistics(_even([one.input_tokens_run for one in done]), "count"),
            "output_length": _statistics(_even([one.output_tokens_run for one in done]), "count"),
        },
        "latency": {
            "time_to_first_token": _statistics(_even(map(ttft_s_of, done)), "s"),
            "time_per_output_token": _statistics(_even(map(tpot_s_of, done)), "s/token"),
            "request_latency": _statistics(_even(map(e2e_s_of, done)), "s"),
        },
        "throughput": {
            "input_token_rate": rate(read, "tokens/s"),
            "output_token_rate": rate(said, "tokens/s"),
            "total_token_rate": rate(read + said, "tokens/s"),
            "request_rate": rate(len(done), "queries/s"),
        },
    }


def _span_s(done: Sequence[RequestRecord]) -> float:
    """From the first send to the last end."""
    sent = [one.sent_s for one in done if one.sent_s is not None]
    ended = [one.end_s for one in done if one.end_s is not None]
    return max(0.0, max(ended) - min(sent)) if sent and ended else 0.0


def _resources(recording: Recording) -> Json:
    """Over the time in which the engine served: exact peaks of segments, weighted by how long each
    lasted, so that ``max`` is the peak; of a device what its driver said at each sample."""
    ready = {one.engine_start: one.ready_s for one in recording.engines}
    serving = [
        one
        for one in recording.segments
        if one.end_s > max(one.start_s, ready.get(one.engine_start, math.inf))
    ]
    pool = {
        one.engine_start: one.kv_pool_tokens * one.kv_bytes_per_token for one in recording.engines
    }
    used = [
        (one, one.gauges["engine.kv_blocks"] / pool[one.engine_start])
        for one in serving
        if "engine.kv_blocks" in one.gauges and pool.get(one.engine_start)
    ]
    return {
        "cpu_memory_usage": _statistics(
            [(one.peak["host.hwm"], _lasted_s(one)) for one in serving if "host.hwm" in one.peak],
            "bytes",
        ),
        "gpu_memory_usage": _statistics(
            _even(
                sum(size for name, size in one.values.items() if _is_device_use(name)) or None
                for one in recording.samples
            ),
            "bytes",
        ),
        "kv_cache_usage": _statistics(
            [(min(1.0, share), _lasted_s(one)) for one, share in used], "fraction"
        ),
        "running_requests": _statistics(
            [(len(one.in_flight), _lasted_s(one)) for one in serving], "count"
        ),
        "waiting_requests": _statistics(
            [(one.waiting, _lasted_s(one)) for one in serving], "count"
        ),
    }


def _lasted_s(segment: Segment) -> float:
    return segment.end_s - segment.start_s


def _is_device_use(name: str) -> bool:
    return name.startswith("nvml.") and name.endswith(".used")


def _by_class(summary: RunSummary) -> Json:
    """As docs/json-document.md says of ``classes[].memory``, in bytes."""
    return {
        "process_peak_bytes": summary.peak_bytes,
        "classes": [
            {
                "name": one.name,
                "cpu": place_json(one.cpu),
                "gpu": place_json(one.gpu) if one.gpu else None,
            }
            for one in summary.classes
        ],
    }


def _even(values: Any) -> list[tuple[float, float]]:
    """Each known one with the same weight."""
    return [(float(value), 1.0) for value in values if value is not None]


def _statistics(pairs: Weighted, units: str) -> Json | None:
    """None where there is no value: the schema has no unknown."""
    if not pairs:
        return None
    whole = math.fsum(weight for _, weight in pairs)
    mean = math.fsum(value * weight for value, weight in pairs) / whole
    variance = math.fsum((value - mean) ** 2 * weight for value, weight in pairs) / whole
    values = [value for value, _ in pairs]
    return {
        "units": units,
        "mean": mean,
        "stddev": math.sqrt(variance),
        "min": min(values),
        **dict(zip(_LEVELS, weighted_quantiles(pairs, _LEVELS.values()), strict=True)),
        "max": max(values),
    }


def _digest(config: Mapping[str, object]) -> str:
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
