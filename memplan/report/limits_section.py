"""The verdict on every budget and promise of model.yaml, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.records import Recording
from memplan.report.limits import Subject, Verdict, limits_of, verdicts_of
from memplan.report.pieces import Cell, Column, Section, Table
from memplan.report.wording import NOTHING, Text
from memplan.stats.summary import RunSummary
from memplan.units import bytes_text, seconds_text

SUBJECT_NAMES: dict[Subject, str] = {
    "cpu_bytes": "memory budget, CPU",
    "gpu_bytes": "memory budget, GPU",
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "e2e_s": "end to end",
}


def limits_section(summary: RunSummary, recording: Recording, prefix: str) -> Section:
    verdicts = verdicts_of(limits_of(recording.header.deployment), summary)
    return Section(
        id=f"{prefix}limits",
        title="Budgets and promises of model.yaml",
        blocks=(limits_table(verdicts, prefix),) if verdicts else (),
    )


def limits_table(verdicts: Sequence[Verdict], prefix: str) -> Table:
    return Table(
        id=f"{prefix}limits-table",
        title="Budgets and promises",
        columns=(
            Column(title="class", align="left"),
            Column(title="limit on", align="left"),
            Column(title="limit"),
            Column(title="measured"),
            Column(title="verdict", align="left"),
        ),
        rows=tuple(
            _verdict_row(verdict, verdicts[at - 1] if at else None)
            for at, verdict in enumerate(verdicts)
        ),
        notes=(
            "“So far” is what this run saw and its interval does not prove. "
            "Judged at p99, or at p95 where p99 is withheld. A memory budget "
            "bounds what a request owns (attributed).",
        ),
    )


def _doubt(verdict: Verdict) -> str:
    """Why a kept limit is not yet proven."""
    judged, largest = verdict.judged, verdict.largest
    if verdict.is_certain or judged is None:
        return ""
    if largest is not None and largest > verdict.limit.value:
        return f"but the largest seen is {_text_for(verdict)(largest)}"
    if judged.high is None:
        return "in this run; it holds no upper bound"
    return "in this run; the interval reaches past the limit"


def _unknown(verdict: Verdict) -> str:
    if verdict.is_paced:
        return "answers were held to the reference's pace, so times are not this engine's"
    if verdict.largest is None:
        return "nothing was measured for it"
    return f"too few requests; the largest seen is {_text_for(verdict)(verdict.largest)}"


def _text_for(verdict: Verdict) -> Text:
    return bytes_text if verdict.limit.subject.endswith("_bytes") else seconds_text


def _verdict_row(verdict: Verdict, before: Verdict | None) -> tuple[Cell, ...]:
    limit = verdict.limit
    text = _text_for(verdict)
    measured = NOTHING
    if verdict.judged is not None:
        measured = Cell(text=text(verdict.judged.value), detail=f"p{verdict.judged.p * 100:g}")
    so_far = "" if verdict.is_certain else " so far"
    match verdict.outcome:
        case "kept":
            outcome = Cell(text=f"kept{so_far}", detail=_doubt(verdict), tone="good")
        case "broken":
            back = "" if verdict.is_certain else "the interval reaches below the limit"
            outcome = Cell(text=f"broken{so_far}", detail=back, tone="bad")
        case "unknown":
            outcome = Cell(text="unknown", detail=_unknown(verdict), tone="muted")
    return (
        Cell(
            text="" if before and before.limit.class_name == limit.class_name else limit.class_name
        ),
        Cell(text=SUBJECT_NAMES[limit.subject]),
        Cell(text=text(limit.value)),
        measured,
        outcome,
    )
