"""The section that answers what a profile is for: what each technique saves, what it costs, which to
turn on first. No saving stands here without its cost, and what was not measured is said."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.report.pieces import Block, Cell, Column, Section, Table, Tone
from memplan.report.series import StackWaterfall, VariantFront, VariantPoint, WaterfallBar
from memplan.report.variants_wording import (
    NOT_MEASURED,
    VERDICTS,
    changes_text,
    first_text,
    percent_text,
    quality_text,
    reach_of,
)
from memplan.report.wording import NOTHING, Text, ratio_text
from memplan.stats.first_technique import Candidate, first_technique
from memplan.stats.pareto import front_of
from memplan.stats.summary import RunSummary
from memplan.stats.variants import (
    BASE,
    Spread,
    StackStep,
    VariantFigures,
    stack_of,
    variant_figures,
)
from memplan.units import bytes_text, seconds_text

_MEASURED = Cell(text=NOT_MEASURED, tone="muted")


def variants_section(profiles: Sequence[RunSummary]) -> Section | None:
    """None for one variant alone."""
    figures = variant_figures(profiles)
    if len(figures) < 2:
        return None
    base = next((one for one in figures if one.variant == BASE), figures[0])
    found = first_technique(figures)
    front = front_of(figures)
    verdicts = {one.figures.run_id: one for one in found.candidates} if found else {}
    blocks: list[Block | None] = [
        _table(figures, base, front, verdicts, _notes(profiles, figures)),
        _front_chart(figures, front),
        *_stack_blocks(stack_of(figures), base),
        _stored_table(figures),
    ]
    return Section(
        id="variants",
        title="Variants",
        paragraphs=(first_text(found),) if found else (),
        blocks=tuple(block for block in blocks if block is not None),
    )


# --- the table -------------------------------------------------------------------------------

_COST_COLUMNS = (
    Column(title="decode step"),
    Column(title="first token alone"),
    Column(title="whole batch"),
    Column(title="perplexity"),
)


def _table(
    figures: Sequence[VariantFigures],
    base: VariantFigures,
    front: Sequence[int],
    verdicts: dict[str, Candidate],
    notes: tuple[str, ...],
) -> Table:
    return Table(
        id="variants-table",
        title="What each variant holds, and what that costs",
        columns=(
            Column(title="variant", align="left"),
            Column(title="idle", is_spare=True),
            Column(title="peak"),
            *_COST_COLUMNS,
            Column(title="verdict", align="left", is_spare=True),
        ),
        rows=tuple(
            (
                Cell(text=one.variant, detail="" if one is base else changes_text(one)),
                _against(one.idle, base.idle if one is not base else None, bytes_text),
                _against(one.peak, base.peak if one is not base else None, bytes_text),
                *_cost_cells(one, base),
                _verdict_cell(one, base, verdicts.get(one.run_id), is_on_front=at in front),
            )
            for at, one in enumerate(figures)
        ),
        notes=notes,
    )


def _stored_table(figures: Sequence[VariantFigures]) -> Table:
    return Table(
        id="variants-stored-table",
        title="What each variant stores, and the peak while it loads",
        columns=(
            Column(title="variant", align="left"),
            Column(title="weights"),
            Column(title="KV of a token"),
            Column(title="peak while loading"),
        ),
        rows=tuple(
            (
                Cell(text=one.variant),
                Cell(text=bytes_text(one.weights_bytes)),
                Cell(text=bytes_text(one.kv_bytes_per_token)),
                Cell(text=bytes_text(one.load_peak_bytes)),
            )
            for one in figures
        ),
    )


def _cost_cells(one: VariantFigures, base: VariantFigures) -> tuple[Cell, ...]:
    is_base = one is base
    return (
        _of_batch(one, base, _against(one.decode, None if is_base else base.decode, seconds_text)),
        _against(one.prompt, None if is_base else base.prompt, seconds_text),
        _of_batch(one, base, _against(one.batch, None if is_base else base.batch, seconds_text)),
        _quality_cell(one),
    )


def _of_batch(one: VariantFigures, base: VariantFigures, cell: Cell) -> Cell:
    """A variant that did not run the batch says why."""
    if one.decode_requests is None and one.requests_at_once < base.requests_at_once:
        return Cell(text="not run", detail=f"at most\n{one.requests_at_once:,} at once")
    return cell


def _quality_cell(one: VariantFigures) -> Cell:
    if one.quality is None:
        return _MEASURED
    same = f"{percent_text(one.quality.top1_ratio.value, places=1)} same top"
    whose = "" if one.is_quality_own else "\nas its like"
    ratio = one.quality.perplexity_ratio.value
    return Cell(text=percent_text(ratio - 1, places=2, signed=True), detail=f"{same}{whose}")


def _against(spread: Spread | None, base: Spread | None, text: Text) -> Cell:
    """The figure, and below it its change against the base, and how far it may be off."""
    if spread is None:
        return _MEASURED
    parts = [ratio_text(spread.value, base.value)] if base is not None and base.value else []
    reach = reach_of(spread) / spread.value if spread.value else 0.0
    parts.append(f"±{percent_text(reach, places=1)}, n {spread.n:,}")
    return Cell(text=text(spread.value), detail="\n".join(parts))


def _verdict_cell(
    one: VariantFigures, base: VariantFigures, candidate: Candidate | None, *, is_on_front: bool
) -> Cell:
    beaten = "not beaten" if is_on_front else "beaten by another"
    if one is base:
        return Cell(text="the base", detail=beaten)
    if candidate is None:
        return Cell(text=NOTHING.text, detail=beaten, tone="muted")
    tone: Tone = "good" if candidate.verdict == "within" else "plain"
    return Cell(text=VERDICTS[candidate.verdict], detail=beaten, tone=tone)


def _notes(profiles: Sequence[RunSummary], figures: Sequence[VariantFigures]) -> tuple[str, ...]:
    step = next((one for one in figures if one.decode_requests), None)
    alone = next((one for one in figures if one.prompt_tokens), None)
    longest = {one.variant_facts.longest_tokens for one in profiles if one.variant_facts} - {None}
    notes = [
        "Below each figure: its change against the base, how far it may be off, and n. Of a peak and "
        "of a whole batch there is one measurement; they may be off by as much as idle memory, and "
        "times, varied between fresh processes.",
    ]
    loading = [
        one.variant
        for one in figures
        if one.place == "cpu" and one.peak and one.peak.value <= (one.load_peak_bytes or 0)
    ]
    if loading:
        notes.append(f"The peak is that of loading: {', '.join(loading)}.")
    if step is not None:
        notes.append(
            f"decode step: median over steps in which {step.decode_requests} requests decode; whole "
            "batch: the time of those requests from their sending on, prompts included."
        )
    if alone is not None:
        notes.append(
            f"first token alone: median over fresh processes, a prompt of {alone.prompt_tokens:,} "
            "tokens, after the warm-up."
        )
    if any(one.quality for one in figures):
        notes.append(
            "perplexity: against the same model in fp32, and the share of positions at which the "
            "most likely token is the same; “as its like”: scored with a variant of the same weights "
            "and KV."
        )
    if any(one.quality is None for one in figures):
        notes.append("Where quality is not measured, what a variant costs in answers is unknown.")
    notes.append(
        "beaten: another variant is better beyond the spread in peak, latency or quality, and "
        "worse in none of them."
    )
    notes += [
        f"No prompt was longer than {tokens:,} tokens (--longest): peaks of longer requests are not "
        "in these figures."
        for tokens in sorted(one for one in longest if one is not None)
    ]
    return tuple(notes)


# --- charts and the stack --------------------------------------------------------------------


def _front_chart(figures: Sequence[VariantFigures], front: Sequence[int]) -> VariantFront | None:
    is_step = any(one.decode is not None for one in figures)
    points = []
    for at, one in enumerate(figures):
        latency = one.decode if is_step else one.prompt
        if latency is None or one.peak is None:
            continue
        points.append(
            VariantPoint(
                name=one.variant,
                latency_s=latency.value,
                peak_bytes=one.peak.value,
                peak_reach_bytes=reach_of(one.peak),
                quality=quality_text(one),
                is_quality_known=one.quality is not None,
                is_on_front=at in front,
            )
        )
    if not points:
        return None
    left = len(figures) - len(points)
    return VariantFront(
        id="variants-front",
        title="Peak memory against latency",
        caption="Lower and further left is better. Open circles: quality was not measured. Whether "
        "another variant beats one is decided by peak, both latencies and quality, beyond their "
        "spreads; the lines are the spread of the peak."
        + (f" Without a latency, and not drawn: {left}." if left else ""),
        x_title="decode step" if is_step else "first token alone",
        points=tuple(points),
    )


def _stack_blocks(steps: Sequence[StackStep], base: VariantFigures) -> tuple[Block, ...]:
    if not steps:
        return ()
    table = Table(
        id="stack-table",
        title="The stack, each step measured with all below it",
        columns=(
            Column(title="step", align="left"),
            Column(title="idle", is_spare=True),
            Column(title="change", is_spare=True),
            Column(title="peak"),
            Column(title="change"),
            *_COST_COLUMNS,
        ),
        rows=tuple(_stack_row(step, base) for step in steps),
        notes=(
            "Changes are against the step below, between two measurements. Nothing is summed: what "
            "two techniques save together need not be what each saves alone.",
        ),
    )
    bars = tuple(
        WaterfallBar(
            name=step.figures.variant,
            idle_bytes=step.figures.idle.value if step.figures.idle else None,
            peak_bytes=step.figures.peak.value,
            change_bytes=step.peak_change_bytes,
        )
        for step in steps
        if step.figures.peak is not None
    )
    chart = StackWaterfall(
        id="stack-waterfall",
        title="The stack from the base up",
        caption="Each bar ends at a peak that was measured. A step whose step below was not "
        "measured starts from zero.",
        bars=bars,
    )
    return (*((chart,) if bars else ()), table)


def _stack_row(step: StackStep, base: VariantFigures) -> tuple[Cell, ...]:
    one = step.figures
    return (
        Cell(text=one.variant, detail=changes_text(one) if step.number else ""),
        _value_cell(one.idle),
        _change_cell(step.idle_change_bytes, one.idle),
        _value_cell(one.peak),
        _change_cell(step.peak_change_bytes, one.peak),
        *_cost_cells(one, base if step.number else one),
    )


def _value_cell(spread: Spread | None) -> Cell:
    return _MEASURED if spread is None else Cell(text=bytes_text(spread.value))


def _change_cell(change_bytes: float | None, spread: Spread | None) -> Cell:
    if change_bytes is None or spread is None:
        return NOTHING
    sign = "−" if change_bytes < 0 else "+" if change_bytes > 0 else ""
    before = spread.value - change_bytes
    detail = ratio_text(spread.value, before) if before else ""
    return Cell(text=f"{sign}{bytes_text(abs(change_bytes))}", detail=detail)
