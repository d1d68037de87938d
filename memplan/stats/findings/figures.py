"""What the figures themselves leave open: percentiles withheld, bytes that no source explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.records import Finding
from memplan.stats.kv_slope import KV_SLOPE_BAND
from memplan.stats.percentiles import FEWEST_EXCURSIONS, fewest_for
from memplan.stats.reference_states import REFUSE_RATIO, WARN_RATIO
from memplan.stats.summary import (
    NOT_THE_TRACE,
    Attribution,
    ClassSummary,
    Fidelity,
    KvSlope,
    Percentiles,
    Quantile,
)

_UNEXPLAINED_RATIO = 0.02


def withheld(classes: tuple[ClassSummary, ...]) -> Iterator[Finding]:
    for summary in classes:
        figures: Mapping[str, Percentiles] = {
            "co-resident memory": summary.cpu.co_resident,
            "co-resident memory by request": summary.cpu.co_resident_by_request,
            "attributed memory": summary.cpu.attributed,
            **_gpu_figures(summary),
            "TTFT": summary.ttft_s,
            "TPOT": summary.tpot_s,
            "end-to-end latency": summary.e2e_s,
        }
        missing: dict[str, list[str]] = {}
        for name, figure in figures.items():
            levels = [
                _lack(figure, quantile)
                for quantile in (figure.p50, figure.p95, figure.p99)
                if quantile.value is None
            ]
            if levels:
                missing.setdefault(", ".join(levels), []).append(name)
        if missing:
            told = "; ".join(f"{levels} of {', '.join(n)}" for levels, n in missing.items())
            yield Finding(
                code="percentile_withheld",
                text=f"Class {summary.name}: the run is too short for {told}.",
                hint="Replay more of the trace (a larger --limit): --repeat adds no traffic. "
                "The largest value seen is shown.",
            )


def _lack(figure: Percentiles, quantile: Quantile) -> str:
    """``p99 (n=60, needs 368)`` or ``p99 (4 excursions beyond it, needs 10)``."""
    is_rare = (
        figure.excursions is not None
        and figure.n >= fewest_for(figure.p95.p)
        and quantile is figure.p99
    )
    if is_rare:
        lack = f"{figure.excursions} excursions beyond it, needs {FEWEST_EXCURSIONS}"
    elif figure.excursions is not None and quantile.p > figure.p95.p:
        lack = f"n={figure.n}, needs {fewest_for(figure.p95.p)}"
    else:
        lack = f"n={figure.n}, needs {fewest_for(quantile.p)}"
    return f"p{quantile.p * 100:.0f} ({lack})"


def _gpu_figures(summary: ClassSummary) -> Mapping[str, Percentiles]:
    if summary.gpu is None:
        return {}
    return {
        "co-resident GPU memory": summary.gpu.co_resident,
        "co-resident GPU memory by request": summary.gpu.co_resident_by_request,
        "attributed GPU memory": summary.gpu.attributed,
    }


def unexplained(attributions: tuple[Attribution, ...]) -> Iterator[Finding]:
    for attribution in attributions:
        ratio = attribution.unexplained_bytes / attribution.total_bytes
        if abs(ratio) > _UNEXPLAINED_RATIO:
            yield Finding(
                code="attribution_open",
                text=f"{ratio:+.1%} of the {attribution.place} peak ({attribution.unexplained_bytes:,} "
                "bytes) is explained by no source.",
                hint="Compare with the `runtime` and `allocator slack` parts; memory that a library "
                "mapped for itself after the warm-up looks like this.",
            )


def kv_slope_off(found: KvSlope | None) -> Iterator[Finding]:
    """Silent where too little KV was given back to say."""
    low, high = KV_SLOPE_BAND
    if found is not None and not low <= found.slope <= high:
        yield Finding(
            code="kv_slope_off",
            text=f"For each byte of KV cache given back, resident memory fell by {found.slope:.2f} "
            f"bytes (95 %: {found.low:.2f} to {found.high:.2f}, {found.n} times) and not by {low:g} "
            f"to {high:g}: attributed memory is not what a request really holds.",
            hint="Look at allocator slack: an allocator that keeps freed memory hides the KV in it.",
        )


def states_apart(fidelity: Fidelity | None) -> Iterator[Finding]:
    """What was in flight is not what the reference had in flight."""
    fit = fidelity.against_reference if fidelity is not None else None
    if fit is None:
        return
    far = {
        one: one.w1_ratio
        for one in (fit.running, fit.kv_tokens)
        if one is not None and one.w1_ratio is not None and one.w1_ratio > WARN_RATIO
    }
    if not far:
        return
    told = " and ".join(
        f"{one.name} by {ratio:.2f} of their mean ({one.reached.mean:,.4g} on average where the "
        f"reference has {one.reference.mean:,.4g})"
        for one, ratio in far.items()
    )
    is_refused = max(far.values()) > REFUSE_RATIO
    proves = (
        "The peaks and percentiles are those of this replay, and not of the trace."
        if is_refused
        else "Percentiles of resident memory may be off by as much."
    )
    yield Finding(
        code=NOT_THE_TRACE if is_refused else "states_apart",
        text=f"What was in flight is away from the reference: {told}. {proves}",
        hint="Raise --dilation, so that the engine keeps up; --pace holds answers to the reference.",
    )
