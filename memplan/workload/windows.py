"""Where a whole trace takes too long: the parts of it that say most about memory, each replayed by
itself after a warm-up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memplan.errors import InputError
from memplan.in_flight import GRID, Life, quantiles_of, states_of

LEVELS = (("the p50", 0.5), ("the p95", 0.95), ("the p99", 0.99), ("the most", 1.0))
_LEAST_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Times of the trace, in seconds after its first arrival."""

    text: str
    warm_up_s: float
    """From here on requests are sent: when the oldest that is in service at ``start_s`` arrived."""
    start_s: float
    end_s: float


def whole(span_s: float) -> Window:
    return Window(text="the whole trace", warm_up_s=0.0, start_s=0.0, end_s=span_s)


def windows_of(
    lives: Sequence[Life], span_s: float, budget_s: float, *, seed: int = 0
) -> tuple[Window, ...]:
    """Around the instants at which the reference's KV tokens are at their p50, p95, p99 and most, and
    one at random; together, with their warm-ups, no longer than ``budget_s`` of the trace's time, in
    order of time. One over the whole trace where that fits.

    Raises InputError where the budget leaves less than a second to each.
    """
    if span_s <= budget_s:
        return (whole(span_s),)
    length_s = budget_s / (len(LEVELS) + 1)
    while length_s >= _LEAST_S:
        chosen = _chosen(lives, span_s, length_s, random.Random(seed))
        if sum(one.end_s - one.warm_up_s for one in chosen) <= budget_s:
            return tuple(sorted(chosen, key=lambda one: one.start_s))
        length_s *= 0.9
    raise InputError(
        f"--within: {budget_s:,.0f} s of the trace's time are too short for "
        f"{len(LEVELS) + 1} windows and their warm-ups",
        hint="allow more time, or lower --dilation",
    )


def _chosen(
    lives: Sequence[Life], span_s: float, length_s: float, draw: random.Random
) -> list[Window]:
    states = states_of(lives, 0.0, span_s)
    times_s = (np.arange(GRID) + 0.5) * span_s / GRID
    chosen: list[Window] = []

    def taken(start_s: float) -> bool:
        return any(abs(one.start_s - start_s) < length_s for one in chosen)

    def add(text: str, middle_s: float) -> None:
        start_s = min(max(0.0, middle_s - length_s / 2), span_s - length_s)
        oldest_s = min(
            (one.start_s for one in lives if one.start_s <= start_s < one.end_s), default=start_s
        )
        chosen.append(
            Window(text=text, warm_up_s=oldest_s, start_s=start_s, end_s=start_s + length_s)
        )

    for text, level in reversed(LEVELS):  # the rarest first: it has least choice
        (wanted,) = quantiles_of(states.kv_tokens, states.lasted_s, [level])
        nearest = np.argsort(np.abs(states.kv_tokens - wanted), kind="stable")
        free = (
            float(times_s[at]) for at in nearest if not taken(float(times_s[at]) - length_s / 2)
        )
        middle_s = next(free, None)
        if middle_s is not None:
            add(f"around {text} of KV", middle_s)
    for _ in range(100):
        start_s = draw.uniform(0.0, span_s - length_s)
        if not taken(start_s):
            add("at random", start_s + length_s / 2)
            break
    return chosen
