"""What profiles showed: what one request adds alone, and how memory grows along the ladder."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.report.pieces import Cell, Column, Section, Table
from memplan.report.series import Ladder, batch_points_of, length_points_of
from memplan.report.wording import DASH, range_text, ratio_text, seconds_cell
from memplan.stats.summary import Rung, RunSummary, SoloCost
from memplan.units import bytes_text


def profile_sections(profiles: Sequence[RunSummary]) -> tuple[Section, ...]:
    """All profiles on the page at once: a variant only says something beside another."""
    sections = (_solo_section(profiles), _ladder_section(profiles), _rungs_section(profiles))
    return tuple(section for section in sections if section.blocks)


def _solo_section(profiles: Sequence[RunSummary]) -> Section:
    rows = tuple(
        _solo_row(summary.variant if number == 0 else "", solo)
        for summary in profiles
        for number, solo in enumerate(summary.solo)
    )
    table = Table(
        id="solo-table",
        title="What one request adds when it runs alone",
        columns=(
            Column(title="variant", align="left"),
            Column(title="class", align="left"),
            Column(title="tokens in + out"),
            Column(title="n"),
            Column(title="added"),
            Column(title="KV by formula"),
            Column(title="beyond formula"),
        ),
        rows=rows,
        notes=(
            "Added is the process's peak less its idle memory, in a fresh process: the median of "
            f"n runs, with the smallest{DASH}largest below it.",
        ),
    )
    return Section(id="solo", title="One request alone", blocks=(table,) if rows else ())


def _solo_row(variant: str, solo: SoloCost) -> tuple[Cell, ...]:
    beyond = solo.median_bytes - solo.kv_bytes
    place = "" if solo.place == "cpu" else f" ({solo.place.upper()})"
    return (
        Cell(text=variant),
        Cell(text=f"{solo.class_name}{place}"),
        Cell(text=f"{solo.input_tokens:,} + {solo.output_tokens:,}"),
        Cell(text=f"{solo.n:,}"),
        Cell(
            text=bytes_text(solo.median_bytes),
            detail=range_text(solo.min_bytes, solo.max_bytes, bytes_text),
        ),
        Cell(text=bytes_text(solo.kv_bytes)),
        Cell(text=bytes_text(beyond), detail=ratio_text(solo.median_bytes, solo.kv_bytes)),
    )


def _ladder_section(profiles: Sequence[RunSummary]) -> Section:
    lengths = tuple((s.variant, length_points_of(s.rungs)) for s in profiles)
    batches = tuple((s.variant, batch_points_of(s.rungs)) for s in profiles)
    caption = (
        "Points are the measured growth over idle; the dashed line is the KV formula alone. The "
        "distance between them is what a formula leaves out."
    )
    ladders = (
        Ladder(
            id="ladder-length",
            title="One request: measured bytes against its length",
            caption=caption,
            x_title="tokens of the request",
            runs=tuple((name, points) for name, points in lengths if points),
        ),
        Ladder(
            id="ladder-batch",
            title="Several requests at once",
            caption=caption,
            x_title="requests in flight",
            runs=tuple((name, points) for name, points in batches if points),
        ),
    )
    return Section(
        id="ladder",
        title="How memory grows",
        blocks=tuple(ladder for ladder in ladders if ladder.runs),
        in_terminal=False,
    )


def _rungs_section(profiles: Sequence[RunSummary]) -> Section:
    rows = tuple(
        _rung_row(summary.variant if number == 0 else "", rung)
        for summary in profiles
        for number, rung in enumerate(summary.rungs)
    )
    table = Table(
        id="rungs-table",
        title="Every step of the ladder, in the order it ran",
        columns=(
            Column(title="variant", align="left"),
            Column(title="step", align="left"),
            Column(title="requests"),
            Column(title="tokens each"),
            Column(title="idle", is_spare=True),
            Column(title="peak"),
            Column(title="added"),
            Column(title="KV by formula", is_spare=True),
            Column(title="E2E"),
        ),
        rows=rows,
    )
    return Section(id="rungs", title="The ladder", blocks=(table,) if rows else ())


def _rung_row(variant: str, rung: Rung) -> tuple[Cell, ...]:
    place = "" if rung.place == "cpu" else f" ({rung.place.upper()})"
    return (
        Cell(text=variant),
        Cell(text=f"{rung.wave}{place}"),
        Cell(text=f"{rung.requests:,}"),
        Cell(text=f"{rung.tokens_per_request:,}"),
        Cell(text=bytes_text(rung.idle_bytes)),
        Cell(text=bytes_text(rung.peak_bytes)),
        Cell(text=bytes_text(rung.peak_bytes - rung.idle_bytes)),
        Cell(text=bytes_text(rung.kv_bytes)),
        seconds_cell(rung.e2e_s),
    )
