"""What the figures themselves leave open: percentiles withheld, bytes that no source explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.records import Finding
from memplan.stats.percentiles import fewest_for
from memplan.stats.summary import Attribution, ClassSummary, Percentiles

_UNEXPLAINED_RATIO = 0.02


def withheld(classes: tuple[ClassSummary, ...]) -> Iterator[Finding]:
    for summary in classes:
        figures: Mapping[str, Percentiles] = {
            "co-resident memory": summary.cpu.co_resident,
            "attributed memory": summary.cpu.attributed,
            **_gpu_figures(summary),
            "TTFT": summary.ttft_s,
            "TPOT": summary.tpot_s,
            "end-to-end latency": summary.e2e_s,
        }
        missing: dict[str, list[str]] = {}
        for name, figure in figures.items():
            levels = [
                f"p{quantile.p * 100:.0f} (n={figure.n}, needs {fewest_for(quantile.p)})"
                for quantile in (figure.p50, figure.p95, figure.p99)
                if quantile.value is None
            ]
            if levels:
                missing.setdefault(", ".join(levels), []).append(name)
        if missing:
            told = "; ".join(f"{levels} of {', '.join(n)}" for levels, n in missing.items())
            yield Finding(
                code="percentile_withheld",
                text=f"Class {summary.name}: too few requests for {told}.",
                hint="Replay more of the trace (a larger --limit); the largest value seen is shown.",
            )


def _gpu_figures(summary: ClassSummary) -> Mapping[str, Percentiles]:
    if summary.gpu is None:
        return {}
    return {
        "co-resident GPU memory": summary.gpu.co_resident,
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
