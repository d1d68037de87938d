"""Budgets and service promises from model.yaml, held against what a run measured.

The deployment is read as a recording holds it: a key that is absent is a promise not made, and a
value of an unexpected shape is ignored rather than guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from memplan.stats.summary import ClassSummary, Percentiles, Quantile

Subject = Literal["cpu_bytes", "gpu_bytes", "ttft_s", "tpot_s", "e2e_s"]
Outcome = Literal["kept", "broken", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    class_name: str
    subject: Subject
    """A memory budget bounds what a request owns (attributed); a time, that time."""
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Judged at p99, or at the highest percentile that the run supports."""

    limit: Limit
    outcome: Outcome
    judged: Quantile | None
    is_certain: bool
    """The 95 % interval lies wholly on the verdict's side of the limit."""


def limits_of(deployment: Mapping[str, object]) -> tuple[Limit, ...]:
    """In the order of the classes in model.yaml."""
    classes = deployment.get("classes")
    found: list[Limit] = []
    for entry in classes if isinstance(classes, Sequence) else ():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            continue
        budget, slo = entry.get("budget"), entry.get("slo")
        subjects: tuple[tuple[Subject, object], ...] = (
            ("cpu_bytes", _value(budget, "cpu_bytes")),
            ("gpu_bytes", _value(budget, "gpu_bytes")),
            ("ttft_s", _value(slo, "ttft_s")),
            ("tpot_s", _value(slo, "tpot_s")),
            ("e2e_s", _value(slo, "e2e_s")),
        )
        found.extend(
            Limit(class_name=entry["name"], subject=subject, value=float(value))
            for subject, value in subjects
            if isinstance(value, int | float) and not isinstance(value, bool)
        )
    return tuple(found)


def _value(mapping: object, key: str) -> object:
    return mapping.get(key) if isinstance(mapping, Mapping) else None


def verdicts_of(limits: Sequence[Limit], classes: Sequence[ClassSummary]) -> tuple[Verdict, ...]:
    by_name = {one.name: one for one in classes}
    return tuple(verdict_of(limit, by_name.get(limit.class_name)) for limit in limits)


def verdict_of(limit: Limit, measured: ClassSummary | None) -> Verdict:
    percentiles = measured and _percentiles_for(limit.subject, measured)
    quantiles = (percentiles.p99, percentiles.p95, percentiles.p50) if percentiles else ()
    judged = next((one for one in quantiles if one.value is not None), None)
    if judged is None or judged.value is None:
        return Verdict(limit=limit, outcome="unknown", judged=None, is_certain=False)
    if judged.value <= limit.value:
        certain = judged.high is not None and judged.high <= limit.value
        return Verdict(limit=limit, outcome="kept", judged=judged, is_certain=certain)
    certain = judged.low is not None and judged.low > limit.value
    return Verdict(limit=limit, outcome="broken", judged=judged, is_certain=certain)


def _percentiles_for(subject: Subject, measured: ClassSummary) -> Percentiles | None:
    match subject:
        case "cpu_bytes":
            return measured.cpu.attributed
        case "gpu_bytes":
            return measured.gpu.attributed if measured.gpu else None
        case "ttft_s":
            return measured.ttft_s
        case "tpot_s":
            return measured.tpot_s
        case "e2e_s":
            return measured.e2e_s
