"""Whose bytes they are: the parts of a process's peak, and each request's share of a segment.

Nothing is guessed: what no source explains is returned as unexplained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from memplan.records import EngineFacts, InFlight, Segment
from memplan.stats.summary import Attribution

HOST_METHOD = (
    "weights: resident pages of the parameters (pagemap, after warm-up); kv: blocks written; "
    "activations: tensors live at the step's peak and not at its end, or a lower bound where they are "
    "not counted; runtime: idle minus weights and slack; slack: free bytes in malloc's arenas; page "
    "cache: mapped file pages that are neither weights nor there at idle"
)
GPU_METHOD = (
    "weights: allocated after loading; kv: the pool; activations: the segment's peak of allocated "
    "minus weights and pool; slack: reserved minus allocated; runtime: device use outside torch"
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
    return max(0, tensors, _given_back_bytes(segment))


def _given_back_bytes(segment: Segment) -> int:
    return segment.peak["host.hwm"] - segment.gauges["host.rss"]


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
    """Peak of what torch held on the device, plus what the process held outside torch at idle."""
    gpu = gpu_prefix(engine)
    return segment.peak.get(f"{gpu}.reserved", 0) + _outside_torch_bytes(engine)


def host_attribution(
    segments: Sequence[Segment], engine: EngineFacts, *, heap_free_bytes: int
) -> Attribution | None:
    """The parts of the largest peak among ``segments`` (serving ones of one engine start).

    ``heap_free_bytes`` is malloc's last account at or before it. None when there is no segment.
    """
    if not segments:
        return None
    worst = max(segments, key=lambda s: s.peak["host.hwm"])
    return host_parts_of(worst, engine, heap_free_bytes=heap_free_bytes)


def host_parts_of(segment: Segment, engine: EngineFacts, *, heap_free_bytes: int) -> Attribution:
    """The parts of one segment's peak; ``heap_free_bytes`` as ``heap_free_bytes_at`` gives it."""
    total = segment.peak["host.hwm"]
    weights = engine.idle.get("engine.weights_resident", 0)
    mapped = engine.idle.get("engine.weights_resident_mapped", 0)
    stale_idle = max(0, engine.idle.get("engine.weight_files_resident", mapped) - mapped)
    slack_idle = engine.idle.get("host.heap_free", 0)
    runtime = max(0, engine.idle["host.rss"] - weights - stale_idle - slack_idle)
    file_growth = max(0, segment.gauges.get("host.file", 0) - engine.idle.get("host.file", 0))
    activations = host_transient_bytes(segment)
    kv = segment.gauges.get("engine.kv_blocks", 0) if engine.device == "cpu" else 0
    # The heap was read when the step had ended: what tensors had held of it was no slack at the peak.
    slack = max(0, heap_free_bytes - max(0, activations - max(0, _given_back_bytes(segment))))
    page_cache = stale_idle + file_growth
    explained = weights + kv + activations + runtime + slack + page_cache
    return Attribution(
        place="cpu",
        total_bytes=total,
        at_s=segment.end_s,
        weights_bytes=weights,
        kv_bytes=kv,
        activations_bytes=activations,
        runtime_bytes=runtime,
        allocator_slack_bytes=slack,
        page_cache_bytes=page_cache,
        unexplained_bytes=total - explained,
        method=HOST_METHOD,
    )


def heap_free_bytes_at(segments: Iterable[Segment], closed: Segment) -> int:
    """Malloc's last account of free heap at or before the end of ``closed``, in its engine start."""
    heap_free = 0
    for segment in segments:
        if segment.engine_start == closed.engine_start and segment.end_s <= closed.end_s:
            heap_free = segment.gauges.get("host.heap_free", heap_free)
    return heap_free


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
    runtime = _outside_torch_bytes(engine)
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
    )


def _outside_torch_bytes(engine: EngineFacts) -> int:
    """CUDA context, libraries' workspaces: device use that torch's allocator does not know."""
    gpu = gpu_prefix(engine)
    used, reserved = engine.idle.get(f"{gpu}.device_used", 0), engine.idle.get(f"{gpu}.reserved", 0)
    return max(0, used - reserved)
