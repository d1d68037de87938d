"""What a variant's answers cost, where they are no longer those of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memplan.records import Finding, Recording

_FEWEST_SAME_RATIO = 0.90
_MOST_PERPLEXITY_RATIO = 1.05


def _quality_lost(recording: Recording) -> Iterator[Finding]:
    quality = recording.quality
    if quality is None:
        return
    same = quality.top1_same / quality.tokens
    ratio = quality.perplexity / quality.reference_perplexity
    if same < _FEWEST_SAME_RATIO or ratio > _MOST_PERPLEXITY_RATIO:
        yield Finding(
            code="quality_lost",
            text=f"Against the same model in fp32 the most likely next token is the same at {same:.1%} "
            f"of {quality.tokens:,} positions (at least {_FEWEST_SAME_RATIO:.0%} is sought), and the "
            f"perplexity is {ratio - 1:+.1%} off (at most {_MOST_PERPLEXITY_RATIO - 1:+.0%}): what "
            "this variant saves, it pays for in answers.",
            hint="Take a form of more bits, for some modules (weights_by_module) or for KV, or look "
            "with --prompts whether your own prompts suffer as well.",
        )


RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (_quality_lost,)
