"""A trace in, its shape out: how fast, how bursty, how long, how much it repeats, and whether it looks
made up.

Nothing is judged but what a real log never shows; every doubt is a Finding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, pstdev

from memplan.records import Finding, Request
from memplan.workload.trace import Trace

BIN_S = 10.0
"""In which arrivals are counted for the index of dispersion."""
_FEW = 50
"""Rows below which nothing is said of a shape."""
_PHASED = 20_000
"""Rows over which minutes are tried at every second."""
LEVELS = (0.5, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of all kept rows; exact quantiles at LEVELS."""

    mean: float
    quantiles: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceShape:
    span_s: float
    requests_per_s: float | None
    """None where all came at one instant."""
    gap_cv: float | None
    """Standard deviation over mean of the gaps between arrivals; 1 for a Poisson process."""
    dispersion: float | None
    """Variance over mean of arrivals in bins of BIN_S; 1 for a Poisson process. None below 10 bins."""
    tick_s: float | None
    """Arrivals lie on multiples of it, and share instants; None where they do not."""
    same_instant: int
    """Arrivals at the instant of the one before."""
    input: Lengths
    output: Lengths
    sessions: int | None
    """None where the trace names none."""
    session_turns_mean: float | None
    reused_ratio: float | None
    """Share of prompt blocks that an earlier row had too; None without prefix ids."""
    observed: int
    """Rows that say what production took."""
    classes: Mapping[str, int]
    findings: tuple[Finding, ...]


def shape_of(trace: Trace, requests: Sequence[Request]) -> TraceShape:
    """``requests``: the same rows with their classes."""
    times = [row.timestamp_s for row in trace.rows]
    gaps = [later - before for before, later in pairwise(times)]
    mean_gap = fmean(gaps) if gaps else 0.0
    sessions = Counter(row.session_id for row in trace.rows if row.session_id is not None)
    inputs = [row.input_tokens for row in trace.rows]
    outputs = [row.output_tokens for row in trace.rows]
    return TraceShape(
        span_s=times[-1],
        requests_per_s=len(gaps) / times[-1] if times[-1] > 0 else None,
        gap_cv=pstdev(gaps) / mean_gap if mean_gap > 0 else None,
        dispersion=_dispersion(times),
        tick_s=_tick(gaps),
        same_instant=sum(gap == 0 for gap in gaps),
        input=_lengths(inputs),
        output=_lengths(outputs),
        sessions=len(sessions) or None,
        session_turns_mean=fmean(sessions.values()) if sessions else None,
        reused_ratio=_reused(trace),
        observed=sum(row.observed_e2e_s is not None for row in trace.rows),
        classes=dict(Counter(request.class_name for request in requests)),
        findings=tuple(_doubts(times, gaps, inputs, outputs)),
    )


def _dispersion(times: Sequence[float]) -> float | None:
    bins = int(times[-1] // BIN_S)
    if bins < 10:
        return None
    counts = [0] * bins
    for at in times:
        if at < bins * BIN_S:
            counts[int(at // BIN_S)] += 1
    mean = fmean(counts)
    return pstdev(counts) ** 2 / mean if mean else None


def _tick(gaps: Sequence[float]) -> float | None:
    """The smallest gap, where every gap is nearly a multiple of it and a tenth of them are none."""
    positive = [gap for gap in gaps if gap > 0]
    if len(gaps) < _FEW or len(positive) > 0.9 * len(gaps) or not positive:
        return None
    tick = min(positive)
    near = sum(abs(gap / tick - round(gap / tick)) < 0.05 for gap in positive)
    return tick if near > 0.9 * len(positive) else None


def _lengths(values: Sequence[int]) -> Lengths:
    ordered = sorted(values)
    ranks = [max(0, math.ceil(level * len(ordered) - 1e-9) - 1) for level in LEVELS]
    return Lengths(mean=fmean(ordered), quantiles=tuple(ordered[rank] for rank in ranks))


def _reused(trace: Trace) -> float | None:
    seen: set[int] = set()
    blocks = reused = 0
    for row in trace.rows:
        for at, one in enumerate(row.hash_ids):
            if one not in seen:
                break
            reused += 1
            del at
        blocks += len(row.hash_ids)
        seen.update(row.hash_ids)
    return reused / blocks if blocks else None


def _doubts(
    times: Sequence[float], gaps: Sequence[float], inputs: Sequence[int], outputs: Sequence[int]
) -> list[Finding]:
    """Shapes that logs of real traffic do not have, and generators do."""
    if len(times) < _FEW:
        return []
    found = []
    common, often = Counter(round(gap, 6) for gap in gaps).most_common(1)[0]
    if common > 0 and often > 0.5 * len(gaps):
        found.append(
            _made(
                "constant_gaps",
                f"{often:,} of {len(gaps):,} gaps between arrivals are {common:g} s",
                "arrivals of many users are never evenly spaced",
            )
        )
    same = _same_each_minute(times)
    if same is not None:
        found.append(
            _made(
                "same_count_each_minute",
                f"every minute holds {same:,} rows",
                "counts of real arrivals vary at least as Poisson's do",
            )
        )
    for name, values in (("input", inputs), ("output", outputs)):
        if len(values) >= 10 * _FEW and _is_uniform(values):
            found.append(
                _made(
                    f"uniform_{name}_lengths",
                    f"{name} lengths fill {min(values):,} to {max(values):,} evenly",
                    "real lengths have one long tail",
                )
            )
        if len(set(values)) == 1:
            found.append(
                _made(
                    f"constant_{name}_lengths",
                    f"every {name} is {values[0]:,} tokens long",
                    "real lengths differ",
                )
            )
    return found


def _same_each_minute(times: Sequence[float]) -> int | None:
    """How many, where all whole minutes hold as many. The first arrival is time zero, so minutes may
    begin at any second of it."""
    seen = times[:_PHASED]
    for phase in range(60):
        counts = Counter(int((at + phase) // 60) for at in seen)
        whole = [counts[minute] for minute in range(1, int((seen[-1] + phase) // 60))]
        if len(whole) >= 5 and len(set(whole)) == 1 and whole[0] > 1:
            return whole[0]
    return None


def _is_uniform(values: Sequence[int]) -> bool:
    """Kolmogorov's distance to the uniform distribution between the ends is within chance (5 %)."""
    low, high = min(values), max(values)
    if high - low < 20:
        return False
    ordered = sorted(values)
    n = len(ordered)
    far = max(
        max(abs((at + 1) / n - share), abs(at / n - share))
        for at, value in enumerate(ordered)
        for share in [(value - low) / (high - low)]
    )
    return far < 1.36 / math.sqrt(n)


def _made(code: str, seen: str, why: str) -> Finding:
    return Finding(
        code=code,
        text=f"It looks made up: {seen}, and {why}.",
        hint="Ask where the trace is from before a budget rests on it.",
    )
