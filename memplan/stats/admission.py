"""How requests came into the engine: what they waited for, who was turned away or had to make way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from memplan.records import Recording, Request, RequestRecord, Segment
from memplan.stats.degradations import degraded_of
from memplan.stats.summary import (
    ClassAdmission,
    KvMost,
    Percentiles,
    RunAdmission,
    Streaming,
    Wait,
)

PercentilesOf = Callable[[Callable[[Request], float | None]], Percentiles]
"""From a value of each request, or None where it has none."""


def class_admission(
    requests: Sequence[Request],
    outcomes: Mapping[str, RequestRecord],
    percentiles: PercentilesOf,
) -> ClassAdmission:
    """Of the requests of one class."""
    records = [outcomes[request.request_id] for request in requests]
    entered = {one.request_id: one for one in records if one.admitted_s is not None}
    return ClassAdmission(
        entered=len(entered),
        waited_s=percentiles(
            lambda r: (
                sum(entered[r.request_id].waited_s.values()) if r.request_id in entered else None
            )
        ),
        waits=_waits(entered, percentiles),
        rejected=Counter(one.reason or "unknown" for one in records if one.outcome == "rejected"),
        shortened=sum(one.is_shortened for one in records),
        shortened_tokens=sum(
            max(0, request.output_tokens - one.output_tokens_run)
            for request, one in zip(requests, records, strict=True)
            if one.is_shortened
        ),
        preempted=sum(one.preemptions > 0 for one in records),
        preemptions=sum(one.preemptions for one in records),
        prompt_tokens=sum(r.input_tokens for r in requests if r.request_id in entered),
        shared_tokens=sum(one.shared_tokens for one in records),
        pulled_back=sum(one.pulled_back_bytes > 0 for one in records),
        pulled_back_bytes=sum(one.pulled_back_bytes for one in records),
        pull_back_s=sum(one.pull_back_s for one in records),
    )


def run_admission(recording: Recording, serving: Sequence[Segment]) -> RunAdmission | None:
    """``serving`` as in a RunSummary. None where nothing was served."""
    if not serving:
        return None
    return RunAdmission(
        kv=_kv_most(serving),
        streaming=_streaming(serving),
        degraded=degraded_of(recording, serving),
    )


# --- steps ---------------------------------------------------------------------------------


def _waits(entered: Mapping[str, RequestRecord], percentiles: PercentilesOf) -> tuple[Wait, ...]:
    total_s: dict[str, float] = {}
    requests: Counter[str] = Counter()
    for one in entered.values():
        for reason, waited_s in one.waited_s.items():
            total_s[reason] = total_s.get(reason, 0.0) + waited_s
            requests[reason] += 1

    def waited_s_of(reason: str) -> Percentiles:
        return percentiles(
            lambda r: (
                entered[r.request_id].waited_s.get(reason) if r.request_id in entered else None
            )
        )

    return tuple(
        Wait(
            reason=reason,
            requests=requests[reason],
            total_s=seconds,
            waited_s=waited_s_of(reason),
        )
        for reason, seconds in sorted(total_s.items(), key=lambda item: -item[1])
    )


def _kv_most(serving: Sequence[Segment]) -> KvMost | None:
    def most(name: str) -> int | None:
        return max((s.gauges[name] for s in serving if name in s.gauges), default=None)

    held = most("engine.kv_blocks")
    if held is None:
        return None
    return KvMost(
        held_bytes=held,
        shared_bytes=most("engine.kv_shared"),
        kept_bytes=most("engine.kv_kept"),
        offloaded_bytes=most("engine.kv_offloaded"),
    )


def _streaming(serving: Sequence[Segment]) -> Streaming | None:
    steps = [s for s in serving if s.kind == "step" and s.gauges.get("engine.weights_streamed")]
    if not steps:
        return None
    waited_s = sum(s.gauges.get("engine.weights_stream_us", 0) for s in steps) / 1e6
    lasted_s = sum(max(0.0, s.end_s - s.start_s) for s in steps)
    return Streaming(
        steps=len(steps),
        bytes_per_step=sum(s.gauges["engine.weights_streamed"] for s in steps) / len(steps),
        s_per_step=waited_s / len(steps),
        ratio=waited_s / lasted_s if lasted_s else 0.0,
    )
