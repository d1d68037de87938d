"""How well the 1 kHz sampler kept its pace, and the most that it read."""

from __future__ import annotations

from bisect import bisect_left

from memplan.records import Recording
from memplan.stats.percentiles import rank_of
from memplan.stats.summary import WitnessSummary


def witness_summary(recording: Recording) -> WitnessSummary | None:
    witness = recording.witness
    if witness is None:
        return None
    times = witness.t_s
    # It rests while an engine starts: the gap that a start falls into is none of its making.
    starts = {bisect_left(times, engine.ready_s) for engine in recording.engines}
    gaps = sorted(times[i] - times[i - 1] for i in range(1, len(times)) if i not in starts)
    return WitnessSummary(
        n=len(times),
        gap_p50_s=gaps[rank_of(len(gaps), 0.5)] if gaps else None,
        gap_p99_s=gaps[rank_of(len(gaps), 0.99)] if gaps else None,
        gap_max_s=gaps[-1] if gaps else None,
        max_bytes=max(witness.rss_bytes, default=None),
        policy=witness.policy,
        cpu_s=witness.cpu_s,
    )
