"""The variants of a profile beside each other: what each held, how fast it was, what it changed in
the model's answers; and the stack, step by step, as it was measured.

Times of two variants are only set against each other where both did the same work: the largest batch
of all that run as many requests at once as the base, and the longest request that all ran alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from memplan.stats.quality import QualityFigures
from memplan.stats.summary import Rung, RunSummary, SoloCost, Timed

BASE = "base"
_NUMBERS = ("weights", "weights_by_module", "kv", "adapters", "device", "env")
"""The settings that change what the model computes, or may. The others change where bytes lie and in
which order the work is done; an answer may then differ by the order of additions, and by no more."""
_BATCH = "batch-"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure, and how far another measurement of the same variant may be from it."""

    value: float
    low: float
    high: float
    n: int

    def is_below(self, other: Spread) -> bool:
        """Beyond both spreads."""
        return self.high < other.low


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFigures:
    """One run of one variant. Unknown is None."""

    run_id: str
    variant: str
    stack_step: int | None
    place: str
    """``cpu`` or ``gpu``: where the memory below is."""
    changes: Mapping[str, object]
    """Settings that are not the base's, with their values."""
    idle: Spread | None
    peak: Spread | None
    """As far as the idle memory of fresh processes varied, or by the drift of the kernel's mark."""
    load_peak_bytes: int | None
    weights_bytes: int | None
    kv_bytes_per_token: int | None
    solo: tuple[SoloCost, ...]
    requests_at_once: int
    """The largest batch of the ladder that completed."""
    longest_tokens: int
    """The longest request of the ladder that completed."""
    decode: Spread | None
    """Seconds of one step in which ``decode_requests`` decode. Steps of one process; its spread is
    also that of fresh processes, as the time per token of the request alone varied."""
    decode_requests: int | None
    """Of the batch that is compared; None where this variant did not run it."""
    prompt: Spread | None
    """Seconds to the first token of a request of ``prompt_tokens`` alone, in fresh processes."""
    prompt_tokens: int | None
    batch: Spread | None
    """Seconds of the whole batch of ``decode_requests``, prompts included: what reading prompts in
    smaller parts costs when there are many. Measured once, with the spread of fresh processes."""
    output_tokens_per_s: float | None
    """Of that batch."""
    numbers: str
    """Equal where the same numbers are computed."""
    has_own_numbers: bool
    """Others than the base's: then an answer may be another."""
    quality: QualityFigures | None
    """Where no variant of the same numbers was scored, None."""
    quality_tokens: int | None
    is_quality_own: bool
    """Scored in this very run."""

    def carries(self, other: VariantFigures) -> bool:
        """At least the requests at once and the longest request of the other."""
        return (
            self.requests_at_once >= other.requests_at_once
            and self.longest_tokens >= other.longest_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StackStep:
    """What was measured with a step and all below it, and its change against the step below."""

    number: int
    """0: the base."""
    figures: VariantFigures
    idle_change_bytes: float | None
    peak_change_bytes: float | None
    """None for the base, and where the step below was not measured."""


def variant_figures(summaries: Sequence[RunSummary]) -> tuple[VariantFigures, ...]:
    """One a profile, in the order given. Only profiles of one deployment say something together."""
    profiles = [one for one in summaries if one.kind == "profile"]
    if not profiles:
        return ()
    base = base_of(profiles)
    batch = _common_batch(profiles, base)
    alone = _common_alone(profiles)
    scored = {
        _numbers(one): (one.quality_figures, one.quality.tokens, one.run_id)
        for one in reversed(profiles)
        if one.quality is not None and one.quality_figures is not None
    }
    return tuple(_figures(one, base, batch, alone, scored) for one in profiles)


def base_of(profiles: Sequence[RunSummary]) -> RunSummary:
    """What the others are held against: the settings as they are, or the first."""
    return next((one for one in profiles if one.variant == BASE), profiles[0])


def stack_of(figures: Sequence[VariantFigures]) -> tuple[StackStep, ...]:
    """From the base up; of two runs of a step the later one. Empty without a stack."""
    base = next((one for one in figures if one.variant == BASE), None)
    measured = {one.stack_step: one for one in figures if one.stack_step is not None}
    if not measured:
        return ()
    if base is not None:
        measured[0] = base
    return tuple(_stack_step(number, measured) for number in sorted(measured))


def _stack_step(number: int, measured: Mapping[int, VariantFigures]) -> StackStep:
    here, below = measured[number], measured.get(number - 1)
    return StackStep(
        number=number,
        figures=here,
        idle_change_bytes=_change(below.idle, here.idle) if below else None,
        peak_change_bytes=_change(below.peak, here.peak) if below else None,
    )


def _change(before: Spread | None, after: Spread | None) -> float | None:
    return after.value - before.value if before is not None and after is not None else None


# --- figures ---------------------------------------------------------------------------------

_Batch = tuple[int, int]
"""Requests, and tokens of each."""
_Alone = tuple[str, int, int]
"""Class, prompt and output tokens."""


def _figures(
    one: RunSummary,
    base: RunSummary,
    batch: _Batch | None,
    alone: _Alone | None,
    scored: Mapping[str, tuple[QualityFigures, int, str]],
) -> VariantFigures:
    facts = one.variant_facts
    settings = facts.settings if facts else {}
    known = base.variant_facts.settings if base.variant_facts else {}
    rung = _rung_of(one, batch)
    solo = _solo_of(one, alone)
    quality, tokens, scored_in = _quality_of(one, scored)
    is_on_gpu = one.gpu_peak_bytes is not None
    whole = [rung for rung in one.rungs if rung.completed == rung.requests]
    return VariantFigures(
        run_id=one.run_id,
        variant=one.variant,
        stack_step=facts.stack_step if facts else None,
        place="gpu" if is_on_gpu else "cpu",
        changes={key: value for key, value in settings.items() if known.get(key) != value},
        idle=_idle(one),
        peak=_peak(one, one.gpu_peak_bytes if is_on_gpu else one.peak_bytes),
        load_peak_bytes=one.load_peak_bytes,
        weights_bytes=facts.weights_bytes if facts else None,
        kv_bytes_per_token=facts.kv_bytes_per_token if facts else None,
        solo=one.solo,
        requests_at_once=_requests_at_once(one),
        longest_tokens=max((rung.tokens_per_request for rung in whole), default=0),
        decode=_decode(rung, solo),
        decode_requests=batch[0] if batch and rung and rung.decode_step else None,
        prompt=_spread_of(solo.ttft) if solo and solo.ttft else None,
        prompt_tokens=alone[1] if alone and solo and solo.ttft else None,
        batch=_batch(rung, solo),
        output_tokens_per_s=rung.output_tokens_per_s if rung else None,
        numbers=_numbers(one),
        has_own_numbers=_numbers(one) != _numbers(base),
        quality=quality,
        quality_tokens=tokens,
        is_quality_own=scored_in == one.run_id,
    )


def _quality_of(
    one: RunSummary, scored: Mapping[str, tuple[QualityFigures, int, str]]
) -> tuple[QualityFigures | None, int | None, str | None]:
    """The same for all of the same numbers, so that no two of them are told apart by it."""
    return scored.get(_numbers(one), (None, None, None))


def _numbers(one: RunSummary) -> str:
    settings = one.variant_facts.settings if one.variant_facts else {}
    # An older recording names no settings: then nothing is known to be the same but itself.
    named = {key: settings.get(key) for key in _NUMBERS} if settings else {"run": one.run_id}
    return json.dumps(named)  # patterns over modules mean something in their order


def _idle(one: RunSummary) -> Spread | None:
    facts = one.variant_facts
    if facts is None or facts.idle_bytes is None:
        return None
    assert facts.idle_low_bytes is not None and facts.idle_high_bytes is not None
    return Spread(
        value=facts.idle_bytes,
        low=facts.idle_low_bytes,
        high=facts.idle_high_bytes,
        n=facts.idle_n,
    )


def _peak(one: RunSummary, peak_bytes: int | None) -> Spread | None:
    if peak_bytes is None:
        return None
    idle = _idle(one)
    # Fresh processes differ by their idle memory; one peak of each rung is all there is.
    reach = idle.high - idle.low if idle else 0.0
    reach = max(reach, one.variant_facts.drift_bound_bytes if one.variant_facts else 0)
    return Spread(value=peak_bytes, low=peak_bytes - reach, high=peak_bytes + reach, n=1)


def _common_batch(profiles: Sequence[RunSummary], base: RunSummary) -> _Batch | None:
    """The largest that all ran that run as many at once as the base, those without any left out."""
    most = _requests_at_once(base)
    ran = [
        {(rung.requests, rung.tokens_per_request) for rung in _batches(one) if rung.decode_step}
        for one in profiles
        if _requests_at_once(one) >= most
    ]
    return max(_common(ran), default=None)


def _requests_at_once(one: RunSummary) -> int:
    return max((rung.requests for rung in one.rungs if rung.completed == rung.requests), default=0)


def _common_alone(profiles: Sequence[RunSummary]) -> _Alone | None:
    """The one with the longest prompt that all ran that ran any."""
    ran = [
        {(cost.class_name, cost.input_tokens, cost.output_tokens) for cost in one.solo if cost.ttft}
        for one in profiles
    ]
    return max(_common(ran), key=lambda one: (one[1], one[2]), default=None)


def _common(ran: Sequence[set[T]]) -> set[T]:
    some = [one for one in ran if one]
    return set.intersection(*some) if some else set()


def _batches(one: RunSummary) -> Iterator[Rung]:
    return (rung for rung in one.rungs if rung.wave.startswith(_BATCH))


def _rung_of(one: RunSummary, batch: _Batch | None) -> Rung | None:
    found = (r for r in _batches(one) if (r.requests, r.tokens_per_request) == batch)
    return next(found, None)


def _solo_of(one: RunSummary, alone: _Alone | None) -> SoloCost | None:
    found = (c for c in one.solo if (c.class_name, c.input_tokens, c.output_tokens) == alone)
    return next(found, None)


def _decode(rung: Rung | None, solo: SoloCost | None) -> Spread | None:
    if rung is None or rung.decode_step is None:
        return None
    return _between_processes(_spread_of(rung.decode_step), solo.tpot if solo else None)


def _batch(rung: Rung | None, solo: SoloCost | None) -> Spread | None:
    if rung is None or rung.e2e_s is None or rung.completed != rung.requests:
        return None
    once = Spread(value=rung.e2e_s, low=rung.e2e_s, high=rung.e2e_s, n=1)
    for timed in (solo.ttft, solo.tpot) if solo else ():
        once = _between_processes(once, timed)
    return once


def _between_processes(spread: Spread, timed: Timed | None) -> Spread:
    """At least as wide as ``timed`` is, which was measured in fresh processes."""
    if timed is None or timed.median_s <= 0:
        return spread
    return Spread(
        value=spread.value,
        low=min(spread.low, spread.value * timed.low_s / timed.median_s),
        high=max(spread.high, spread.value * timed.high_s / timed.median_s),
        n=spread.n,
    )


def _spread_of(timed: Timed) -> Spread:
    return Spread(value=timed.median_s, low=timed.low_s, high=timed.high_s, n=timed.n)
