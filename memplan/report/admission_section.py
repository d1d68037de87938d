"""What requests waited for, who was turned away or made way, and what the KV blocks were used for."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.records import Recording
from memplan.report.pieces import Block, Cell, Column, Fact, Facts, Section, Table
from memplan.report.series import kv_timeline_of
from memplan.report.wording import NOTHING, interval_text
from memplan.stats.degradations import Degraded
from memplan.stats.percentiles import fewest_for
from memplan.stats.summary import ClassAdmission, KvMost, RunSummary, Wait
from memplan.units import bytes_text, seconds_text

STEP = "step"
"""Waited for by whoever came while a step ran: in every engine, and no limit."""
REASONS = {
    STEP: "the step that ran",
    "batch": "others, to start together",
    "requests": "max_requests",
    "lane": "its lane",
    "kv_pool": "KV blocks",
    "memory_budget": "memory_budget",
    "class_budget": "its class's budget.in_flight",
    "memory_pressure": "memory, near the limit",
    "adapters": "room for its adapter",
}


def admission_section(summary: RunSummary, recording: Recording, prefix: str) -> Section:
    """Without blocks where nothing was ever in anybody's way."""
    classes = [(one.name, one.admission) for one in summary.classes if one.admission is not None]
    blocks: list[Block] = []
    if any(_is_held_up(found) for _, found in classes):
        blocks.append(_waits_table(classes, f"{prefix}waits"))
    if any(_is_changed(found) for _, found in classes):
        blocks.append(_changes_table(classes, f"{prefix}changes"))
    facts = tuple(_facts(summary))
    if facts:
        blocks.append(
            Facts(id=f"{prefix}blocks", title="What the engine's memory policy did", facts=facts)
        )
    chart = kv_timeline_of(recording, f"{prefix}kv")
    if chart is not None:
        blocks.append(chart)
    return Section(id=f"{prefix}admission", title="What requests waited for", blocks=tuple(blocks))


def _is_held_up(found: ClassAdmission) -> bool:
    return any(wait.reason != STEP for wait in found.waits)


def _is_changed(found: ClassAdmission) -> bool:
    return bool(
        found.rejected
        or found.shortened
        or found.preemptions
        or found.shared_tokens
        or found.pulled_back_bytes
    )


def _waits_table(classes: list[tuple[str, ClassAdmission]], id: str) -> Table:
    return Table(
        id=id,
        title="Time in the engine's queue, by what was in the way",
        columns=(
            Column(title="class", align="left"),
            Column(title="waited for", align="left"),
            Column(title="requests"),
            Column(title="p50"),
            Column(title="p95"),
            Column(title="largest"),
            Column(title="in all", is_spare=True),
        ),
        rows=tuple(row for name, found in classes for row in _wait_rows(name, found)),
        notes=(
            "Percentiles are of the requests that waited for it, and the time is inside TTFT and "
            "E2E. Only the first request of a queue is looked at: those behind it wait for the same.",
        ),
    )


def _wait_rows(name: str, found: ClassAdmission) -> Iterator[tuple[Cell, ...]]:
    if not found.waits:
        yield (Cell(text=name), Cell(text="nothing"), *(NOTHING,) * 5)
    for number, wait in enumerate(found.waits):
        yield (Cell(text="" if number else name), *_wait_cells(wait, found))


def _wait_cells(wait: Wait, found: ClassAdmission) -> Iterator[Cell]:
    yield Cell(text=REASONS.get(wait.reason, wait.reason))
    share = wait.requests / found.entered * 100
    yield Cell(text=f"{wait.requests:,} ({share:.0f} %)")
    for quantile in (wait.waited_s.p50, wait.waited_s.p95):
        if quantile.value is None:
            needed = f"{wait.waited_s.n:,} waited, needs {fewest_for(quantile.p):,}"
            yield Cell(text="withheld", detail=needed, tone="muted")
        else:
            yield Cell(
                text=seconds_text(quantile.value), detail=interval_text(quantile, seconds_text)
            )
    yield Cell(text=seconds_text(wait.waited_s.peak))
    yield Cell(text=seconds_text(wait.total_s))


def _changes_table(classes: list[tuple[str, ClassAdmission]], id: str) -> Table:
    return Table(
        id=id,
        title="Turned away, shortened, made way, shared",
        columns=(
            Column(title="class", align="left"),
            Column(title="rejected"),
            Column(title="shortened"),
            Column(title="made way"),
            Column(title="prompt tokens shared"),
            Column(title="pulled back", is_spare=True),
        ),
        rows=tuple(_change_row(name, found) for name, found in classes),
        notes=(
            "Made way: requests that were preempted after they had entered, and how often. Shared: "
            "tokens of prompts whose KV another request had computed. Pulled back: KV that came back "
            "from the offload tier, and the time of the steps that waited for it.",
        ),
    )


def _change_row(name: str, found: ClassAdmission) -> tuple[Cell, ...]:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(found.rejected.items()))
    share = (
        f"{found.shared_tokens / found.prompt_tokens * 100:.0f} %" if found.prompt_tokens else ""
    )
    return (
        Cell(text=name),
        _count_cell(sum(found.rejected.values()), reasons),
        _count_cell(found.shortened, f"{found.shortened_tokens:,} tokens fewer"),
        _count_cell(found.preempted, f"{found.preemptions:,} times"),
        _count_cell(found.shared_tokens, share),
        Cell(
            text=bytes_text(found.pulled_back_bytes),
            detail=f"for {found.pulled_back:,} requests, {seconds_text(found.pull_back_s)}",
        )
        if found.pulled_back
        else NOTHING,
    )


def _count_cell(count: int, detail: str) -> Cell:
    return Cell(text=f"{count:,}", detail=detail) if count else NOTHING


def _facts(summary: RunSummary) -> Iterator[Fact]:
    found = summary.admission
    if found is None:
        return
    if found.kv is not None and found.kv.kept_bytes is not None:
        yield Fact(name="most KV blocks at once", text=_kv_text(found.kv))
    if found.streaming is not None:
        cost = found.streaming
        yield Fact(
            name="weights streamed",
            text=f"{bytes_text(cost.bytes_per_step)} a step in {cost.steps:,} steps, which waited "
            f"{seconds_text(cost.s_per_step)} each for them ({cost.ratio:.0%} of their time)",
        )
    if found.degraded is not None:
        yield Fact(name="given up for memory", text=_degraded_text(found.degraded))


def _kv_text(kv: KvMost) -> str:
    named = (
        ("held by requests", kv.held_bytes),
        ("of them by several", kv.shared_bytes),
        ("kept for who may come", kv.kept_bytes),
        ("in the offload tier", kv.offloaded_bytes),
    )
    return ", ".join(f"{bytes_text(size)} {name}" for name, size in named if size is not None)


def _degraded_text(found: Degraded) -> str:
    taken = [
        f"{step.name} {step.times:,} × ({seconds_text(step.lasted_s)})"
        for step in found.steps
        if step.times
    ]
    at = bytes_text(found.at_bytes)
    if not taken:
        return f"nothing: the working set stayed below {at}"
    return f"{', '.join(taken)}; threshold {at}, largest working set {bytes_text(found.most_bytes)}"
