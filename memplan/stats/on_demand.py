"""What the engine loaded when it was first needed, and what collecting garbage took of its time."""

from __future__ import annotations

from memplan.records import Recording, RequestRecord
from memplan.stats.summary import AdapterUse, Garbage, OnDemand


def on_demand_of(recording: Recording) -> OnDemand | None:
    """None where the engine has no adapters and no tokenizer."""
    gauges = [s.gauges for s in recording.segments]
    gauges += [engine.idle for engine in recording.engines]
    adapters = [one["engine.adapters"] for one in gauges if "engine.adapters" in one]
    tokenizer = [one["engine.tokenizer"] for one in gauges if "engine.tokenizer" in one]
    if not adapters and not tokenizer:
        return None
    by_adapter: dict[str, list[RequestRecord]] = {}
    for outcome in recording.outcomes.values():
        if outcome.adapter is not None and outcome.outcome != "rejected":
            by_adapter.setdefault(outcome.adapter, []).append(outcome)
    first_uses = [o.tokenizer_load_s for o in recording.outcomes.values() if o.tokenizer_load_s]
    return OnDemand(
        adapters=tuple(
            AdapterUse(
                name=name,
                requests=len(used),
                waited=sum(1 for one in used if one.adapter_load_s),
                longest_load_s=max(one.adapter_load_s for one in used),
            )
            for name, used in sorted(by_adapter.items())
        ),
        adapters_peak_bytes=max(adapters, default=None),
        tokenizer_bytes=max(tokenizer, default=None),
        tokenizer_load_s=max(first_uses, default=None),
    )


def garbage_of(recording: Recording) -> Garbage | None:
    """None where it was not counted."""
    counted = [s for s in recording.segments if "engine.gc_us" in s.gauges]
    if not counted:
        return None
    return Garbage(
        collections=sum(s.gauges["engine.gc_runs"] for s in counted),
        total_s=sum(s.gauges["engine.gc_us"] for s in counted) / 1e6,
        longest_s=max(s.gauges["engine.gc_us"] for s in counted) / 1e6,
    )
