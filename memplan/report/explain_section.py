"""Why each class peaked where it did, as a section of the report and as a document of its own.

Classes whose worst segment is the same one share its figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memplan.records import Recording
from memplan.report.limits import limits_of
from memplan.report.peak_section import tensor_notes
from memplan.report.pieces import Cell, Column, Document, Fact, Facts, Section, Table
from memplan.report.series import parts_of
from memplan.report.wording import DASH, bytes_cell
from memplan.stats.explain import explain
from memplan.stats.explanation import Explanation, HeldRequest, RunExplanation, Suggestion
from memplan.units import bytes_text, seconds_text

MOST_ROWS = 12
"""The largest owners; the rest are counted in a note, and all of them are in the JSON document."""

_MEANING = (
    "For each class, the segment with the largest exact peak while a request of it was in flight."
)

Group = tuple[Explanation, ...]
"""Explanations of one segment, one a class."""


def explained(recording: Recording) -> RunExplanation:
    """With the budgets that model.yaml sets for the place where requests keep their KV."""
    on_gpu = any(engine.device != "cpu" for engine in recording.engines)
    subject = "gpu_bytes" if on_gpu else "cpu_bytes"
    limits = limits_of(recording.header.deployment)
    return explain(
        recording, {one.class_name: one.value for one in limits if one.subject == subject}
    )


def explain_section(recording: Recording, prefix: str) -> Section:
    """All classes in one section of the report; the terminal has `memplan explain` for it."""
    found = explained(recording)
    blocks = [
        block
        for number, group in enumerate(_groups(found.classes))
        for block in _blocks(group, f"{prefix}explain-{number + 1}")
    ]
    return Section(
        id=f"{prefix}explain",
        title="Why each class peaked",
        paragraphs=_paragraphs(found),
        blocks=tuple(blocks),
        in_terminal=False,
    )


def explain_document(recordings: Sequence[Recording]) -> Document:
    """What `memplan explain` prints: a section for each segment, in the order of the classes."""
    first = recordings[0].header
    sections = [
        section
        for number, recording in enumerate(recordings)
        for section in _sections(recording, f"run{number + 1}-", _run_before(recording, recordings))
    ]
    runs = ", ".join(f"{one.header.variant} (run {one.header.run_id})" for one in recordings)
    outcomes = (
        f"{_run_before(one, recordings)}{text}"
        for one in recordings
        for text in _outcome(explained(one))
    )
    return Document(
        title=f"{first.deployment_name}: why each request class peaked",
        subtitle=f"{first.kind} of {first.workload.source}, {runs}",
        answer=" ".join((_MEANING, *outcomes)),
        figures=(),
        sections=tuple(sections),
    )


def _run_before(one: Recording, recordings: Sequence[Recording]) -> str:
    """Which of several runs a text is about."""
    return "" if len(recordings) == 1 else f"{one.header.variant}: "


def _sections(recording: Recording, prefix: str, run: str) -> Iterator[Section]:
    for number, group in enumerate(_groups(explained(recording).classes)):
        id = f"{prefix}explain-{number + 1}"
        yield Section(id=id, title=f"{run}{_title(group)}", blocks=tuple(_blocks(group, id)))


def _groups(explanations: Sequence[Explanation]) -> tuple[Group, ...]:
    found: dict[tuple[int, float], list[Explanation]] = {}
    for one in explanations:
        found.setdefault((one.engine_start, one.end_s), []).append(one)
    return tuple(tuple(group) for group in found.values())


def _paragraphs(found: RunExplanation) -> tuple[str, ...]:
    return (_MEANING, *_outcome(found))


def _outcome(found: RunExplanation) -> Iterator[str]:
    """The worst of all, and the classes that have none."""
    if found.classes:
        worst = max(found.classes, key=lambda one: one.attribution.total_bytes)
        yield (
            f"The largest of all, {bytes_text(worst.attribution.total_bytes)} of "
            f"{found.place.upper()} memory, was {_when(worst)}, with "
            f"{_counted(len(worst.held), 'request')} in flight."
        )
    if found.never_in_flight:
        yield f"Never in flight, so not explained: {', '.join(found.never_in_flight)}."


def _title(group: Group) -> str:
    names = [one.class_name for one in group]
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"{listed}: peaked at {bytes_text(group[0].attribution.total_bytes)}"


def _when(one: Explanation) -> str:
    start = f" of engine start {one.engine_start + 1}" if one.engine_start else ""
    return f"at {one.start_s:.2f}{DASH}{one.end_s:.2f} s{start}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _blocks(group: Group, id: str) -> Iterator[Facts | Table]:
    yield _facts(group, id)
    yield _held_table(group[0], id)
    rows = tuple(_suggestion_rows(group))
    if rows:
        yield _suggestions_table(rows, id)


def _facts(group: Group, id: str) -> Facts:
    one = group[0]
    total = one.attribution.total_bytes
    parts = (
        f"{name} {bytes_text(value)} ({value / total * 100:.1f} %)"
        for name, value in sorted(parts_of(one.attribution), key=lambda part: -abs(part[1]))
        if value
    )
    waiting = f"; {_counted(one.waiting, 'request')} waiting outside the batch"
    return Facts(
        id=f"{id}-facts",
        title=_title(group),
        facts=(
            Fact(
                name="when", text=f"{_when(one)}, {_what_ran(one)}{waiting if one.waiting else ''}"
            ),
            Fact(name="peak", text=f"{bytes_text(total)} ({one.attribution.place.upper()})"),
            Fact(name="its parts", text=", ".join(parts)),
            *([Fact(name="KV", text=_kv_text(one))] if one.attribution.kv_parts else ()),
            *(Fact(name="tensors", text=note) for note in tensor_notes(one.attribution)),
        ),
    )


def _kv_text(one: Explanation) -> str:
    return ", ".join(
        f"{bytes_text(size)} {part}" for part, size in one.attribution.kv_parts.items()
    )


def _what_ran(one: Explanation) -> str:
    took = seconds_text(one.end_s - one.start_s)
    if one.kind != "step":
        return f"{one.kind}, {took}"
    return (
        f"a step of {_counted(one.prefill_tokens, 'prompt token')} and "
        f"{_counted(one.decode_tokens, 'decode')}, {took}"
    )


def _held_table(one: Explanation, id: str) -> Table:
    shown, rest = one.held[:MOST_ROWS], one.held[MOST_ROWS:]
    transient = bytes_text(one.transient_bytes)
    notes = [
        f"Owned is KV and the share, by tokens run, of the {transient} that the segment held for a "
        "moment. Largest first."
        if one.transient_bytes
        else "Owned is KV: nothing was seen that the segment held only for a moment. Largest first."
    ]
    if rest:
        owned = bytes_text(sum(more.owned_bytes for more in rest))
        notes.insert(0, f"and {len(rest):,} more, which owned {owned} together.")
    return Table(
        id=f"{id}-held",
        title=f"In flight: {_counted(len(one.held), 'request')}",
        columns=(
            Column(title="request", align="left"),
            Column(title="class", align="left"),
            Column(title="tokens asked"),
            Column(title="KV used"),
            Column(title="KV reserved", is_spare=True),
            Column(title="share of transient"),
            Column(title="owned"),
        ),
        rows=tuple(_held_row(held, one.transient_bytes) for held in shown),
        notes=tuple(notes),
    )


def _held_row(held: HeldRequest, transient_bytes: int) -> tuple[Cell, ...]:
    share = (
        f" ({held.transient_bytes / transient_bytes * 100:.1f} %)" if held.transient_bytes else ""
    )
    return (
        Cell(text=held.request_id),
        Cell(text=held.class_name),
        Cell(text=f"{held.input_tokens:,} + {held.output_tokens:,}"),
        bytes_cell(held.kv_used_bytes),
        bytes_cell(held.kv_reserved_bytes),
        Cell(text=f"{bytes_text(held.transient_bytes)}{share}"),
        bytes_cell(held.owned_bytes),
    )


def _suggestion_rows(group: Group) -> Iterator[tuple[Cell, ...]]:
    """Each once, though only a budget's differs between classes."""
    for one in dict.fromkeys(found for explanation in group for found in explanation.suggestions):
        yield (
            Cell(text=one.change),
            Cell(text=_saved_text(one), tone="muted" if one.saves_bytes is None else "plain"),
            Cell(text=one.effect),
        )


def _saved_text(one: Suggestion) -> str:
    if one.saves_bytes == 0:
        return "nothing"
    about = "" if one.is_measured or one.saves_bytes is None else "≈ "
    return f"{about}{bytes_text(one.saves_bytes)}"


def _suggestions_table(rows: tuple[tuple[Cell, ...], ...], id: str) -> Table:
    return Table(
        id=f"{id}-suggestions",
        title="What would lower it",
        columns=(
            Column(title="change", align="left"),
            Column(title="off this peak"),
            Column(title="because", align="left"),
        ),
        rows=rows,
        notes=(
            "Each by itself and for this segment: they must not be added, and with it lower another "
            "segment may be the worst.",
        ),
    )
