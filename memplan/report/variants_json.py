"""The comparison of a profile's variants as JSON: raw bytes, seconds and ratios, null for unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memplan.report.variants_wording import first_text
from memplan.stats.first_technique import Candidate, FirstTechnique, first_technique
from memplan.stats.pareto import front_of
from memplan.stats.quality import Estimate
from memplan.stats.summary import RunSummary, Timed
from memplan.stats.variants import Spread, StackStep, VariantFigures, stack_of, variant_figures

Json = dict[str, Any]


def comparison_json(profiles: Sequence[RunSummary]) -> Json | None:
    """None for one variant alone."""
    figures = variant_figures(profiles)
    if len(figures) < 2:
        return None
    found = first_technique(figures)
    front = front_of(figures)
    candidates = {one.figures.run_id: one for one in found.candidates} if found else {}
    return {
        "variants": [
            {**_variant(one, candidates.get(one.run_id)), "is_beaten": at not in front}
            for at, one in enumerate(figures)
        ],
        "stack": [_step(step) for step in stack_of(figures)],
        "first": _first(found) if found else None,
    }


def timed_json(timed: Timed | None) -> Json | None:
    if timed is None:
        return None
    return {
        "n": timed.n,
        "median_s": timed.median_s,
        "low_s": timed.low_s,
        "high_s": timed.high_s,
    }


def _variant(one: VariantFigures, candidate: Candidate | None) -> Json:
    return {
        "run_id": one.run_id,
        "variant": one.variant,
        "changes": dict(one.changes),
        "place": one.place,
        "idle_bytes": _spread(one.idle),
        "peak_bytes": _spread(one.peak),
        "load_peak_bytes": one.load_peak_bytes,
        "weights_bytes": one.weights_bytes,
        "kv_bytes_per_token": one.kv_bytes_per_token,
        "requests_at_once": one.requests_at_once,
        "longest_tokens": one.longest_tokens,
        "decode_step_s": _spread(one.decode),
        "decode_requests": one.decode_requests,
        "first_token_s": _spread(one.prompt),
        "first_token_tokens": one.prompt_tokens,
        "batch_s": _spread(one.batch),
        "output_tokens_per_s": one.output_tokens_per_s,
        "has_own_numbers": one.has_own_numbers,
        "perplexity_ratio": _estimate(one.quality.perplexity_ratio) if one.quality else None,
        "top1_ratio": _estimate(one.quality.top1_ratio) if one.quality else None,
        "quality_tokens": one.quality_tokens,
        "is_quality_own": one.is_quality_own,
        "saved_bytes": candidate.saved_bytes if candidate else None,
        "slower_ratio": candidate.slower_ratio if candidate else None,
        "slower_in": candidate.slower_in if candidate else None,
        "cost": candidate.cost if candidate else None,
        "verdict": candidate.verdict if candidate else None,
    }


def _spread(spread: Spread | None) -> Json | None:
    if spread is None:
        return None
    return {"value": spread.value, "low": spread.low, "high": spread.high, "n": spread.n}


def _estimate(estimate: Estimate) -> Json:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _step(step: StackStep) -> Json:
    one = step.figures
    return {
        "step": step.number,
        "run_id": one.run_id,
        "variant": one.variant,
        "idle_bytes": one.idle.value if one.idle else None,
        "peak_bytes": one.peak.value if one.peak else None,
        "idle_change_bytes": step.idle_change_bytes,
        "peak_change_bytes": step.peak_change_bytes,
    }


def _first(found: FirstTechnique) -> Json:
    limits = found.tolerances
    return {
        "variant": found.first.figures.variant if found.first else None,
        "run_id": found.first.figures.run_id if found.first else None,
        "saves_more_with_unknown_quality": (
            found.larger_unknown.figures.variant if found.larger_unknown else None
        ),
        "text": first_text(found),
        "tolerances": {
            "slower_ratio": limits.slower_ratio,
            "perplexity_ratio": limits.perplexity_ratio,
            "top1_ratio": limits.top1_ratio,
        },
    }
