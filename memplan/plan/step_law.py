"""A recording in, how long a step of its engine takes out, with its error on steps that it was not
fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memplan.plan.memory_model import least_squares
from memplan.plan.simulation import PS_PER_S, StepLaw
from memplan.records import Recording

FEWEST = 60
"""Steps; fewer fit anything."""
_Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFit:
    """Of one deployment on one machine."""

    law: StepLaw
    """Of all steps."""
    steps: int
    held_out_error: float
    """Of the second half, by a law of the first: total time predicted over measured, less 1."""
    held_out_median_error: float
    """The median of how far a single step is off, as a share of it."""


def fit_steps(recording: Recording) -> StepFit | None:
    """None below ``FEWEST`` steps. Least squares without negative terms: what would get one is left
    out."""
    rows = list(_rows(recording))
    if len(rows) < FEWEST:
        return None
    table = np.array(rows, dtype=float)
    features, took_s = table[:, :-1], table[:, -1]
    half = len(rows) // 2
    early = _solved(features[:half], took_s[:half])
    predicted_s = features[half:] @ early
    base, prompt_token, decode, kv_token, pair = (
        max(0, round(one * PS_PER_S)) for one in _solved(features, took_s)
    )
    return StepFit(
        law=StepLaw(
            # A step that takes no time would never end.
            step_ps=max(1, base),
            prompt_token_ps=prompt_token,
            decode_ps=decode,
            kv_token_ps=kv_token,
            pair_ps=pair,
        ),
        steps=len(rows),
        held_out_error=float(predicted_s.sum() / took_s[half:].sum() - 1),
        held_out_median_error=float(np.median(np.abs(predicted_s / took_s[half:] - 1))),
    )


def _rows(recording: Recording) -> Iterator[tuple[float, ...]]:
    """1, prompt tokens, decodes, tokens read, pairs; seconds. In order, from all engines of the run."""
    per_token = {one.engine_start: max(1, one.kv_bytes_per_token) for one in recording.engines}
    prompts = {one.request_id: one.input_tokens for one in recording.requests}
    for step in recording.segments:
        if step.kind != "step" or step.end_s <= step.start_s or step.engine_start not in per_token:
            continue
        read = pairs = 0.0
        for one in step.in_flight:
            if not one.tokens:
                continue
            before = max(0.0, one.kv_used_bytes / per_token[step.engine_start] - one.tokens)
            read += before
            if before < prompts.get(one.request_id, 0):
                pairs += before * one.tokens
        yield (
            1.0,
            float(step.prefill_tokens),
            float(step.decode_tokens),
            read,
            pairs,
            step.end_s - step.start_s,
        )


def _solved(features: _Matrix, took_s: _Matrix) -> _Matrix:
    """Coefficients of at least 0: the most negative one is taken out until none is."""
    used = list(range(features.shape[1]))
    found = np.zeros(features.shape[1])
    while used:
        part = least_squares(features[:, used], took_s)
        worst = int(np.argmin(part))
        if part[worst] >= 0:
            found[used] = part
            break
        used.pop(worst)
    return found
