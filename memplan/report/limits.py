"""Budgets and service promises from model.yaml, held against what a run measured.

The deployment is read as a recording holds it: a key that is absent is a promise not made, and a
value of an unexpected shape is ignored rather than guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from memplan.stats.summary import ClassSummary, Percentiles, Quantile, RunSummary

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
    """Judged at p99, else at p95; a median says nothing about a limit, so there it is unknown."""

    limit: Limit
    outcome: Outcome
    judged: Quantile | None
    largest: float | None
    """The largest value seen, which can lie beyond a limit that p95 keeps."""
    is_certain: bool
    """The 95 % interval and the largest value lie wholly on the verdict's side of the limit."""
    is_paced: bool = False
    """A time of a replay that was held to its reference's pace, and so no time of this engine."""


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


def verdicts_of(limits: Sequence[Limit], summary: RunSummary) -> tuple[Verdict, ...]:
    by_name = {one.name: one for one in summary.classes}
    return tuple(
        replace(verdict_of(limit, None), is_paced=True)
        if summary.is_paced and not limit.subject.endswith("_bytes")
        else verdict_of(limit, by_name.get(limit.class_name))
        for limit in limits
    )


def verdict_of(limit: Limit, measured: ClassSummary | None) -> Verdict:
    percentiles = measured and _percentiles_for(limit.subject, measured)
    if not percentiles:
        return Verdict(limit=limit, outcome="unknown", judged=None, largest=None, is_certain=False)
    judged = percentiles.p95 if percentiles.p99.value is None else percentiles.p99
    largest = percentiles.peak
    if judged.value is None:
        return Verdict(
            limit=limit, outcome="unknown", judged=None, largest=largest, is_certain=False
        )
    if judged.value <= limit.value:
        ends = (judged.high, largest)
        certain = all(end is not None and end <= limit.value for end in ends)
        return Verdict(
            limit=limit, outcome="kept", judged=judged, largest=largest, is_certain=certain
        )
    certain = judged.low is not None and judged.low > limit.value
    return Verdict(
        limit=limit, outcome="broken", judged=judged, largest=largest, is_certain=certain
    )


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
