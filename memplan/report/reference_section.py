"""Whether what was in flight is what the trace's own fleet had in flight."""

from __future__ import annotations

from memplan.report.pieces import Cell, Column, Section, Table
from memplan.report.series import StateCurves
from memplan.stats.reference_states import REFUSE_RATIO, WARN_RATIO
from memplan.stats.summary import ReferenceFit, RunSummary, StateFigures, StateFit


def reference_section(summary: RunSummary, prefix: str) -> Section:
    """Without blocks where there is no reference."""
    fit = summary.fidelity.against_reference if summary.fidelity is not None else None
    section = Section(id=f"{prefix}reference", title="Is it the trace?")
    if fit is None:
        return section
    fits = fits_of(fit)
    return Section(
        id=section.id,
        title=section.title,
        paragraphs=(_what(fit),),
        blocks=(_table(fits, prefix), _curves(fits, prefix)),
    )


def fits_of(fit: ReferenceFit) -> tuple[StateFit, ...]:
    return tuple(one for one in (fit.running, fit.kv_tokens) if one is not None)


def _what(fit: ReferenceFit) -> str:
    paced = (
        " Answers were held to the reference's pace, so that each request stayed as long, dilated, as "
        "it would have there: latencies here are the reference's, memory is this engine's."
        if fit.is_paced
        else ""
    )
    return (
        f"Reference: {fit.reference}. Judged over {fit.judged_s:,.0f} s of the run: "
        f"{'; '.join(fit.windows)}.{paced}"
    )


def _table(fits: tuple[StateFit, ...], prefix: str) -> Table:
    def cells(name: str, whose: str, found: StateFigures, last: Cell) -> tuple[Cell, ...]:
        figures = (found.mean, found.p50, found.p95, found.p99, found.most)
        texts = [f"{one:,.2f}" if one < 100 else f"{one:,.0f}" for one in figures]
        return (Cell(text=name), Cell(text=whose), *(Cell(text=one) for one in texts), last)

    return Table(
        id=f"{prefix}reference-table",
        title="States in flight, by time",
        columns=(
            Column(title="", align="left"),
            Column(title="whose", align="left"),
            *(Column(title=title) for title in ("mean", "p50", "p95", "p99", "most", "W1")),
        ),
        rows=tuple(
            row
            for one in fits
            for row in (
                cells(one.name, "reference", one.reference, Cell(text="")),
                cells("", "reached", one.reached, _distance(one)),
            )
        ),
        notes=(
            "W1: Wasserstein-1 distance of the two distributions over time, as a part of the "
            f"reference's mean; above {WARN_RATIO:g} a finding says so, above {REFUSE_RATIO:g} the "
            "figures are not the trace's. KV in tokens of the trace, before scaling.",
        ),
    )


def _distance(fit: StateFit) -> Cell:
    if fit.w1_ratio is None:
        return Cell(text="unknown", tone="muted")
    return Cell(text=f"{fit.w1_ratio:.3f}", tone="good" if fit.w1_ratio <= WARN_RATIO else "bad")


def _curves(fits: tuple[StateFit, ...], prefix: str) -> StateCurves:
    return StateCurves(
        id=f"{prefix}reference-curves",
        title="What was in flight, and what the reference had",
        caption="For each value the share of the time in which no more was in flight. The nearer the "
        "lines, the more the memory figures are those of the trace.",
        panels=tuple((one.name, one.reference_curve, one.reached_curve) for one in fits),
    )
