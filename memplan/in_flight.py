"""What is in flight at a time: of requests whose service is known, and how far two such histories are
apart.

Pure arithmetic over arrays, used to foretell a replay and to judge it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memplan.life import Life

Floats = npt.NDArray[np.floating[Any]]
GRID = 20_000
"""Instants at which a span of reference states is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What was in flight, each state with the time it lasted; any order."""

    running: Floats
    """Requests."""
    kv_tokens: Floats
    lasted_s: Floats

    @property
    def is_empty(self) -> bool:
        return not float(self.lasted_s.sum()) > 0


def joined(parts: Sequence[States]) -> States:
    """All of them as one history."""
    none = np.zeros(0)
    return States(
        running=np.concatenate([none, *(one.running for one in parts)]),
        kv_tokens=np.concatenate([none, *(one.kv_tokens for one in parts)]),
        lasted_s=np.concatenate([none, *(one.lasted_s for one in parts)]),
    )


def states_of(lives: Sequence[Life], start_s: float, end_s: float, grid: int = GRID) -> States:
    """Between two times, read at ``grid`` evenly spaced instants."""
    step_s = (end_s - start_s) / grid
    times = start_s + (np.arange(grid) + 0.5) * step_s
    running, kv_tokens = at_times(lives, times)
    return States(running=running, kv_tokens=kv_tokens, lasted_s=np.full(grid, step_s))


def at_times(lives: Sequence[Life], times_s: Floats) -> tuple[Floats, Floats]:
    """(requests in service, KV tokens) at each of the times.

    O((lives + times) log lives): everything that a life adds is linear in time between its own three
    instants, so prefix sums over the sorted instants say all.
    """
    starts = np.array([one.start_s for one in lives])
    ends = np.array([max(one.start_s, one.end_s) for one in lives])
    firsts = np.minimum(starts + np.array([one.prefill_s for one in lives]), ends)
    held = np.array([float(one.input_tokens) for one in lives])
    grown = np.array([float(one.output_tokens) for one in lives])
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where(ends > firsts, grown / (ends - firsts), 0.0)
    running = _steps(starts, np.ones_like(starts), times_s) - _steps(
        ends, np.ones_like(ends), times_s
    )
    kv_tokens = _steps(starts, held, times_s) - _steps(ends, held, times_s)
    # rate × (t − first) from its first token on, and none of it after its end.
    slope = _steps(firsts, rates, times_s) - _steps(ends, rates, times_s)
    offset = _steps(firsts, rates * firsts, times_s) - _steps(ends, rates * firsts, times_s)
    # Where all have ended rounding leaves a little more or less than nothing.
    held_tokens = np.round(kv_tokens + slope * times_s - offset, 3)
    return running, np.where(held_tokens > 0, held_tokens, 0.0)


def _steps(at_s: Floats, sizes: Floats, times_s: Floats) -> Floats:
    """The sum of ``sizes`` whose instant is not later, at each of the times."""
    order = np.argsort(at_s, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(sizes[order])])
    return sums[np.searchsorted(at_s[order], times_s, side="right")]


def mean_of(values: Floats, lasted_s: Floats) -> float:
    return float((values * lasted_s).sum() / lasted_s.sum())


def quantiles_of(values: Floats, lasted_s: Floats, levels: Sequence[float]) -> tuple[float, ...]:
    """The smallest value that is not exceeded for so much of the time."""
    order = np.argsort(values, kind="stable")
    shares = np.cumsum(lasted_s[order]) / lasted_s.sum()
    at = np.minimum(np.searchsorted(shares, np.array(levels) - 1e-12), len(values) - 1)
    return tuple(float(one) for one in values[order][at])


def wasserstein(a: Floats, a_lasted_s: Floats, b: Floats, b_lasted_s: Floats) -> float:
    """Wasserstein-1 distance of the two distributions over time, in the unit of the values: the area
    between their cumulative curves."""
    values = np.concatenate([a, b])
    weights = np.concatenate([a_lasted_s / a_lasted_s.sum(), -b_lasted_s / b_lasted_s.sum()])
    order = np.argsort(values, kind="stable")
    apart = np.cumsum(weights[order])[:-1]
    return float((np.abs(apart) * np.diff(values[order])).sum())
