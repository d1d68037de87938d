"""How requests came into the engine, as JSON values; docs/json-document.md explains every key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memplan.stats.degradations import Degraded
from memplan.stats.summary import ClassAdmission, KvMost, Percentiles, RunAdmission, Streaming

Json = dict[str, Any]


def class_admission_json(
    found: ClassAdmission | None, percentiles_json: Callable[[Percentiles, str], Json]
) -> Json | None:
    if found is None:
        return None
    return {
        "entered": found.entered,
        "waited_s": percentiles_json(found.waited_s, ""),
        "waits": [
            {
                "reason": wait.reason,
                "requests": wait.requests,
                "total_s": wait.total_s,
                "waited_s": percentiles_json(wait.waited_s, ""),
            }
            for wait in found.waits
        ],
        "rejected": dict(sorted(found.rejected.items())),
        "shortened": found.shortened,
        "shortened_tokens": found.shortened_tokens,
        "preempted": found.preempted,
        "preemptions": found.preemptions,
        "prompt_tokens": found.prompt_tokens,
        "shared_tokens": found.shared_tokens,
        "pulled_back": found.pulled_back,
        "pulled_back_bytes": found.pulled_back_bytes,
        "pull_back_s": found.pull_back_s,
    }


def admission_json(found: RunAdmission | None) -> Json | None:
    if found is None:
        return None
    return {
        "kv": _kv(found.kv),
        "streaming": _streaming(found.streaming),
        "degraded": _degraded(found.degraded),
    }


def _kv(kv: KvMost | None) -> Json | None:
    if kv is None:
        return None
    return {
        "held_bytes": kv.held_bytes,
        "shared_bytes": kv.shared_bytes,
        "kept_bytes": kv.kept_bytes,
        "offloaded_bytes": kv.offloaded_bytes,
    }


def _streaming(found: Streaming | None) -> Json | None:
    if found is None:
        return None
    return {
        "steps": found.steps,
        "bytes_per_step": found.bytes_per_step,
        "s_per_step": found.s_per_step,
        "ratio": found.ratio,
    }


def _degraded(found: Degraded | None) -> Json | None:
    if found is None:
        return None
    return {
        "steps": [
            {"name": step.name, "times": step.times, "lasted_s": step.lasted_s}
            for step in found.steps
        ],
        "lasted_s": found.lasted_s,
        "served_s": found.served_s,
        "at_bytes": found.at_bytes,
        "most_bytes": found.most_bytes,
        "rejected": found.rejected,
        "waited": found.waited,
        "preempted": found.preempted,
        "shortened": found.shortened,
    }
