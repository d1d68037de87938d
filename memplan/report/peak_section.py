"""Where the peak goes: its picture over time, its parts, and the tensors that lived."""

from __future__ import annotations

from memplan.records import Recording
from memplan.report.pieces import Block, Cell, Column, Section, Table
from memplan.report.series import PeakParts, Place, parts_of, timeline_of
from memplan.report.wording import bytes_cell, count_text
from memplan.stats.summary import Attribution, RunSummary
from memplan.units import bytes_text

_MOST_OWNERS = 4


def peak_section(summary: RunSummary, recording: Recording, prefix: str) -> Section:
    places: list[tuple[Place, Attribution | None]] = [("cpu", summary.attribution)]
    if summary.gpu_peak_bytes is not None:
        places.append(("gpu", summary.gpu_attribution))
    blocks: list[Block] = []
    for place, attribution in places:
        if recording.segments:
            blocks.append(timeline_of(recording, summary, place, f"{prefix}timeline-{place}"))
        if attribution is not None:
            blocks.append(_parts_chart(attribution, f"{prefix}parts-{place}"))
            blocks.append(_parts_table(attribution, f"{prefix}parts-table-{place}"))
    return Section(id=f"{prefix}peak", title="Where the peak goes", blocks=tuple(blocks))


def _parts_chart(attribution: Attribution, id: str) -> PeakParts:
    return PeakParts(
        id=id,
        title=(
            f"The {attribution.place.upper()} peak while serving, "
            f"{bytes_text(attribution.total_bytes)}"
        ),
        caption=f"At {attribution.at_s:.1f} s of the run. Method: {attribution.method}.",
        parts=parts_of(attribution),
    )


def _parts_table(attribution: Attribution, id: str) -> Table:
    total = attribution.total_bytes
    rows: list[tuple[Cell, ...]] = []
    for name, value in parts_of(attribution):
        rows.append(_part_row(name, value, total))
        finer = {"runtime": attribution.runtime_parts, "KV cache": attribution.kv_parts}
        rows += [_part_row(f"· {part}", size, total) for part, size in finer.get(name, {}).items()]
    return Table(
        id=id,
        title=f"Parts of the {attribution.place.upper()} peak",
        columns=(
            Column(title="part", align="left"),
            Column(title="bytes"),
            Column(title="share"),
        ),
        rows=(*rows, (Cell(text="peak"), bytes_cell(total), Cell(text="100.0 %"))),
        notes=(
            "The parts add up to the peak. Unexplained is what no gauge accounts for; "
            f"{count_text(attribution.unexplained_bytes)} bytes of {count_text(total)}.",
            *tensor_notes(attribution),
        ),
    )


def _part_row(name: str, size_bytes: int, total_bytes: int) -> tuple[Cell, ...]:
    share = f"{size_bytes / total_bytes * 100:.1f} %"
    return (Cell(text=name), bytes_cell(size_bytes), Cell(text=share))


def tensor_notes(attribution: Attribution) -> tuple[str, ...]:
    """Which tensors lived when there were most of them; nothing where they were not counted."""
    if not attribution.tensors:
        return ()
    largest = sorted(attribution.tensors.items(), key=lambda item: -item[1])
    shown = [f"{name} {bytes_text(size)}" for name, size in largest[:_MOST_OWNERS]]
    rest = sum(size for _, size in largest[_MOST_OWNERS:])
    if rest:
        shown.append(f"others {bytes_text(rest)}")
    while_ = f" while {attribution.peak_module} ran" if attribution.peak_module else ""
    return (
        f"Live tensors beside the weights, most of them{while_}: "
        f"{bytes_text(sum(attribution.tensors.values()))}, made by {', '.join(shown)}.",
    )
