"""How much slower than the trace's fleet an engine must be fed, so that it can keep the pace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from memplan.in_flight import at_times, mean_of, states_of, wasserstein
from memplan.life import Life
from memplan.records import Segment
from memplan.workload.reference import tick_s_of

TARGET_RATIO = 0.05
"""Wasserstein-1 distance over the mean that is foretold at the dilation that is taken, for running
requests and for KV: half of what a report warns of, for what a probe cannot know."""
_MOST_DECODE_RATIO = 0.7
_LEAST, _MOST = 0.1, 1e5
_STEPS = (2.0, 1.1)
"""In which a dilation is looked for, first coarsely."""
_INSTANTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of an engine, as a probe found it."""

    prefill_tokens_per_s: float
    """While nothing is decoded."""
    decode_step_s: float
    """Of one row."""
    decode_row_s: float = 0.0
    """What each further row adds."""

    def step_s(self, rows: float) -> float:
        return self.decode_step_s + max(0.0, rows - 1) * self.decode_row_s

    @property
    def text(self) -> str:
        return (
            f"{self.prefill_tokens_per_s:,.0f} prompt tokens/s, "
            f"{self.decode_step_s * 1e3:,.0f} ms a decode step and {self.decode_row_s * 1e3:,.1f} ms "
            "for each further row"
        )


def speed_of(segments: Sequence[Segment]) -> Speed | None:
    """None where there were no steps of either kind."""
    steps = [one for one in segments if one.kind == "step"]
    reading = [one for one in steps if one.prefill_tokens and not one.decode_tokens]
    reading_s = sum(one.end_s - one.start_s for one in reading)
    by_rows: dict[int, list[float]] = {}
    for one in steps:
        if not one.prefill_tokens and one.decode_tokens:
            by_rows.setdefault(one.decode_tokens, []).append(one.end_s - one.start_s)
    if not reading_s or not by_rows:
        return None
    few, many = min(by_rows), max(by_rows)
    # The median, because a step that the machine disturbed says nothing of the engine.
    few_s, many_s = median(by_rows[few]), median(by_rows[many])
    row_s = max(0.0, (many_s - few_s) / (many - few)) if many > few else 0.0
    return Speed(
        prefill_tokens_per_s=sum(one.prefill_tokens for one in reading) / reading_s,
        decode_step_s=max(few_s - (few - 1) * row_s, many_s / many),
        decode_row_s=row_s,
    )


def foretold(
    lives: Sequence[Life], speed: Speed, *, dilation: float, length_scale: float, loaded: int = 0
) -> tuple[list[Life], list[Life]] | None:
    """How long requests stay, and how long they hold KV, in the trace's own time, in a paced engine
    that reads one prompt after the other and decodes all that run at each tick. The first ``loaded``
    of them are read beforehand. None where decoding alone leaves it no time.

    Two lists, because a prompt that waits to be read holds nothing yet, and the reference's does.
    """
    sent_tokens = [max(1, round(one.output_tokens * length_scale)) for one in lives]
    tick_s = dilation * tick_s_of(lives, sent_tokens)
    beside, _ = at_times(lives, np.array([one.start_s for one in lives]))
    running: list[Life] = []
    holding: list[Life] = []
    free_s = 0.0
    for number, (one, tokens, rows) in enumerate(
        zip(lives, sent_tokens, beside.tolist(), strict=True)
    ):
        step_s = speed.step_s(rows)
        decode_ratio = step_s / tick_s if tick_s > 0 else 1.0
        if decode_ratio > _MOST_DECODE_RATIO:
            return None
        if number < loaded:
            running.append(one)
            holding.append(one)
            continue
        began_s = max(free_s, one.start_s * dilation)
        read_s = one.input_tokens * length_scale / (speed.prefill_tokens_per_s * (1 - decode_ratio))
        free_s = began_s + read_s
        end_s = max(one.end_s * dilation, free_s + tokens * step_s) / dilation
        running.append(replace(one, end_s=end_s))
        held_s = (began_s + read_s / 2) / dilation
        first_s = max(one.start_s + one.prefill_s, free_s / dilation)
        holding.append(replace(one, start_s=held_s, prefill_s=first_s - held_s, end_s=end_s))
    return running, holding


def foretold_distance(
    lives: Sequence[Life], speed: Speed, *, dilation: float, length_scale: float, loaded: int = 0
) -> float:
    """The greater Wasserstein-1 distance over the reference's mean, of running requests and of KV
    tokens; infinity where the engine cannot keep up at all."""
    found = foretold(lives, speed, dilation=dilation, length_scale=length_scale, loaded=loaded)
    if found is None:
        return float("inf")
    start_s = min(one.start_s for one in lives)
    end_s = max(one.end_s for one in lives)
    if not end_s > start_s:
        return 0.0
    wanted = states_of(lives, start_s, end_s, _INSTANTS)
    running, holding = (states_of(one, start_s, end_s, _INSTANTS) for one in found)
    distances = [
        wasserstein(theirs, wanted.lasted_s, ours, wanted.lasted_s) / mean
        for theirs, ours in (
            (wanted.running, running.running),
            (wanted.kv_tokens, holding.kv_tokens),
        )
        if (mean := mean_of(theirs, wanted.lasted_s)) > 0
    ]
    return max(distances, default=0.0)


def fitted_dilation(
    lives: Sequence[Life], speed: Speed, *, length_scale: float, loaded: int = 0
) -> float | None:
    """The smallest, to a tenth of itself, at which the engine comes near enough; None: it never does.
    ``lives`` by their start; the first ``loaded`` are read beforehand."""

    def is_far(dilation: float) -> bool:
        return (
            foretold_distance(
                lives, speed, dilation=dilation, length_scale=length_scale, loaded=loaded
            )
            > TARGET_RATIO
        )

    dilation = _LEAST
    if not lives:
        return dilation
    for step in _STEPS:
        while is_far(dilation):
            dilation *= step
            if dilation > _MOST:
                return None
        if step != _STEPS[-1] and dilation > _LEAST:
            dilation /= step
    return float(f"{dilation:.3g}")
