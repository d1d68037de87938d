"""A test of the attribution: when KV is given back, resident memory must fall by as much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median_low

from memplan.records import EngineFacts, Recording, Segment
from memplan.stats.intervals import order_ranks
from memplan.stats.kv_pool import pool_bytes
from memplan.stats.summary import KvSlope

FEWEST_CHANGES = 10
KV_SLOPE_BAND = (0.9, 1.1)
"""A request's last block is counted whole and written by half on average, so with blocks of 16
tokens a request of 80 tokens gives back down to 8 / 80 = 10 % less than is counted."""


def kv_slope_of(
    recording: Recording, serving: Sequence[Segment], engines: dict[int, EngineFacts]
) -> KvSlope | None:
    """The median of change of resident bytes over change of KV bytes, over release segments.

    Only there does nothing else move: in a step, activations and the heap grow and shrink too. An
    engine that trims its heap as it releases gives back more than KV, so there nothing is said.
    Differences of neighbours leave out slow drift, and a median leaves out the odd release with a
    heap trimmed beside it. The interval is that of a median by order statistics.
    """
    ratios = sorted(
        resident / kv for resident, kv in _changes(recording, serving, engines) if kv != 0
    )
    if len(ratios) < FEWEST_CHANGES:
        return None
    low, high = order_ranks(len(ratios), 0.5)
    assert low is not None and high is not None  # so from 6 values on
    return KvSlope(slope=median_low(ratios), low=ratios[low], high=ratios[high], n=len(ratios))


def _changes(
    recording: Recording, serving: Sequence[Segment], engines: dict[int, EngineFacts]
) -> Iterator[tuple[int, int]]:
    """Change of resident bytes and of KV bytes, for each release after its step."""
    before: Segment | None = None
    for segment in serving:
        engine = engines[segment.engine_start]
        if (
            segment.kind == "release"
            and before is not None
            and before.engine_start == segment.engine_start
            # Not before a step, when who made way leaves and blocks are taken that nobody wrote yet.
            and before.in_flight == segment.in_flight
            and engine.device == "cpu"
            and engine.kv_kind == "growing"
            and engine.settings.get("trim", "never") == "never"
            and "engine.kv_blocks" in before.gauges
        ):
            held = _kv_bytes(recording, segment, engine)
            resident = segment.gauges["host.rss"] - before.gauges["host.rss"]
            yield resident, held - pool_bytes(before.gauges)
        before = segment


def _kv_bytes(recording: Recording, segment: Segment, engine: EngineFacts) -> int:
    """After the release; blocks that are kept are not given back. Older recordings have no gauge there:
    then of whoever had not ended."""
    if "engine.kv_blocks" in segment.gauges:
        return pool_bytes(segment.gauges)
    block_bytes = engine.kv_bytes_per_token * engine.kv_block_tokens
    held = 0
    for flight in segment.in_flight:
        outcome = recording.outcomes.get(flight.request_id)
        end_s = outcome.end_s if outcome else None
        if end_s is None or end_s > segment.start_s + 1e-6:
            held += -(-flight.kv_used_bytes // block_bytes) * block_bytes
    return held
