"""A trace's shape as a document that any renderer draws."""

from __future__ import annotations

from collections.abc import Mapping

from memplan.report.pieces import Cell, Column, Document, Fact, Facts, FindingList, Section, Table
from memplan.report.series import ArrivalRate, LengthCurves
from memplan.units import seconds_text
from memplan.workload.shape import BIN_S, Lengths, TraceShape
from memplan.workload.summary import TraceSummary
from memplan.workload.trace import TraceHead


def trace_document(summary: TraceSummary) -> Document:
    trace, shape, rules = summary.head, summary.shape, summary.class_rules
    return Document(
        title=f"{trace.source}: a trace of the format {trace.format}",
        subtitle=f"SHA-256 {trace.sha256[:16]}…, first arrival {trace.time_origin or 'unknown'}",
        answer=_answer(trace, shape),
        figures=(),
        sections=(
            Section(id="rows", title="Rows", blocks=(_rows(trace),)),
            Section(id="arrivals", title="Arrivals", blocks=(_arrivals(shape), _rate(shape))),
            Section(id="lengths", title="Lengths", blocks=(_lengths(shape), _curves(shape))),
            Section(id="classes", title="Classes", blocks=(_classes(trace, shape, rules),)),
            Section(
                id="doubts",
                title="What to doubt",
                paragraphs=() if shape.findings else ("Nothing looks made up.",),
                blocks=(FindingList(id="trace-findings", findings=shape.findings),)
                if shape.findings
                else (),
            ),
        ),
    )


def _answer(trace: TraceHead, shape: TraceShape) -> str:
    rate = "all at one instant"
    if shape.requests_per_s is not None:
        each_minute = shape.requests_per_s * 60
        minute = f"{each_minute:,.0f}" if each_minute >= 100 else f"{each_minute:.3g}"
        rate = f"{shape.requests_per_s:,.3g} a second on average ({minute} a minute)"
    bursty = ""
    if shape.dispersion is not None:
        bursty = f", counts of {BIN_S:g} s {shape.dispersion:,.2f} times as dispersed as Poisson's"
    kept = f"{trace.rows_kept:,} of {trace.rows_read:,} rows"
    return f"{kept} over {seconds_text(shape.span_s)}: {rate}{bursty}."


def _rows(trace: TraceHead) -> Facts:
    dropped = [Fact(name=f"left out: {name}", text=f"{n:,}") for name, n in trace.dropped.items()]
    return Facts(
        id="row-facts",
        title="Rows",
        facts=(
            Fact(name="read", text=f"{trace.rows_read:,}"),
            Fact(name="kept", text=f"{trace.rows_kept:,}"),
            *([Fact(name="written from", text=trace.written_from)] if trace.written_from else []),
            *dropped,
        ),
    )


def _arrivals(shape: TraceShape) -> Facts:
    def known(value: float | None, text: str) -> str:
        return "unknown" if value is None else text.format(value)

    return Facts(
        id="arrival-facts",
        title="Arrivals",
        facts=(
            Fact(name="variation of gaps (1: Poisson)", text=known(shape.gap_cv, "{:.2f}")),
            Fact(
                name=f"dispersion in {BIN_S:g} s (1: Poisson)",
                text=known(shape.dispersion, "{:.2f}"),
            ),
            Fact(name="at the instant of the one before", text=f"{shape.same_instant:,}"),
            Fact(
                name="resolution of the clock",
                text="no tick shows" if shape.tick_s is None else f"ticks of {shape.tick_s:g} s",
            ),
            Fact(name="sessions", text=known(shape.sessions, "{:,}")),
            Fact(name="turns of a session", text=known(shape.session_turns_mean, "{:.1f}")),
            Fact(
                name="prompt blocks that were there before",
                text=known(shape.reused_ratio, "{:.1%}"),
            ),
            Fact(name="rows with production's own times", text=f"{shape.observed:,}"),
        ),
    )


def _lengths(shape: TraceShape) -> Table:
    def row(name: str, found: Lengths) -> tuple[Cell, ...]:
        return (
            Cell(text=name),
            Cell(text=f"{found.mean:,.0f}"),
            *(Cell(text=f"{value:,}") for value in found.quantiles),
        )

    return Table(
        id="length-table",
        title="Tokens",
        columns=(
            Column(title="", align="left"),
            *(Column(title=name) for name in ("mean", "p50", "p95", "p99", "longest")),
        ),
        rows=(row("input", shape.input), row("output", shape.output)),
    )


def _rate(shape: TraceShape) -> ArrivalRate:
    return ArrivalRate(
        id="arrival-rate",
        title="Requests a second, over the trace",
        caption=f"Mean of each {seconds_text(shape.period_s)}.",
        period_s=shape.period_s,
        counts=shape.arrivals,
    )


def _curves(shape: TraceShape) -> LengthCurves:
    return LengthCurves(
        id="length-curves",
        title="How long prompts and answers are",
        caption="For each length the share of the rows that are at most as long.",
        lines=(("prompt tokens", shape.input.curve), ("answer tokens", shape.output.curve)),
    )


def _classes(trace: TraceHead, shape: TraceShape, rules: Mapping[str, str]) -> Table:
    return Table(
        id="class-table",
        title="Classes, and the rule that names each",
        columns=(
            Column(title="class", align="left"),
            Column(title="rows"),
            Column(title="share"),
            Column(title="rule", align="left"),
        ),
        rows=tuple(
            (
                Cell(text=name),
                Cell(text=f"{count:,}"),
                Cell(text=f"{count / trace.rows_kept:.1%}"),
                Cell(text=rules.get(name, "")),
            )
            for name, count in shape.classes.items()
        ),
    )
