"""What one request owns, by its lengths, against the law that made it."""

from __future__ import annotations

import numpy as np
import pytest

from memplan.plan.request_memory import FEWEST, features_of, fit_requests, owned_by_request
from memplan.records import Recording
from memplan.units import MIB
from tests import builders

KV_BYTES, STEP_BYTES, BATCH = 1000, 2000, 256
IDLE_BYTES = 400 * MIB


def served(count: int, *, noise_bytes: float = 0.0, grows_from: int = 10**9) -> Recording:
    """Alone, one after another: a request owns its KV, and 2,000 bytes a token of its largest step."""
    rng = np.random.default_rng(5)
    requests, segments = [], []
    for at in range(count):
        one = builders.request(
            f"r{at}",
            arrival_s=float(at),
            class_name="long" if at % 3 == 0 else "short",
            input_tokens=int(rng.integers(10, 900)),
            output_tokens=int(rng.integers(1, 50)),
        )
        tokens = one.input_tokens + one.output_tokens - 1
        step = min(one.input_tokens, BATCH)
        extra = rng.normal() * noise_bytes + (5 * MIB if at >= grows_from else 0)
        requests.append(one)
        segments.append(
            builders.segment(
                start_s=float(at),
                end_s=at + 0.5,
                in_flight=(
                    builders.flight(one.request_id, kv_used_bytes=tokens * KV_BYTES, tokens=step),
                ),
                prefill_tokens=step,
                peak={"host.hwm": IDLE_BYTES + int(step * STEP_BYTES + extra)},
                gauges={"host.rss": IDLE_BYTES},
            )
        )
    return builders.recording(
        engines=(builders.engine(kv_bytes_per_token=KV_BYTES),),
        requests=tuple(requests),
        outcomes={one.request_id: builders.completed(one) for one in requests},
        segments=tuple(segments),
    )


def test_lengths_say_what_a_request_owns() -> None:
    recording = served(120)
    law = fit_requests(recording, recording.requests[:60], BATCH)
    assert law is not None
    assert law.per_kv_byte == pytest.approx(1, rel=1e-6)
    assert law.per_step_token_bytes == pytest.approx(STEP_BYTES, rel=1e-6)
    later = recording.requests[60:]
    owned = owned_by_request(recording)
    said = law.owned_bytes(*features_of(later, recording.engines[0], BATCH))
    np.testing.assert_allclose(said, [owned[one.request_id] for one in later], rtol=1e-6)


def test_the_bound_of_a_class_covers_what_the_law_leaves_open() -> None:
    recording = served(600, noise_bytes=3e5)
    law = fit_requests(recording, recording.requests[:300], BATCH)
    assert law is not None
    assert set(law.open_bytes) == {"long", "short"}
    owned = owned_by_request(recording)
    later = recording.requests[300:]
    said = law.owned_bytes(*features_of(later, recording.engines[0], BATCH))
    within = [
        abs(owned[one.request_id] - value) <= law.open_of(one.class_name)
        for one, value in zip(later, said, strict=True)
    ]
    assert 0.9 < np.mean(within) < 1
    assert 4e5 < law.open_of("short") < 1.2e6, "about two standard deviations"
    assert law.open_of("never seen") == law.open_bytes_of_all


def test_a_quantile_holds_what_the_law_leaves_open() -> None:
    recording = served(900, noise_bytes=5e5)
    law = fit_requests(recording, recording.requests[:600], BATCH)
    assert law is not None
    owned = owned_by_request(recording)
    alike = [one for one in recording.requests[600:] if one.class_name == "short"]
    kv, step = features_of(alike, recording.engines[0], BATCH)
    measured = np.quantile([owned[one.request_id] for one in alike], 0.9, method="inverted_cdf")
    said = law.quantile_bytes("short", kv, step, 0.9)
    assert said == pytest.approx(measured, rel=0.05)
    # The same request again and again: its law alone would say one value for all quantiles.
    one_kv, one_step = np.full(200, kv[0]), np.full(200, step[0])
    spread = [law.quantile_bytes("short", one_kv, one_step, q) for q in (0.16, 0.84)]
    assert (spread[1] - spread[0]) / 2 == pytest.approx(5e5, rel=0.2)


def test_a_quantile_of_very_many_requests_is_that_of_a_few_alike() -> None:
    recording = served(300, noise_bytes=3e5)
    law = fit_requests(recording, recording.requests, BATCH)
    assert law is not None
    kv, step = features_of(recording.requests, recording.engines[0], BATCH)
    few = law.quantile_bytes("short", kv, step, 0.99)
    many = law.quantile_bytes("short", np.tile(kv, 5000), np.tile(step, 5000), 0.99)
    assert many == pytest.approx(few, rel=0.01)


def test_requests_that_began_to_own_more_widen_the_bound() -> None:
    recording = served(120, grows_from=60)
    law = fit_requests(recording, recording.requests, BATCH)
    assert law is not None
    assert law.open_bytes_of_all == pytest.approx(5 * MIB, rel=0.05)


def test_too_few_requests_are_no_law() -> None:
    recording = served(FEWEST)
    assert fit_requests(recording, recording.requests, BATCH) is not None
    assert fit_requests(recording, recording.requests[1:], BATCH) is None
