"""Whether what ran is what was asked for: the schedule, the concurrency, the requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memplan.records import Finding, Recording
from memplan.stats.percentiles import rank_of

_LATE_S = 0.1
_SATURATED_RATIO = 0.2


def _interrupted(recording: Recording) -> Iterator[Finding]:
    if recording.end is not None and recording.end.reason == "interrupted":
        yield Finding(
            code="interrupted",
            text="The run was ended by Ctrl-C before its workload was; figures cover what ran.",
            hint="Replay without interruption, or with --limit for a shorter workload.",
        )


def _late_sends(recording: Recording) -> Iterator[Finding]:
    lags = sorted(
        o.sent_s - o.intended_s
        for o in recording.outcomes.values()
        if o.sent_s is not None and o.intended_s is not None
    )
    if lags and (p99 := lags[rank_of(len(lags), 0.99)]) > _LATE_S:
        yield Finding(
            code="schedule_not_kept",
            text=f"Requests were sent up to {p99:.3f} s late (p99): the peaks are those of this "
            "sending, not of the trace.",
            hint="Leave a core free for memplan (settings.threads one below the cores).",
        )


def _saturated(recording: Recording) -> Iterator[Finding]:
    """A queue in front of the engine hides concurrency that a faster fleet would have had."""
    steps = [s for s in recording.segments if s.kind == "step"]
    busy_s = sum(max(0.0, s.end_s - s.start_s) for s in steps)
    queued_s = sum(max(0.0, s.end_s - s.start_s) for s in steps if s.waiting)
    if recording.header.kind == "replay" and busy_s and queued_s / busy_s > _SATURATED_RATIO:
        yield Finding(
            code="engine_saturated",
            text=f"For {queued_s / busy_s:.0%} of its busy time the engine had requests waiting "
            "outside its batch: resident memory was capped by its limits, and latency includes "
            "the queue.",
            hint="Raise --dilation, or max_requests and max_kv_tokens in model.yaml.",
        )


def _no_reference(recording: Recording) -> Iterator[Finding]:
    workload = recording.header.workload
    if recording.header.kind == "replay" and workload.reference is None:
        yield Finding(
            code="no_reference_concurrency",
            text="The trace states arrivals and lengths, not service times. The concurrency of this "
            "replay is the one that this engine reached at this dilation; it is not shown to be "
            "the concurrency of the fleet that made the trace.",
            hint="Say what the fleet took: --reference prefill=14000,tpot=13ms, or observed.",
        )


def _not_run(recording: Recording) -> Iterator[Finding]:
    reasons: dict[str, int] = {}
    for outcome in recording.outcomes.values():
        if outcome.outcome in ("rejected", "failed"):
            reasons[outcome.reason or "unknown"] = reasons.get(outcome.reason or "unknown", 0) + 1
    if reasons:
        told = ", ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items()))
        yield Finding(
            code="requests_not_run",
            text=f"Not every request was completed: {told}. What a request held "
            "until then is in the figures; what it would have held is not.",
            hint="See the reasons in requests.jsonl; raise the limit that they name.",
        )


def _shortened(recording: Recording) -> Iterator[Finding]:
    short = sum(o.is_shortened for o in recording.outcomes.values())
    if short:
        yield Finding(
            code="requests_shortened",
            text=f"{short:,} of {len(recording.requests):,} requests came when the engine's queue was "
            "full and were answered with fewer tokens than they asked for: their memory and latency "
            "are those of shorter requests.",
            hint="Raise queue_limit or --dilation; overload: reject shows them as rejected.",
        )


def _lengths_differ(recording: Recording) -> Iterator[Finding]:
    asked = {r.request_id: (r.input_tokens, r.output_tokens) for r in recording.requests}
    wrong = [
        o.request_id
        for o in recording.outcomes.values()
        if o.outcome == "completed"
        and o.request_id in asked  # not so where the schedule's own tail was cut off
        and not o.is_shortened
        and asked[o.request_id] != (o.input_tokens_run, o.output_tokens_run)
    ]
    if wrong:
        yield Finding(
            code="lengths_differ",
            text=f"{len(wrong)} completed requests ran other token counts than asked for "
            f"(first: {wrong[0]}).",
            hint="The engine did not honour exact lengths; its memory is of another workload.",
        )


RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (
    _interrupted,
    _late_sends,
    _saturated,
    _no_reference,
    _not_run,
    _shortened,
    _lengths_differ,
)
