"""The quality of a variant's answers as JSON keys."""

from __future__ import annotations

from typing import Any

from memplan.stats.quality import Estimate
from memplan.stats.summary import RunSummary


def quality_json(summary: RunSummary) -> dict[str, Any] | None:
    quality, figures = summary.quality, summary.quality_figures
    if quality is None or figures is None:
        return None
    return {
        "text": quality.text,
        "text_sha256": quality.text_sha256,
        "reference": quality.reference,
        "tokens": quality.tokens,
        "top1_ratio": _estimate(figures.top1_ratio),
        "kl_mean": _estimate(figures.kl_mean),
        "kl_p99": quality.kl_p99,
        "perplexity": quality.perplexity,
        "reference_perplexity": quality.reference_perplexity,
        "perplexity_ratio": _estimate(figures.perplexity_ratio),
        "block_tokens": figures.block_tokens,
        "answers": quality.answers,
        "answer_tokens": quality.answer_tokens,
        "same_answers": quality.same_answers,
        "same_token_ratio": figures.same_token_ratio,
    }


def _estimate(found: Estimate) -> dict[str, float | None]:
    return {"value": found.value, "low": found.low, "high": found.high}
