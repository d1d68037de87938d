"""How much slower than the trace's fleet an engine must be fed, so that it can keep the pace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from memplan.in_flight import Life
from memplan.records import Segment
from memplan.workload.reference import tick_s_of

OVERSTAY_RATIO = 0.04
"""Requests may stay longer by so much of their reference's time, all together. As nobody leaves early,
that is by how much the mean in flight is too high, and with it the Wasserstein-1 distance."""
_MOST_DECODE_RATIO = 0.7
_LEAST, _MOST, _STEP = 0.1, 1e5, 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of an engine, as a probe found it."""

    prefill_tokens_per_s: float
    """While nothing is decoded."""
    decode_step_s: float

    @property
    def text(self) -> str:
        return (
            f"{self.prefill_tokens_per_s:,.0f} prompt tokens/s, "
            f"{self.decode_step_s * 1e3:,.0f} ms a decode step"
        )


def speed_of(segments: Sequence[Segment]) -> Speed | None:
    """None where there were no steps of either kind."""
    steps = [one for one in segments if one.kind == "step"]
    reading = [one for one in steps if one.prefill_tokens and not one.decode_tokens]
    decoding = [one.end_s - one.start_s for one in steps if not one.prefill_tokens]
    reading_s = sum(one.end_s - one.start_s for one in reading)
    if not reading_s or not decoding:
        return None
    return Speed(
        prefill_tokens_per_s=sum(one.prefill_tokens for one in reading) / reading_s,
        decode_step_s=median(decoding),
    )


def overstay_ratio(
    lives: Sequence[Life], speed: Speed, *, dilation: float, length_scale: float
) -> float:
    """By how much longer than the reference's time, dilated, requests stay in a paced engine that reads
    one prompt after the other and decodes all that run at each tick; over their time there."""
    sent_tokens = [max(1, round(one.output_tokens * length_scale)) for one in lives]
    tick_s = dilation * tick_s_of(lives, sent_tokens)
    decode_ratio = speed.decode_step_s / tick_s if tick_s > 0 else 1.0
    if decode_ratio > _MOST_DECODE_RATIO:
        return float("inf")
    rate = speed.prefill_tokens_per_s * (1 - decode_ratio)
    free_s = late_s = stay_s = 0.0
    for one, tokens in sorted(
        zip(lives, sent_tokens, strict=True), key=lambda pair: pair[0].start_s
    ):
        arrival_s = one.start_s * dilation
        free_s = max(free_s, arrival_s) + one.input_tokens * length_scale / rate
        answer_s = tokens * speed.decode_step_s
        due_s = one.end_s * dilation
        late_s += max(0.0, free_s + answer_s - due_s)
        stay_s += due_s - arrival_s
    return late_s / stay_s if stay_s else 0.0


def fitted_dilation(lives: Sequence[Life], speed: Speed, *, length_scale: float) -> float | None:
    """The smallest, to a tenth of itself, at which the engine keeps the pace; None: it never does."""
    dilation = _LEAST
    if not lives:
        return dilation
    while dilation < _MOST:
        ratio = overstay_ratio(lives, speed, dilation=dilation, length_scale=length_scale)
        if ratio <= OVERSTAY_RATIO:
            return float(f"{dilation:.3g}")
        dilation *= _STEP
    return None
