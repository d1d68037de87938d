"""How a measured value becomes a table cell: the value, its interval, and what is not known.

"withheld" is a percentile the run cannot support and names the finding that says why; "unknown" was
never measured. Neither is ever drawn as zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from memplan.records import Finding
from memplan.report.pieces import Cell, Column
from memplan.stats.percentiles import FEWEST_EXCURSIONS
from memplan.stats.summary import IntervalBasis, Percentiles, Quantile
from memplan.units import bytes_text, seconds_text

Text = Callable[[float | None], str]

DASH = "–"
NOTHING = Cell(text=DASH, tone="muted")
PERCENTILE_COLUMNS = (
    Column(title="n"),
    Column(title="p50"),
    Column(title="p95"),
    Column(title="p99"),
    Column(title="largest"),
)


BASES: dict[IntervalBasis, str] = {
    "ranks": "order statistics (requests as independent units)",
    "blocks": "blocks of time",
    "replays": "replays (Student's t)",
}


def percentile_cells(
    percentiles: Percentiles, text: Text, findings: Sequence[Finding], class_name: str
) -> tuple[Cell, ...]:
    """The cells under PERCENTILE_COLUMNS."""
    return (
        Cell(text=f"{percentiles.n:,}"),
        quantile_cell(percentiles.p50, text, findings, class_name),
        quantile_cell(percentiles.p95, text, findings, class_name),
        _rare_cell(percentiles, text, findings, class_name),
        Cell(text=text(percentiles.peak)),
    )


def _rare_cell(
    percentiles: Percentiles, text: Text, findings: Sequence[Finding], class_name: str
) -> Cell:
    """The p99, with how often independently it was exceeded, where that decides what it is worth."""
    cell = quantile_cell(percentiles.p99, text, findings, class_name)
    if percentiles.excursions is None:
        return cell
    plural = "" if percentiles.excursions == 1 else "s"
    counted = f"{percentiles.excursions:,} excursion{plural}"
    return replace(cell, detail=f"{cell.detail}, {counted}" if cell.detail else counted)


def quantile_cell(
    quantile: Quantile, text: Text, findings: Sequence[Finding], class_name: str
) -> Cell:
    if quantile.value is None:
        code = withheld_code(quantile, findings, class_name)
        return Cell(text="withheld", detail=f"see {code}" if code else "", tone="muted")
    return Cell(text=text(quantile.value), detail=interval_text(quantile, text))


def interval_text(quantile: Quantile, text: Text) -> str:
    """``161–180 MiB``; an open side is said in words."""
    low, high = quantile.low, quantile.high
    if low is None and high is None:
        if quantile.replays_low is None or quantile.replays_high is None:
            return "no 95 % bounds"
        return f"replays {range_text(quantile.replays_low, quantile.replays_high, text)}"
    if low is None:
        return f"at most {text(high)}"
    if high is None:
        return f"at least {text(low)}"
    return range_text(low, high, text)


def range_text(low: float, high: float, text: Text) -> str:
    """Both ends, with a shared unit written once."""
    low_text, high_text = text(low), text(high)
    low_number, _, low_unit = low_text.partition(" ")
    if low_unit and high_text.endswith(f" {low_unit}"):
        low_text = low_number
    return f"{low_text}{DASH}{high_text}"


def withheld_code(quantile: Quantile, findings: Sequence[Finding], class_name: str) -> str | None:
    """The finding that explains a withheld percentile: the one that names the class, if any."""
    label = f"p{quantile.p * 100:g}"
    about = [one for one in findings if "withheld" in one.code + one.text or label in one.text]
    named = [one for one in about if re.search(rf"\b{re.escape(class_name)}\b", one.text)]
    return next((one.code for one in (*named, *about)), None)


def method_notes(measured: Sequence[tuple[str, Percentiles]]) -> tuple[str, ...]:
    """What every percentile table must say under itself; each method once, by what it is for."""
    methods = dict.fromkeys((name, one.method) for name, one in measured if one.n)
    return (
        *(f"{name}: {method}." for name, method in methods),
        "n counts requests of one replay. The second line is the 95 % interval; “at least” means "
        "that the run holds no upper bound. Largest is an observation of this run, not a statistic.",
        *_interval_notes([one for _, one in measured]),
    )


def _interval_notes(measured: Sequence[Percentiles]) -> Iterator[str]:
    """What the intervals of one table rest on, and what they leave out."""
    replays = max((one.replays for one in measured), default=1)
    bases = {
        quantile.basis
        for one in measured
        for quantile in (one.p50, one.p95, one.p99)
        if quantile.basis is not None
    }
    if bases:
        told = " or ".join(BASES[basis] for basis in BASES if basis in bases)
        yield f"The widest interval was that of {told}; the JSON document says which for each figure."
    if replays == 1:
        yield (
            "One replay: what differs from run to run is in no interval, which are too narrow by "
            "that (--repeat 5 would show it)."
        )
    else:
        yield (
            f"{replays} replays of one trace: “replays a–b” is what they alone would say, of this "
            "trace and not of traffic like it, and is not a 95 % interval of the latter."
        )
    if any(one.excursions is not None for one in measured):
        yield (
            "Excursions: how often one replay went above its p99 independently, which is printed "
            f"from {FEWEST_EXCURSIONS} on."
        )


def count_text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def ratio_text(value: float, base: float) -> str:
    """``−42.0 %`` against a base; empty where there is nothing to compare with."""
    if value == base:
        return "same"
    return f"{(value / base - 1) * 100:+.1f} %".replace("-", "−") if base else ""


def bytes_cell(value_bytes: float | None) -> Cell:
    return Cell(text=bytes_text(value_bytes), tone="muted" if value_bytes is None else "plain")


def seconds_cell(value_s: float | None) -> Cell:
    return Cell(text=seconds_text(value_s), tone="muted" if value_s is None else "plain")
