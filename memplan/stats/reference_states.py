"""How near the states in flight came to those of the fleet that made the trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memplan.in_flight import (
    GRID,
    Floats,
    States,
    joined,
    mean_of,
    quantiles_of,
    states_of,
    wasserstein,
)
from memplan.life import Life
from memplan.records import (
    EngineFacts,
    Recording,
    Request,
    RequestRecord,
    Segment,
    WindowFacts,
)
from memplan.stats.summary import ReferenceFit, StateFigures, StateFit

WARN_RATIO, REFUSE_RATIO = 0.1, 0.25
"""Wasserstein-1 distance over the reference's mean, above which a replay's figures are doubted, and
above which they are not those of the trace."""
_LEVELS = (0.5, 0.95, 0.99, 1.0)
_CURVE = tuple(at / 200 for at in range(1, 201))


def reference_fit(recording: Recording) -> ReferenceFit | None:
    """None without a reference, and where nothing of its windows was run."""
    workload = recording.header.workload
    engines = {one.engine_start: one for one in recording.engines}
    expected, reached = [], []
    grid = GRID // max(1, len(workload.windows))
    for window in workload.windows:
        requests = [one for one in recording.requests if one.wave == window.wave]
        began_s = _began_s(recording, requests)
        if began_s is None:
            continue
        start_s, end_s = began_s + window.start_s, began_s + window.end_s
        lives = [life for one in requests if (life := _life(one, began_s)) is not None]
        expected.append(states_of(lives, start_s, end_s, grid))
        served = [recording.outcomes[one.request_id] for one in requests]
        # The next window's requests come as soon as the last one of this has ended.
        over_s = max((end_s if one.end_s is None else one.end_s for one in served), default=end_s)
        until_s = min(end_s, over_s)
        reached.append(
            _reached(recording.segments, engines, start_s, until_s, workload.length_scale)
        )
        empty_s = _empty_s(served, start_s, end_s)
        if empty_s > 0:
            zero = np.zeros(1)
            reached.append(States(running=zero, kv_tokens=zero, lasted_s=np.array([empty_s])))
    theirs, ours = joined(expected), joined(reached)
    if theirs.is_empty or ours.is_empty:
        return None
    has_kv = any(one.kv_bytes_per_token for one in recording.engines)
    return ReferenceFit(
        reference=workload.reference or "",
        is_paced=any(one.pace_tick_s is not None for one in recording.requests),
        windows=tuple(_window_text(one) for one in workload.windows),
        judged_s=float(ours.lasted_s.sum()),
        running=_fit("running requests", theirs, ours, theirs.running, ours.running),
        kv_tokens=_fit("KV tokens", theirs, ours, theirs.kv_tokens, ours.kv_tokens)
        if has_kv
        else None,
    )


def _window_text(window: WindowFacts) -> str:
    return (
        f"{window.text}: {window.trace_start_s:,.0f} to {window.trace_end_s:,.0f} s, "
        f"dilated {window.dilation:g} times"
    )


def _began_s(recording: Recording, requests: Sequence[Request]) -> float | None:
    """When the wave of these requests began, on the clock of the run."""
    for one in requests:
        intended_s = recording.outcomes[one.request_id].intended_s
        if intended_s is not None:
            return intended_s - one.arrival_s
    return None


def _life(request: Request, began_s: float) -> Life | None:
    if request.service_prefill_s is None or request.service_e2e_s is None:
        return None
    start_s = began_s + request.arrival_s
    return Life(
        start_s=start_s,
        prefill_s=request.service_prefill_s,
        end_s=start_s + request.service_e2e_s,
        input_tokens=request.trace_input_tokens or request.input_tokens,
        output_tokens=request.trace_output_tokens or request.output_tokens,
    )


def _empty_s(served: Sequence[RequestRecord], start_s: float, end_s: float) -> float:
    """Time between two in which none of these was with the engine, which then closes no segments."""
    empty_s, free_s = 0.0, start_s
    for one in sorted(
        (one for one in served if one.sent_s is not None), key=lambda one: one.sent_s or 0.0
    ):
        sent_s = one.sent_s or 0.0
        empty_s += max(0.0, min(sent_s, end_s) - free_s)
        free_s = max(free_s, end_s if one.end_s is None else one.end_s)
    return empty_s + max(0.0, end_s - free_s)


def _reached(
    segments: Sequence[Segment],
    engines: dict[int, EngineFacts],
    start_s: float,
    end_s: float,
    length_scale: float,
) -> States:
    """Of the part that lies between the times of each segment in which there were requests, in tokens
    of the trace."""
    running, kv_tokens, lasted_s = [], [], []
    for one in segments:
        lasted = min(one.end_s, end_s) - max(one.start_s, start_s)
        if lasted <= 0 or not one.in_flight:
            continue
        engine = engines.get(one.engine_start)
        per_token = engine.kv_bytes_per_token if engine else 0
        used_bytes = sum(part.kv_used_bytes for part in one.in_flight)
        running.append(float(len(one.in_flight)))
        kv_tokens.append(used_bytes / per_token / length_scale if per_token else 0.0)
        lasted_s.append(lasted)
    return States(
        running=np.array(running), kv_tokens=np.array(kv_tokens), lasted_s=np.array(lasted_s)
    )


def _fit(name: str, theirs: States, ours: States, wanted: Floats, found: Floats) -> StateFit:
    mean = mean_of(wanted, theirs.lasted_s)
    apart = wasserstein(wanted, theirs.lasted_s, found, ours.lasted_s)
    return StateFit(
        name=name,
        reference=_figures(wanted, theirs.lasted_s),
        reached=_figures(found, ours.lasted_s),
        w1_ratio=apart / mean if mean > 0 else None,
        reference_curve=quantiles_of(wanted, theirs.lasted_s, _CURVE),
        reached_curve=quantiles_of(found, ours.lasted_s, _CURVE),
    )


def _figures(values: Floats, lasted_s: Floats) -> StateFigures:
    p50, p95, p99, most = quantiles_of(values, lasted_s, _LEVELS)
    return StateFigures(mean=mean_of(values, lasted_s), p50=p50, p95=p95, p99=p99, most=most)
