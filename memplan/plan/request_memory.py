"""Recordings in, what one request owns of its engine's memory at its largest out: KV and its share of a
step's activations, by its lengths.

What a class will own under other lengths follows from its requests' lengths, with a bound from requests
that the law was not fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memplan.plan.memory_model import COVERAGE, conformal_bound, least_squares
from memplan.records import EngineFacts, Recording, Request
from memplan.stats.attribution import peak_owned_bytes

FEWEST = 30
"""Requests; fewer fit anything."""
MOST_RANKS = 2000
"""Of what requests of a class own by the law, for a quantile."""
FEWEST_OF_CLASS = 20
"""Requests of a class for a bound of its own: below it the bound is that of all."""
_Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMemory:
    """``owned = fixed + per_kv_byte · KV + per_step_token · tokens of its largest step``."""

    fixed_bytes: float
    per_kv_byte: float
    """1 where a request owns its blocks and nothing else grows with them."""
    per_step_token_bytes: float
    open_bytes: Mapping[str, float]
    """Class → what is to be added and taken away for a two-sided bound at ``COVERAGE``: the
    split-conformal quantile of how far the second half of its requests was off a law of the first."""
    open_bytes_of_all: float
    residual_bytes: Mapping[str, _Values]
    """Class → what the law left open in each of its requests."""
    most_kv_bytes: float
    """The largest that was measured."""
    n: int

    def owned_bytes(self, kv_bytes: _Values, step_tokens: _Values) -> _Values:
        found: _Values = (
            self.fixed_bytes + self.per_kv_byte * kv_bytes + self.per_step_token_bytes * step_tokens
        )
        return found

    def quantile_bytes(
        self, class_name: str, kv_bytes: _Values, step_tokens: _Values, quantile: float
    ) -> float:
        """Of what requests of the class will own, with what the law leaves open in each: a quantile of
        the law alone would be too low, as every regression's is."""
        said = np.sort(self.owned_bytes(kv_bytes, step_tokens))
        # Of a million requests as many, evenly by rank, as keep the table of sums small.
        said = said[np.linspace(0, len(said) - 1, min(len(said), MOST_RANKS)).round().astype(int)]
        left_open = self.residual_bytes.get(class_name, np.zeros(1))
        every = (said[:, None] + left_open[None, :]).ravel()
        return float(np.quantile(every, quantile, method="inverted_cdf"))

    def open_of(self, class_name: str) -> float:
        return self.open_bytes.get(class_name, self.open_bytes_of_all)


def fit_requests(
    recording: Recording, requests: Sequence[Request], batch_tokens: int
) -> RequestMemory | None:
    """Of these ``requests``, as far as they completed; in their order. None below ``FEWEST``."""
    facts = {one.engine_start: one for one in recording.engines}
    owned = owned_by_request(recording)
    done = [
        one
        for one in requests
        if recording.outcomes[one.request_id].outcome == "completed" and one.request_id in owned
    ]
    if len(done) < FEWEST:
        return None
    engine = next(iter(facts.values()))
    kv, step = features_of(done, engine, batch_tokens)
    held = np.array([owned[one.request_id] for one in done])
    design = np.column_stack([np.ones(len(done)), kv, step])
    half = len(done) // 2
    early = least_squares(design[:half], held[:half])
    off = np.abs(held[half:] - design[half:] @ early)
    every_name = np.array([one.class_name for one in done])
    names = every_name[half:]
    beta = least_squares(design, held)
    left_open = held - design @ beta
    return RequestMemory(
        fixed_bytes=float(beta[0]),
        per_kv_byte=float(beta[1]),
        per_step_token_bytes=float(beta[2]),
        open_bytes={
            str(name): conformal_bound(off[names == name].tolist(), COVERAGE)
            for name in np.unique(names)
            if np.sum(names == name) >= FEWEST_OF_CLASS
        },
        open_bytes_of_all=conformal_bound(off.tolist(), COVERAGE),
        residual_bytes={str(name): left_open[every_name == name] for name in np.unique(every_name)},
        most_kv_bytes=float(kv.max()),
        n=len(done),
    )


def owned_by_request(recording: Recording) -> Mapping[str, float]:
    """In host memory, at its largest; by request id."""
    facts = {one.engine_start: one for one in recording.engines}
    return peak_owned_bytes(recording.segments, facts, "cpu")


def features_of(
    requests: Sequence[Request], engine: EngineFacts, batch_tokens: int
) -> tuple[_Values, _Values]:
    """KV bytes at the end, in whole blocks where those are resident from the start, and tokens of the
    largest step."""
    block = max(1, engine.kv_block_tokens) if engine.kv_kind == "reserved" else 1
    tokens = np.array([one.input_tokens + one.output_tokens - 1 for one in requests], dtype=float)
    kv_bytes = np.ceil(tokens / block) * block * engine.kv_bytes_per_token
    step = np.array([min(one.input_tokens, batch_tokens) for one in requests], dtype=float)
    return kv_bytes, step
