"""What one replay showed: classes, latency beside memory, and where the peak went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memplan.records import Recording
from memplan.report.admission_section import admission_section
from memplan.report.explain_section import explain_section
from memplan.report.limits_section import limits_section
from memplan.report.peak_section import peak_section
from memplan.report.pieces import Cell, Column, Section, Table
from memplan.report.reference_section import reference_section
from memplan.report.series import (
    BarPanel,
    MemoryAgainstLatency,
    PercentileBars,
    Place,
    latency_points_of,
)
from memplan.report.wording import (
    PERCENTILE_COLUMNS,
    method_notes,
    percentile_cells,
    quantile_cell,
)
from memplan.stats.summary import (
    ClassSummary,
    Percentiles,
    PlaceMemory,
    Quantile,
    RunSummary,
)
from memplan.units import bytes_text, seconds_text


def replay_sections(summary: RunSummary, recording: Recording, prefix: str) -> tuple[Section, ...]:
    """``prefix`` keeps the ids of several runs on one page apart."""
    sections = (
        _classes_section(summary, prefix),
        reference_section(summary, prefix),
        _memory_section(summary, prefix),
        _latency_section(summary, recording, prefix),
        admission_section(summary, recording, prefix),
        limits_section(summary, recording, prefix),
        peak_section(summary, recording, prefix),
        explain_section(recording, prefix),
    )
    return tuple(section for section in sections if section.blocks)


def main_place(summary: RunSummary) -> Place:
    """Where requests keep their KV cache: the GPU as soon as one was measured."""
    return "gpu" if any(one.gpu is not None for one in summary.classes) else "cpu"


def main_memory(one: ClassSummary) -> PlaceMemory:
    return one.gpu or one.cpu


def _classes_section(summary: RunSummary, prefix: str) -> Section:
    return Section(
        id=f"{prefix}classes",
        title="Each class at a glance",
        paragraphs=(
            "Owned is what a request adds for itself: its own KV cache and its share of "
            "activations and reserved KV, on top of what the process holds idle. Memory here is "
            f"{main_place(summary).upper()} memory.",
        ),
        blocks=(_glance_table(summary, prefix),) if summary.classes else (),
    )


def _glance_table(summary: RunSummary, prefix: str) -> Table:
    def cell(quantile: Quantile, one: ClassSummary, *, is_time: bool = True) -> Cell:
        text = seconds_text if is_time else bytes_text
        found = quantile_cell(quantile, text, summary.findings, one.name)
        return Cell(text=found.text, tone=found.tone)

    rows = tuple(
        (
            Cell(text=one.name, detail=one.rule),
            Cell(text=f"{one.completed:,} of {one.requests:,}"),
            cell(main_memory(one).attributed.p50, one, is_time=False),
            cell(main_memory(one).attributed.p95, one, is_time=False),
            cell(main_memory(one).co_resident.p95, one, is_time=False),
            cell(one.ttft_s.p95, one),
            cell(one.tpot_s.p95, one),
            cell(one.e2e_s.p95, one),
        )
        for one in summary.classes
    )
    return Table(
        id=f"{prefix}glance",
        title="Memory and latency of each class",
        columns=(
            Column(title="class", align="left"),
            Column(title="completed"),
            Column(title="owned p50", is_spare=True),
            Column(title="owned p95"),
            Column(title="process p95"),
            Column(title="TTFT p95"),
            Column(title="TPOT p95", is_spare=True),
            Column(title="E2E p95"),
        ),
        rows=rows,
        notes=(
            *(f"{one.name}: {losses}." for one in summary.classes if (losses := _losses(one))),
            "Process is what the whole process held while a request of the class was in flight. "
            "TTFT: time to first token; TPOT: time per output token; E2E: end to end, from the "
            "intended send time. Intervals and p99 are in the tables below.",
        ),
    )


def _losses(one: ClassSummary) -> str:
    counts = (
        ("failed", one.failed),
        ("rejected", one.rejected),
        ("cancelled by their users", one.cancelled),
        ("unfinished", one.unfinished),
        ("not sent", one.not_sent),
    )
    losses = [f"{count:,} {name}" for name, count in counts if count]
    reasons = [f"{reason} {count:,}" for reason, count in sorted(one.reasons.items())]
    return ", ".join(losses) + (f" ({', '.join(reasons)})" if losses and reasons else "")


def _memory_section(summary: RunSummary, prefix: str) -> Section:
    if not summary.classes:
        return Section(id=f"{prefix}memory", title="Memory")
    measured = [
        pair
        for one in summary.classes
        for _, memory in _places(one)
        for pair in (
            ("Attributed", memory.attributed),
            ("Co-resident, by time", memory.co_resident),
            ("Co-resident, by request", memory.co_resident_by_request),
        )
    ]
    table = Table(
        id=f"{prefix}memory-table",
        title="Memory percentiles of each class",
        columns=(
            Column(title="class", align="left"),
            Column(title="counted as", align="left"),
            *PERCENTILE_COLUMNS,
        ),
        rows=tuple(row for one in summary.classes for row in _memory_rows(one, summary)),
        notes=method_notes(measured),
    )
    bars = PercentileBars(
        id=f"{prefix}percentiles",
        title="p50, p95 and p99 of each class",
        caption=(
            "Whiskers are the 95 % interval; one that stops at the top of its bar has no upper "
            "bound in this run. A percentile without a bar is withheld."
        ),
        panels=(
            BarPanel(
                title=f"owned by a request (attributed), {main_place(summary).upper()}",
                unit="bytes",
                groups=tuple((one.name, main_memory(one).attributed) for one in summary.classes),
            ),
            BarPanel(
                title="end to end",
                unit="s",
                groups=tuple((one.name, one.e2e_s) for one in summary.classes),
            ),
        ),
    )
    return Section(
        id=f"{prefix}memory",
        title="Memory of each request class",
        blocks=(table, bars),
    )


def _places(one: ClassSummary) -> Iterator[tuple[Place, PlaceMemory]]:
    yield "cpu", one.cpu
    if one.gpu is not None:
        yield "gpu", one.gpu


def _memory_rows(one: ClassSummary, summary: RunSummary) -> Iterator[tuple[Cell, ...]]:
    name = one.name
    for place, memory in _places(one):
        suffix = "" if one.gpu is None else f", {place.upper()}"
        for rule, percentiles in (
            ("attributed", memory.attributed),
            ("co-resident, by time", memory.co_resident),
            ("co-resident, by request", memory.co_resident_by_request),
        ):
            cells = percentile_cells(percentiles, bytes_text, summary.findings, one.name)
            yield (Cell(text=name), Cell(text=f"{rule}{suffix}"), *cells)
            name = ""


def _latency_section(summary: RunSummary, recording: Recording, prefix: str) -> Section:
    if not summary.classes:
        return Section(id=f"{prefix}latency", title="Latency")
    table = Table(
        id=f"{prefix}latency-table",
        title="Latency percentiles of each class",
        columns=(
            Column(title="class", align="left"),
            Column(title="time", align="left"),
            *PERCENTILE_COLUMNS,
        ),
        rows=tuple(row for one in summary.classes for row in _latency_rows(one, summary)),
        notes=method_notes([("Times", one.e2e_s) for one in summary.classes]),
    )
    names = tuple(one.name for one in summary.classes)
    place = main_place(summary)
    points, all_points = latency_points_of(recording, place)
    kept = "" if len(points) == all_points else f" {len(points):,} of {all_points:,} are drawn."
    scatter = MemoryAgainstLatency(
        id=f"{prefix}scatter",
        title="Memory against latency, one point a request",
        caption=(
            "Across: end-to-end time from the intended send. Up: what the request owned at its "
            f"peak, {place.upper()} (attributed).{kept}"
        ),
        class_names=names,
        points=points,
    )
    return Section(
        id=f"{prefix}latency",
        title="Latency beside memory",
        blocks=(table, *((scatter,) if points else ())),
    )


def _latency_rows(one: ClassSummary, summary: RunSummary) -> Iterator[tuple[Cell, ...]]:
    times: Sequence[tuple[str, Percentiles]] = (
        ("TTFT", one.ttft_s),
        ("TPOT", one.tpot_s),
        ("E2E", one.e2e_s),
    )
    for number, (name, percentiles) in enumerate(times):
        cells = percentile_cells(percentiles, seconds_text, summary.findings, one.name)
        yield (Cell(text="" if number else one.name), Cell(text=name), *cells)
