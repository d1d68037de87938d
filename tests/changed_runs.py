"""Summaries of runs of one class whose figures are given, for what compares two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from builders import recording

from memplan.stats.percentiles import of_values
from memplan.stats.summarise import summarise
from memplan.stats.summary import ClassSummary, PlaceMemory, RunSummary

EMPTY = summarise(recording())


def summary_of_values(
    values: Sequence[float], *, name: str = "all", peak_bytes: int | None = 1000
) -> RunSummary:
    """Every figure of the class, memory and time alike, has these values, one a request."""
    found = of_values(values, method="by hand")
    made = ClassSummary(
        name=name,
        rule="every request",
        requests=len(values),
        completed=len(values),
        failed=0,
        rejected=0,
        cancelled=0,
        unfinished=0,
        not_sent=0,
        reasons={},
        input_tokens=found,
        output_tokens=found,
        cpu=PlaceMemory(co_resident=found, co_resident_by_request=found, attributed=found),
        gpu=None,
        ttft_s=found,
        tpot_s=found,
        e2e_s=found,
    )
    return replace(EMPTY, classes=(made,), peak_bytes=peak_bytes)
