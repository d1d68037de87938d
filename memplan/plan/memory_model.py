"""Recordings in, one replica's fitted law of memory out: fixed + a·KV + b·sequences + c·largest
step + d·chunk lengths, with intervals, and a bound on what the law leaves open.

It refuses to answer beyond what was measured, and says by how much a question goes beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from memplan.plan.capacity import Evidence
from memplan.records import EngineFacts, Recording
from memplan.stats.intervals import student_t

Feature = Literal["kv_bytes", "sequences", "largest_step_tokens", "chunk_lengths"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
BLOCKS = 30
"""Contiguous parts of a recording that count as independent: neighbouring steps hold nearly the same."""
FEWEST = 3 * BLOCKS
"""Observations; fewer fit anything."""
COVERAGE = 0.95
_Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One step of an engine: what it held at its peak, and what explains it."""

    kv_bytes: float
    """Blocks of the pool that were resident when it ended."""
    sequences: float
    """In flight."""
    largest_step_tokens: float
    """Of all steps since the engine started: the allocator keeps what the largest needed."""
    resident_bytes: float
    chunk_lengths: float = 0.0
    """How many different numbers of one prompt's tokens were read in a step, since the engine started:
    a matrix library compiles code for each, and keeps it (oneDNN with AMX: about 1 MB a length, as
    reports/LOG.md of 2026-11-27 measured)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One coefficient, in bytes for one unit of its feature."""

    name: str
    value: float
    low: float
    high: float
    """Two-sided 95 % bounds, with blocks of time as the independent units."""
    evidence: Evidence
    """fitted; declared where the feature never varied, and its share is inside ``fixed``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """``beyond`` is empty, or the answer is not one that was measured for."""

    resident_bytes: float
    upper_bytes: float
    """The law plus what it left open in parts of the recording that it was not fitted on, at
    ``COVERAGE``."""
    beyond: Mapping[str, float]
    """Feature → by which factor it is larger than the largest that was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """Of one variant, on the host or on a device."""

    gauge: Literal["host", "cuda"]
    fixed: Term
    """Weights, runtime and what an idle engine keeps."""
    terms: tuple[Term, ...]
    """In the order of FEATURES."""
    measured: Mapping[str, tuple[float, float]]
    """Feature → the smallest and the largest seen."""
    open_bytes: float
    """What is added for an upper bound: the split-conformal quantile of held-out residuals (Vovk et al.,
    Algorithmic Learning in a Random World, 2005), of blocks in between or of the later half by a law of
    the earlier, whichever is more: an engine that keeps what it once needed drifts."""
    worst_bytes: float
    """The largest held-out residual: an observation."""
    n: int
    blocks: int
    share_explained: float
    """Of the variance, on held-out parts (R²); below 0 where a constant would do better."""

    def predict(
        self,
        *,
        kv_bytes: float,
        sequences: float,
        largest_step_tokens: float,
        chunk_lengths: float | None = None,
    ) -> Prediction:
        """``chunk_lengths`` None: as many as were measured."""
        if chunk_lengths is None:
            chunk_lengths = self.measured["chunk_lengths"][1]
        values = (kv_bytes, sequences, largest_step_tokens, chunk_lengths)
        asked = dict(zip(FEATURES, values, strict=True))
        resident = self.fixed.value + math.fsum(
            term.value * asked[name] for term, name in zip(self.terms, FEATURES, strict=True)
        )
        beyond: dict[str, float] = {
            name: (value / self.measured[name][1] if self.measured[name][1] else math.inf)
            for name, value in asked.items()
            if value > self.measured[name][1]
        }
        return Prediction(
            resident_bytes=resident, upper_bytes=resident + self.open_bytes, beyond=beyond
        )


def observations_of(
    recording: Recording, gauge: Literal["host", "cuda"] = "host"
) -> Iterator[Observation]:
    """Its steps, engine by engine, in order; empty where the gauge was not measured."""
    key = "host.hwm" if gauge == "host" else "cuda.0.allocated"
    engines = {one.engine_start: one for one in recording.engines}
    largest: dict[int, int] = {}
    lengths: dict[int, set[int]] = {}
    for segment in recording.segments:
        engine = engines.get(segment.engine_start)
        if engine is None or segment.kind != "step" or key not in segment.peak:
            continue
        tokens = segment.prefill_tokens + segment.decode_tokens
        largest[segment.engine_start] = max(largest.get(segment.engine_start, 0), tokens)
        of_prompts = lengths.setdefault(segment.engine_start, set())
        of_prompts.update(one.tokens for one in segment.in_flight if one.tokens > 1)
        yield Observation(
            kv_bytes=_kv_bytes(segment.gauges, segment.in_flight, engine),
            sequences=len(segment.in_flight),
            largest_step_tokens=largest[segment.engine_start],
            resident_bytes=segment.peak[key],
            chunk_lengths=len(of_prompts),
        )


def fit_memory(
    found: Sequence[Observation], gauge: Literal["host", "cuda"] = "host"
) -> MemoryModel | None:
    """None below ``FEWEST`` observations. They are taken in their order: neighbours are not independent.

    Ordinary least squares; standard errors are those of a jackknife over blocks, with Student's t of
    blocks − 1. A feature that never varied, or only together with another, gets no coefficient.
    """
    if len(found) < FEWEST:
        return None
    features = np.array([[getattr(one, name) for name in FEATURES] for one in found], dtype=float)
    held = np.array([one.resident_bytes for one in found], dtype=float)
    used = _independent(features)
    design = np.column_stack([np.ones(len(found)), features[:, used]])
    block = np.arange(len(found)) * BLOCKS // len(found)
    beta, error = _clustered(design, held, block)
    reach = student_t(BLOCKS - 1) * error
    residuals = _held_out(design, held, block)
    later = _later(design, held)
    at = {FEATURES[column]: 1 + place for place, column in enumerate(used)}
    spread = float(np.sum((held - held.mean()) ** 2))
    return MemoryModel(
        gauge=gauge,
        fixed=_term("fixed", beta[0], reach[0], "fitted"),
        terms=tuple(
            _term(name, beta[at[name]], reach[at[name]], "fitted")
            if name in at
            else _term(name, 0.0, 0.0, "declared")
            for name in FEATURES
        ),
        measured={
            name: (float(features[:, at].min()), float(features[:, at].max()))
            for at, name in enumerate(FEATURES)
        },
        open_bytes=max(
            conformal_bound(residuals.tolist(), COVERAGE), conformal_bound(later.tolist(), COVERAGE)
        ),
        worst_bytes=float(max(residuals.max(), later.max())),
        n=len(found),
        blocks=BLOCKS,
        share_explained=1 - float(residuals @ residuals) / spread if spread else 1.0,
    )


def conformal_bound(residuals: Sequence[float], coverage: float) -> float:
    """The value that a new residual exceeds with at most 1 − coverage, where they are exchangeable: the
    ⌈(n + 1) · coverage⌉-th smallest; the largest, where that is beyond them. Never below 0."""
    ordered = sorted(residuals)
    rank = math.ceil((len(ordered) + 1) * coverage) - 1
    return max(0.0, ordered[min(rank, len(ordered) - 1)])


def _term(name: str, value: float, reach: float, evidence: Evidence) -> Term:
    return Term(
        name=name,
        value=float(value),
        low=float(value - reach),
        high=float(value + reach),
        evidence=evidence,
    )


def _independent(features: _Matrix) -> list[int]:
    """Columns that vary, and not only together with those before them."""
    used: list[int] = []
    for column in range(features.shape[1]):
        if np.ptp(features[:, column]) == 0:
            continue
        tried = features[:, [*used, column]]
        scaled = (tried - tried.mean(axis=0)) / tried.std(axis=0)
        if np.linalg.matrix_rank(scaled, tol=1e-6 * len(scaled) ** 0.5) == len(used) + 1:
            used.append(column)
    return used


def least_squares(design: _Matrix, held: _Matrix) -> _Matrix:
    """Columns differ by a factor of a billion, so they are brought to one size first."""
    size = np.maximum(np.abs(design).max(axis=0), 1e-300)
    found: _Matrix = np.linalg.lstsq(design / size, held, rcond=None)[0] / size
    return found


def _clustered(
    design: _Matrix, held: _Matrix, block: npt.NDArray[np.int64]
) -> tuple[_Matrix, _Matrix]:
    """Coefficients and their standard errors: how much they move when one block is left out (the
    cluster jackknife, CV3 of MacKinnon, Nielsen & Webb, Journal of Econometrics 2023), because the
    usual ones are too small for what only ever grows."""
    beta = least_squares(design, held)
    size = np.maximum(np.abs(design).max(axis=0), 1e-300)
    scaled = design / size
    gram, moment = scaled.T @ scaled, scaled.T @ held
    moved = np.zeros((BLOCKS, design.shape[1]))
    for at in range(BLOCKS):
        part = scaled[block == at]
        without = np.linalg.pinv(gram - part.T @ part) @ (moment - part.T @ held[block == at])
        moved[at] = without / size - beta
    spread = (BLOCKS - 1) / BLOCKS * np.sum(moved**2, axis=0)
    return beta, np.sqrt(spread)


def _held_out(design: _Matrix, held: _Matrix, block: npt.NDArray[np.int64]) -> _Matrix:
    """Residuals of every third block, of a fit on the others."""
    tested = block % 3 == 1
    beta = least_squares(design[~tested], held[~tested])
    found: _Matrix = held[tested] - design[tested] @ beta
    return found


def _later(design: _Matrix, held: _Matrix) -> _Matrix:
    """Residuals of the second half, of a fit on the first."""
    half = len(held) // 2
    found: _Matrix = held[half:] - design[half:] @ least_squares(design[:half], held[:half])
    return found


def _kv_bytes(gauges: Mapping[str, int], in_flight: Sequence[object], engine: EngineFacts) -> float:
    """Resident blocks where the engine tells them, else what its requests hold."""
    if "engine.kv_blocks" in gauges:
        return float(gauges["engine.kv_blocks"])
    return float(sum(getattr(one, "kv_reserved_bytes", 0) for one in in_flight))
