"""Whose bytes they are: the parts of a process's peak, and each request's share of a segment.

Nothing is guessed: what no source explains is returned as unexplained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from memplan.records import EngineFacts, InFlight, Segment
from memplan.stats.kv_pool import kv_parts_of
from memplan.stats.summary import Attribution

GPU_METHOD = (
    "weights: allocated after loading; kv: the pool; activations: the segment's peak of allocated "
    "minus weights and pool; slack: reserved minus allocated; runtime: device use outside torch at the "
    "segment's end"
)


def host_transient_bytes(segment: Segment) -> int:
    """What a step held for a moment: live tensors that its end no longer had, where they are counted.

    Otherwise, and never less than: the exact peak over what stayed resident at the end. That alone is
    a lower bound, because tensors in heap that malloc keeps do not move resident bytes. Zero outside
    steps: there the difference is memory given back, not memory needed.
    """
    if segment.kind != "step":
        return 0
    tensors = segment.peak.get("engine.tensors", 0) - segment.gauges.get("engine.tensors", 0)
    return max(0, tensors, given_back_bytes(segment))


def given_back_bytes(segment: Segment) -> int:
    """Resident at the peak and no longer at the end, but for a layer of weights that passed through;
    negative where a mark was too low by its drift."""
    passing = segment.gauges.get("engine.weights_passing", 0)
    return segment.peak["host.hwm"] - segment.gauges["host.rss"] - passing


def gpu_transient_bytes(segment: Segment, gpu: str) -> int:
    """``gpu`` is a gauge prefix such as ``cuda.0``."""
    name = f"{gpu}.allocated"
    if segment.kind != "step" or name not in segment.peak:
        return 0
    return max(0, segment.peak[name] - segment.gauges[name])


def owned_bytes(
    flight: InFlight, segment: Segment, *, transient_bytes: int, holds_kv: bool, is_reserved: bool
) -> float:
    """One request's bytes in one segment: its KV, and its share of the transient by tokens run.

    In an engine whose pool is resident from the start, what the request reserved and has not used
    is its own too.
    """
    tokens = segment.prefill_tokens + segment.decode_tokens
    share = transient_bytes * flight.tokens / tokens if tokens else 0.0
    if not holds_kv:
        return share
    return (flight.kv_reserved_bytes if is_reserved else flight.kv_used_bytes) + share


def peak_owned_bytes(
    segments: Iterable[Segment], facts: Mapping[int, EngineFacts], place: str
) -> Mapping[str, float]:
    """Each request's largest ``owned_bytes`` over its segments, by request id.

    ``place`` is ``cpu`` or ``gpu``; KV is counted where the engine keeps it.
    """
    owned: dict[str, float] = {}
    for segment in segments:
        if not segment.in_flight or segment.engine_start not in facts:
            continue
        engine = facts[segment.engine_start]
        on_gpu = engine.device != "cpu"
        transient_bytes = (
            host_transient_bytes(segment)
            if place == "cpu"
            else gpu_transient_bytes(segment, gpu_prefix(engine))
        )
        for flight in segment.in_flight:
            bytes_ = owned_bytes(
                flight,
                segment,
                transient_bytes=transient_bytes,
                holds_kv=on_gpu == (place == "gpu"),
                is_reserved=engine.kv_kind == "reserved",
            )
            owned[flight.request_id] = max(owned.get(flight.request_id, 0.0), bytes_)
    return owned


def gpu_prefix(engine: EngineFacts) -> str:
    return f"cuda.{engine.device.partition(':')[2] or 0}"


def gpu_resident_bytes(segment: Segment, engine: EngineFacts) -> int:
    """Peak of what torch held on the device, plus what was held outside torch at the segment's end."""
    gpu = gpu_prefix(engine)
    return segment.peak.get(f"{gpu}.reserved", 0) + _outside_torch_bytes(segment, engine)


def gpu_attribution(segments: Sequence[Segment], engine: EngineFacts) -> Attribution | None:
    """The parts of the largest device peak; None when nothing ran on a GPU."""
    gpu = gpu_prefix(engine)
    counted = [s for s in segments if f"{gpu}.reserved" in s.peak]
    if engine.device == "cpu" or not counted:
        return None
    return gpu_parts_of(max(counted, key=lambda s: s.peak[f"{gpu}.reserved"]), engine)


def gpu_parts_of(segment: Segment, engine: EngineFacts) -> Attribution:
    """The parts of one segment's device peak; its gauges must be there."""
    gpu = gpu_prefix(engine)
    reserved, allocated = segment.peak[f"{gpu}.reserved"], segment.peak[f"{gpu}.allocated"]
    pool = engine.kv_pool_tokens * engine.kv_bytes_per_token
    weights = max(0, engine.loaded.get(f"{gpu}.allocated", 0) - pool)
    runtime = _outside_torch_bytes(segment, engine)
    activations = max(0, allocated - weights - pool)
    slack = reserved - allocated
    total = reserved + runtime
    return Attribution(
        place="gpu",
        total_bytes=total,
        at_s=segment.end_s,
        weights_bytes=weights,
        kv_bytes=pool,
        activations_bytes=activations,
        runtime_bytes=runtime,
        allocator_slack_bytes=slack,
        page_cache_bytes=0,
        unexplained_bytes=total - weights - pool - activations - runtime - slack,
        method=GPU_METHOD,
        kv_parts=kv_parts_of(pool, segment.gauges, is_reserved=True),
    )


def _outside_torch_bytes(segment: Segment, engine: EngineFacts) -> int:
    """CUDA context, libraries' workspaces: device use that torch's allocator does not know. Read at the
    segment's end; at idle, where the segment has no reading."""
    gpu = gpu_prefix(engine)
    known = segment.gauges if f"{gpu}.device_used" in segment.gauges else engine.idle
    return max(0, known.get(f"{gpu}.device_used", 0) - known.get(f"{gpu}.reserved", 0))
