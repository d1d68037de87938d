"""What a plan says of memory that grows with every new length of a prompt chunk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from memplan.plan.memory_model import MemoryModel, Observation, fit_memory
from memplan.planning import growth_with_lengths
from tests import builders

IDLE_BYTES, KEPT_BYTES = 600e6, 1e6


def fitted(kept_bytes: float, new_share: float = 0.3) -> MemoryModel:
    rng = np.random.default_rng(2)
    seen = np.cumsum(rng.random(400) < new_share)
    model = fit_memory(
        [
            Observation(
                kv_bytes=kv,
                sequences=float(rng.integers(1, 9)),
                largest_step_tokens=512.0,
                resident_bytes=IDLE_BYTES + kv + kept_bytes * lengths + rng.normal() * 1e4,
                chunk_lengths=float(lengths),
            )
            for kv, lengths in zip(rng.random(400) * 1e8, seen, strict=True)
        ]
    )
    assert model is not None
    return model


def recorded(batch_tokens: int = 512):
    header = builders.header()
    settings = {"max_batch_tokens": batch_tokens}
    return builders.recording(
        header=replace(header, deployment={**header.deployment, "settings": settings})
    )


def test_what_lengths_that_were_not_seen_would_cost_is_a_finding() -> None:
    model = fitted(KEPT_BYTES)
    seen = model.measured["chunk_lengths"][1]
    finding = growth_with_lengths(model, recorded())
    assert finding is not None
    assert finding.code == "memory_grows_with_lengths"
    assert f"saw {seen:.0f} of 512 lengths" in finding.text
    assert "max_batch_tokens" in finding.hint


@pytest.mark.parametrize(
    ("kept_bytes", "batch_tokens"), [(0.0, 512), (2e4, 512), (KEPT_BYTES, 100)]
)
def test_what_costs_little_or_was_all_seen_is_none(kept_bytes: float, batch_tokens: int) -> None:
    assert growth_with_lengths(fitted(kept_bytes), recorded(batch_tokens)) is None
