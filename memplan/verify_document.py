"""What became of a plan that was tried, as a document that any renderer draws."""

from __future__ import annotations

from memplan.report.pieces import Cell, Column, Document, Section, Table
from memplan.report.wording import NOTHING
from memplan.units import bytes_text
from memplan.verifying import ScaledNode, Trial


def verify_document(node: ScaledNode, first: Trial, more: Trial) -> Document:
    return Document(
        title=f"The plan, tried: {first.replicas} replicas in {bytes_text(node.usable_bytes)}",
        subtitle=f"a limit of {bytes_text(node.limit_bytes)} for all of them together, beside "
        f"{bytes_text(node.files_bytes)} of files that they share; margin {node.margin_ratio:.0%}; in "
        f"the limit {bytes_text(node.kernel_bytes)} of the kernel's own for them, and "
        f"{bytes_text(node.charged_ahead_bytes)} that this machine's CPUs may hold charged ahead",
        answer=_answer(first, more),
        figures=(),
        sections=(
            Section(
                id="trials",
                title="Both trials",
                blocks=(
                    Table(
                        id="trial-table",
                        title="Under the same limit",
                        columns=(
                            Column(title="replicas"),
                            Column(title="completed"),
                            Column(title="engines died"),
                            Column(title="killed for memory"),
                            Column(title="charged at most"),
                            Column(title="refaults"),
                            Column(title="verdict", align="left"),
                        ),
                        rows=(_row(first), _row(more)),
                        notes=(
                            "On rows of the trace that the plan was not made from, dealt out to the "
                            "replicas in turn.",
                        ),
                    ),
                ),
            ),
        ),
    )


def _answer(first: Trial, more: Trial) -> str:
    if not first.holds:
        return f"{first.replicas} replicas did not hold: the plan promises too much."
    if more.holds:
        return (
            f"{first.replicas} replicas hold, and so do {more.replicas}: the plan is safe, and one more "
            "than it needs to be."
        )
    return f"{first.replicas} replicas hold, and {more.replicas} do not: the plan is right."


def _row(one: Trial) -> tuple[Cell, ...]:
    verdict = Cell(text="holds", tone="good")
    if not one.holds:
        verdict = Cell(text="does not hold", detail=one.problem or "", tone="bad")
    return (
        Cell(text=f"{one.replicas}"),
        Cell(text=f"{one.completed:,} of {one.requests:,}"),
        Cell(text=f"{one.died}"),
        Cell(text=f"{one.oom_kills}"),
        NOTHING
        if one.peak_charged_bytes is None
        else Cell(text=bytes_text(one.peak_charged_bytes)),
        NOTHING if one.refaults is None else Cell(text=f"{one.refaults:,}"),
        verdict,
    )
