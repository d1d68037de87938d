"""Which way requests went through the gateway, and what their users saw."""

from __future__ import annotations

from memplan.report.pieces import Cell, Column, Section, Table
from memplan.report.wording import DASH, interval_text
from memplan.stats.paths import GatewaySummary, PathUse
from memplan.stats.summary import Percentiles, Quantile
from memplan.units import seconds_text


def paths_section(summary: GatewaySummary) -> Section:
    lost = summary.requests - summary.answered
    handed = ", ".join(f"{name} {count:,}" for name, count in summary.handed.items())
    text = (
        f"{summary.answered:,} of {summary.requests:,} requests were answered"
        + (f"; {lost:,} were not, each with its reason below" if lost else "")
        + f". Handed to the pools: {handed}; a request that two of them had counts for both."
    )
    cut = "The run was cut off: what was on its way then is unfinished."
    return Section(
        id="paths",
        title="Which way requests went",
        paragraphs=(text, *(() if summary.is_whole else (cut,))),
        blocks=(_table(summary),),
    )


def _table(summary: GatewaySummary) -> Table:
    return Table(
        id="paths-table",
        title="Requests by class and path, and what their users saw",
        columns=(
            Column(title="class", align="left"),
            Column(title="path", align="left"),
            Column(title="requests"),
            Column(title="under pressure", is_spare=True),
            Column(title="waited p95", is_spare=True),
            Column(title="TTFT p50"),
            Column(title="TTFT p95"),
            Column(title="E2E p95"),
        ),
        rows=tuple(_row(use) for use in summary.uses),
        notes=(
            "From a request's intended arrival at the gateway, so that waiting for room, being put off "
            "and attempts that failed are all in it. Each pool's own memory and latency follow below: "
            "to a pool a request begins when it is handed over.",
        ),
    )


def _row(use: PathUse) -> tuple[Cell, ...]:
    is_answered = use.outcome in ("completed", "cached")
    return (
        Cell(text=use.class_name),
        Cell(
            text=use.path,
            detail="" if is_answered else use.outcome,
            tone="plain" if is_answered else "bad",
        ),
        Cell(text=f"{use.requests:,}", detail=f"{use.ratio:.1%} of the class"),
        Cell(text=f"{use.under_pressure:,}"),
        _time(use.waited_s, "p95"),
        _time(use.ttft_s, "p50"),
        _time(use.ttft_s, "p95"),
        _time(use.e2e_s, "p95"),
    )


def _time(found: Percentiles | None, which: str) -> Cell:
    if found is None:
        return Cell(text=DASH, tone="muted")
    quantile: Quantile = getattr(found, which)
    if quantile.value is None:
        return Cell(text="withheld", detail=f"n = {found.n}", tone="muted")
    return Cell(text=seconds_text(quantile.value), detail=interval_text(quantile, seconds_text))
