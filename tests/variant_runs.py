"""Profiles of variants, made by hand: what each held and how fast it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builders import quality as a_quality
from builders import recording

from memplan.records import Quality
from memplan.stats.quality import Estimate, QualityFigures
from memplan.stats.summarise import summarise
from memplan.stats.summary import Rung, RunSummary, SoloCost, Timed, VariantFacts
from memplan.units import MIB

SETTINGS = {"weights": "bf16", "kv": "bf16", "allocator": "system", "max_requests": 4}
EMPTY = summarise(recording())


def timed(median_s: float, *, spread: float = 0.01, n: int = 3) -> Timed:
    return Timed(
        n=n, median_s=median_s, low_s=median_s * (1 - spread), high_s=median_s * (1 + spread)
    )


def batch(requests: int, **changes: Any) -> Rung:
    made = Rung(
        wave=f"batch-{requests}",
        requests=requests,
        tokens_per_request=272,
        idle_bytes=400 * MIB,
        peak_bytes=500 * MIB,
        kv_bytes=1000,
        e2e_s=2.0,
        place="cpu",
        completed=requests,
        output_tokens_per_s=16 * requests / 2.0,
        decode_step=timed(0.03, n=9),
    )
    return replace(made, **changes)


def solo(class_name: str = "long", input_tokens: int = 6000, **changes: Any) -> SoloCost:
    made = SoloCost(
        class_name=class_name,
        input_tokens=input_tokens,
        output_tokens=64,
        n=3,
        median_bytes=10,
        min_bytes=9,
        max_bytes=11,
        kv_bytes=8,
        place="cpu",
        ttft=timed(5.0),
        tpot=timed(0.03),
    )
    return replace(made, **changes)


def figures_of(scored: Quality) -> QualityFigures:
    """Without the bootstrap of the real ones, which takes its time: 0.2 % to either side."""
    ratio, same = scored.perplexity / scored.reference_perplexity, scored.top1_same / scored.tokens
    return QualityFigures(
        top1_ratio=Estimate(value=same, low=same, high=same),
        kl_mean=Estimate(value=scored.kl_mean, low=None, high=None),
        perplexity_ratio=Estimate(value=ratio, low=ratio * 0.998, high=ratio * 1.002),
        same_token_ratio=None,
        block_tokens=10,
    )


def profile(
    variant: str = "base",
    *,
    peak_mib: float = 500,
    slower: float = 1.0,
    quality: dict[str, Any] | None = None,
    step: int | None = None,
    idle_reach_mib: float = 1,
    requests: int = 4,
    **settings: Any,
) -> RunSummary:
    """``slower``: a factor on all times; ``quality``: what of its figures is not the builder's."""
    scored = None if quality is None else a_quality(**quality)
    rungs = [batch(n) for n in (1, 2, 4) if n <= requests]
    return replace(
        EMPTY,
        kind="profile",
        run_id=f"run-{variant}",
        variant=variant,
        peak_bytes=round(peak_mib * MIB),
        gpu_peak_bytes=None,
        rungs=tuple(
            replace(one, e2e_s=2.0 * slower, decode_step=timed(0.03 * slower, n=9)) for one in rungs
        ),
        solo=(
            solo("short", 300, ttft=timed(0.2 * slower)),
            solo(ttft=timed(5.0 * slower), tpot=timed(0.03 * slower)),
        ),
        quality=scored,
        quality_figures=None if scored is None else figures_of(scored),
        variant_facts=VariantFacts(
            settings={**SETTINGS, **settings},
            stack_step=step,
            weights_bytes=250 * MIB,
            kv_bytes_per_token=23_040,
            idle_bytes=(peak_mib - 100) * MIB,
            idle_low_bytes=(peak_mib - 100) * MIB,
            idle_high_bytes=(peak_mib - 100 + idle_reach_mib) * MIB,
            idle_n=7,
            drift_bound_bytes=MIB // 2,
        ),
    )
