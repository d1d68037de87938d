"""Where a whole trace takes too long: the parts of it that say most about memory, each replayed by
itself from what was in service when it began."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memplan.errors import InputError
from memplan.in_flight import GRID, quantiles_of, states_of
from memplan.life import Life

AROUND = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "most": 1.0}
_LEAST_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Times of the trace, in seconds after its first arrival."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """How a window is fed to an engine."""

    dilation: float
    lead_s: float
    """Of sending before the window begins, not dilated."""

    def takes_s(self, window: Window) -> float:
        return self.lead_s + (window.end_s - window.start_s) * self.dilation


FeedOf = Callable[[Window], Feed]


def windows_of(
    lives: Sequence[Life],
    span_s: float,
    within_s: float | None,
    feed_of: FeedOf,
    *,
    seed: int = 0,
) -> tuple[tuple[Window, Feed], ...]:
    """Around the instants at which the reference's KV tokens are at their p50, p95, p99 and most, and
    one at random, each as it is fed; so fed, they take no longer than ``within_s`` together. In order
    of time. One over the whole trace where that fits, or without a limit.

    Raises InputError where this leaves less than a second of the trace to each.
    """
    whole = Window(text="the whole trace", start_s=0.0, end_s=span_s)
    feed = feed_of(whole)
    if within_s is None or feed.takes_s(whole) <= within_s:
        return ((whole, feed),)
    length_s = within_s / feed.dilation
    while length_s >= _LEAST_S:
        windows = _chosen(lives, span_s, length_s, random.Random(seed))
        chosen = [(one, feed_of(one)) for one in windows]
        if sum(feed.takes_s(one) for one, feed in chosen) <= within_s:
            return tuple(sorted(chosen, key=lambda pair: pair[0].start_s))
        length_s *= 0.9
    raise InputError(
        f"--within: {within_s:,.0f} s are too short for {len(AROUND) + 1} windows, each of a second "
        "of the trace or more",
        hint="allow more time, or shorten requests with --length-scale",
    )


def around(
    lives: Sequence[Life], span_s: float, level: float, length_s: float
) -> tuple[float, float]:
    """Start and end of a window of that length, no longer than the trace, in whose middle the
    reference's KV tokens are nearest to their quantile of that level over time."""
    states = states_of(lives, 0.0, span_s)
    (wanted,) = quantiles_of(states.kv_tokens, states.lasted_s, [level])
    nearest = int(np.argmin(np.abs(states.kv_tokens - wanted)))
    return _window_at((nearest + 0.5) * span_s / GRID, span_s, min(length_s, span_s))


def _window_at(middle_s: float, span_s: float, length_s: float) -> tuple[float, float]:
    start_s = min(max(0.0, middle_s - length_s / 2), span_s - length_s)
    return start_s, start_s + length_s


def _chosen(
    lives: Sequence[Life], span_s: float, length_s: float, draw: random.Random
) -> list[Window]:
    states = states_of(lives, 0.0, span_s)
    times_s = (np.arange(GRID) + 0.5) * span_s / GRID
    chosen: list[Window] = []

    def taken(start_s: float) -> bool:
        return any(abs(one.start_s - start_s) < length_s for one in chosen)

    def add(text: str, middle_s: float) -> None:
        start_s, end_s = _window_at(middle_s, span_s, length_s)
        chosen.append(Window(text=text, start_s=start_s, end_s=end_s))

    for name, level in reversed(AROUND.items()):  # the rarest first: it has least choice
        (wanted,) = quantiles_of(states.kv_tokens, states.lasted_s, [level])
        nearest = np.argsort(np.abs(states.kv_tokens - wanted), kind="stable")
        free = (
            float(times_s[at]) for at in nearest if not taken(float(times_s[at]) - length_s / 2)
        )
        middle_s = next(free, None)
        if middle_s is not None:
            add(f"around the {name} of KV", middle_s)
    for _ in range(100):
        start_s = draw.uniform(0.0, span_s - length_s)
        if not taken(start_s):
            add("at random", start_s + length_s / 2)
            break
    return chosen
