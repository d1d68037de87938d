"""What changed between two runs, and what a CI job fails for, as documents that any renderer draws."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.records import Recording
from memplan.report.limits import Verdict
from memplan.report.limits_section import limits_table
from memplan.report.pieces import Cell, Column, Document, Section, Table, Tone
from memplan.report.wording import DASH, NOTHING, Text, range_text
from memplan.stats.changes import Change, Shown, changes_between, only_in_one
from memplan.stats.gate import Outcome, Regression
from memplan.stats.summary import RunSummary
from memplan.units import bytes_text, seconds_text

Run = tuple[RunSummary, Recording]
_WORDS: dict[Shown, tuple[str, Tone]] = {
    "more": ("more", "bad"),
    "less": ("less", "good"),
    "not shown": ("no difference shown", "plain"),
    "one reading": ("one reading each", "plain"),
    "unknown": ("unknown", "muted"),
}
_OUTCOMES: dict[Outcome, tuple[str, Tone]] = {
    "held": ("held", "good"),
    "regressed": ("regressed", "bad"),
    "unsure": ("beyond the tolerance, and may be chance", "muted"),
    "unknown": ("unknown", "muted"),
}


def differences_of(before: Recording, after: Recording) -> tuple[str, ...]:
    """What makes two runs hard to compare: another workload, machine or memplan."""
    ours, theirs = before.header, after.header
    pairs: tuple[tuple[str, object, object], ...] = (
        ("trace", ours.workload.source, theirs.workload.source),
        ("trace's content", ours.workload.sha256, theirs.workload.sha256),
        ("length scale", ours.workload.length_scale, theirs.workload.length_scale),
        ("dilation", ours.workload.dilation, theirs.workload.dilation),
        ("requests", len(before.requests), len(after.requests)),
        ("processor", ours.machine.cpu_model, theirs.machine.cpu_model),
        ("processors", ours.machine.cpu_count, theirs.machine.cpu_count),
        ("memory", ours.machine.memory_bytes, theirs.machine.memory_bytes),
        ("memplan", ours.memplan_version, theirs.memplan_version),
    )
    return tuple(f"{name}: {old} before, {new} after" for name, old, new in pairs if old != new)


def workload_differences(before: Recording, after: Recording) -> tuple[str, ...]:
    """Those under which memory may differ although nothing regressed."""
    names = ("trace's content", "length scale", "dilation", "requests")
    return tuple(one for one in differences_of(before, after) if one.startswith(names))


def change_document(before: Run, after: Run) -> Document:
    found = changes_between(before[0], after[0])
    shown = [one for one in found if one.shown in ("more", "less")]
    settings = _setting_changes(before[1], after[1])
    notes = differences_of(before[1], after[1])
    missing = only_in_one(before[0], after[0])
    return Document(
        title=f"{before[0].deployment_name}: {_name(before[0])} against {_name(after[0])}",
        subtitle=f"before: {before[0].path}, after: {after[0].path}",
        answer=_answer(found, shown),
        figures=(),
        sections=(
            Section(
                id="same",
                title="Are they comparable?",
                paragraphs=(
                    *(f"Differs in {one}." for one in notes),
                    *(
                        f"Class {name} is in one of the two only, and is left out."
                        for name in missing
                    ),
                    *(() if notes else ("The same workload on the same machine.",)),
                    f"Settings that differ: {'; '.join(settings) or 'none'}.",
                ),
            ),
            Section(id="changes", title="What changed", blocks=(_change_table(found),)),
        ),
    )


def gate_document(
    run: Run,
    verdicts: Sequence[Verdict],
    found: Sequence[Regression],
    *,
    baseline: RunSummary | None,
    tolerance_ratio: float,
    failures: Sequence[str],
) -> Document:
    sections = [
        Section(
            id="limits",
            title="Budgets and promises",
            paragraphs=() if verdicts else ("model.yaml holds no budget and no promise.",),
            blocks=(limits_table(verdicts, ""),) if verdicts else (),
        )
    ]
    if baseline is not None:
        sections.append(
            Section(
                id="regressions",
                title=f"Memory against {_name(baseline)}, {baseline.path}",
                blocks=(_regression_table(found, tolerance_ratio),),
            )
        )
    return Document(
        title=f"{run[0].deployment_name}, variant {run[0].variant}: "
        f"{'FAILED' if failures else 'passed'}",
        subtitle=f"memplan check of {run[0].path}",
        answer="; ".join(failures) + "." if failures else "Nothing that was asked for is broken.",
        figures=(),
        sections=tuple(sections),
    )


def _answer(found: Sequence[Change], shown: Sequence[Change]) -> str:
    peak = next((one for one in found if one.figure == "peak"), None)
    parts = []
    if peak is not None and peak.difference is not None and peak.ratio is not None:
        parts.append(
            f"The process peaks {_difference_text(peak)} ({peak.ratio * 100:+.1f} %) from "
            f"{bytes_text(peak.before)}, one reading each."
        )
    more = sum(one.shown == "more" for one in shown)
    parts.append(
        f"Of {sum(one.p is not None for one in found)} figures with intervals {more} are more beyond "
        f"chance, and {len(shown) - more} less."
    )
    return " ".join(parts)


def _change_table(found: Sequence[Change]) -> Table:
    return Table(
        id="change-table",
        title="Each figure before and after",
        columns=(
            Column(title="class", align="left"),
            Column(title="figure", align="left"),
            Column(title="before"),
            Column(title="after"),
            Column(title="change"),
            Column(title="verdict", align="left"),
        ),
        rows=tuple((*_change_cells(one), _word_cell(*_WORDS[one.shown])) for one in found),
        notes=(
            "Owned: what a request adds for itself (attributed). Process: what the whole process held "
            "while a request of the class was in flight (co-resident, by time). The second line of a "
            "change is the farthest that the 95 % bounds of both figures allow.",
        ),
    )


def _regression_table(found: Sequence[Regression], tolerance_ratio: float) -> Table:
    return Table(
        id="regression-table",
        title=f"More than {tolerance_ratio * 100:g} % above the baseline is a regression",
        columns=(
            Column(title="class", align="left"),
            Column(title="figure", align="left"),
            Column(title="baseline"),
            Column(title="run"),
            Column(title="change"),
            Column(title="verdict", align="left"),
        ),
        rows=tuple(
            (*_change_cells(one.change), _word_cell(*_OUTCOMES[one.outcome])) for one in found
        ),
        notes=("Each class is judged at the highest percentile that both runs hold.",),
    )


def _change_cells(one: Change) -> tuple[Cell, ...]:
    text = _text_of(one)
    p = "" if one.p is None else f", p{one.p * 100:g}"
    change = NOTHING
    if one.difference is not None:
        ratio = "" if one.ratio is None else f" ({one.ratio * 100:+.1f} %)"
        change = Cell(text=f"{_difference_text(one)}{ratio}", detail=_bounds_text(one))
    return (
        Cell(text=one.class_name or "process"),
        Cell(text=f"{one.figure}{p}"),
        *(
            Cell(text=DASH if value is None and one.p is None else text(value))
            if value is not None or one.p is None
            else Cell(text="withheld", tone="muted")
            for value in (one.before, one.after)
        ),
        change,
    )


def _bounds_text(one: Change) -> str:
    text = _text_of(one)
    if one.low is not None and one.high is not None:
        return range_text(one.low, one.high, text)
    return "" if one.p is None else "no 95 % bounds"


def _difference_text(one: Change) -> str:
    assert one.difference is not None
    text = _text_of(one)(abs(one.difference))
    return f"−{text}" if one.difference < 0 else f"+{text}"


def _text_of(one: Change) -> Text:
    return bytes_text if one.unit == "bytes" else seconds_text


def _word_cell(word: str, tone: Tone) -> Cell:
    return Cell(text=word, tone=tone)


def _name(summary: RunSummary) -> str:
    return f"{summary.variant} ({summary.run_id})"


def _setting_changes(before: Recording, after: Recording) -> list[str]:
    ours, theirs = (one.header.deployment.get("settings") for one in (before, after))
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return []
    return [
        f"{key} {ours.get(key)} → {theirs.get(key)}"
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key)
    ]
