"""What a variant's answers cost against the same model in fp32: measured once for all variants that
compute the same.

Beside the measuring wing, and outside every measured window: it scores in processes of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from memplan.records import Quality
from memplan.specs import Deployment
from memplan.workload.scored_text import ScoredText

if TYPE_CHECKING:  # what it needs is imported by whoever scores
    from memplan.engines.torch.quality import Reference, Scores

_DIGITS = 6
"""Significant ones of a position's figures, of which a run holds two for each position."""
Told = Callable[[int, int], bool]
"""(tokens done, of how many), of one variant or of the reference; False ends it."""


class QualityMeter:
    """Scores variants of one model over one text."""

    def __init__(self, text: ScoredText) -> None:
        self._text = text
        self._references: dict[str, Reference] = {}
        self._measured: dict[str, Quality] = {}

    @property
    def text_sha256(self) -> str:
        return self._text.sha256

    def quality_of(self, deployment: Deployment, told: Told) -> Quality | None:
        """None where whoever was told ended it. Raises EngineError, MachineError and InputError where
        it cannot be measured."""
        from memplan.engines.torch.quality import (  # noqa: PLC0415 - transformers' caches, only here
            StoppedError,
            score_reference,
            score_variant,
        )

        key = _what_answers(deployment)
        if key in self._measured:
            return self._measured[key]
        device = deployment.settings.device
        try:
            if device not in self._references:
                self._references[device] = score_reference(
                    deployment,
                    self._text.passages,
                    name=self._text.name,
                    are_prompts=self._text.are_prompts,
                    told=told,
                )
            scores = score_variant(deployment, self._references[device], told)
        except StoppedError:
            return None
        self._measured[key] = quality_of_scores(self._text, self._references[device], scores)
        return self._measured[key]

    def close(self) -> None:
        for reference in self._references.values():
            reference.logits.close()


@contextmanager
def quality_meter(text: ScoredText | None) -> Iterator[QualityMeter | None]:
    """None for no text: nothing is to be scored."""
    if text is None:
        yield None
        return
    meter = QualityMeter(text)
    try:
        yield meter
    finally:
        meter.close()


def quality_of_scores(text: ScoredText, reference: Reference, scores: Scores) -> Quality:
    count = len(scores.kl)
    kept = [
        _same_from_start(ours, theirs)
        for ours, theirs in zip(scores.answers, reference.answers, strict=True)
    ]
    length = max((len(one) for one in reference.answers), default=0)
    return Quality(
        text=text.name if reference.is_whole else f"part of {text.name}",
        text_sha256=text.sha256,
        reference="the same model with weights and KV in fp32, scored in the same way",
        tokens=count,
        perplexity=math.exp(math.fsum(scores.surprise) / count),
        reference_perplexity=math.exp(math.fsum(scores.reference_surprise) / count),
        top1_same=scores.top1_same,
        kl_mean=math.fsum(scores.kl) / count,
        kl_p99=sorted(scores.kl)[math.ceil(0.99 * count) - 1],
        answers=len(kept),
        answer_tokens=length,
        same_answers=sum(same == length for same in kept),
        same_tokens=sum(kept),
        kl_by_position=tuple(_short(value) for value in scores.kl),
        lost_by_position=tuple(_short(value) for value in scores.lost),
    )


def _what_answers(deployment: Deployment) -> str:
    """Two deployments of one model that are equal in it give equal answers."""
    settings = deployment.settings
    forms = list(settings.weights_by_module.items())  # their order decides
    kept = (
        settings.weights,
        forms,
        settings.kv_stored,
        settings.device,
        sorted(settings.env.items()),
    )
    return json.dumps(kept)


def _same_from_start(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((place for place, (a, b) in pairs if a != b), len(theirs))


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
