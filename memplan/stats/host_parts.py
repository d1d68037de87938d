"""The parts of a host's peak: each byte by the source that names it, what none names unexplained.

At the end of the segment all resident pages are told apart by what holds them; what the peak had
beyond that was given back within the segment, and was activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from memplan.records import EngineFacts, Segment
from memplan.stats.attribution import given_back_bytes, host_transient_bytes
from memplan.stats.kv_pool import kv_parts_of, pool_bytes
from memplan.stats.summary import Attribution

BY_PAGES = (
    "weights: resident pages of the parameters (after warm-up); kv: resident pages of the pool; "
    "activations: tensors live at the step's peak and not at its end, or a lower bound where they are "
    "not counted; runtime: files and private pages of libraries, Python's arenas, code that was "
    "compiled while it ran, what malloc handed out beside weights, less what of its mapped chunks was "
    "never written to; slack: resident pages of malloc's arenas that nobody uses; page cache: mapped "
    "file pages that are neither weights nor there at idle"
)
BY_DIFFERENCE = (
    "weights: resident pages of the parameters (pagemap, after warm-up); kv: blocks written; "
    "activations: tensors live at the step's peak and not at its end, or a lower bound where they are "
    "not counted; runtime: idle minus weights and slack; slack: free bytes in malloc's arenas; page "
    "cache: mapped file pages that are neither weights nor there at idle"
)


def host_attribution(
    segments: Sequence[Segment], engine: EngineFacts, *, composed: Mapping[str, int]
) -> Attribution | None:
    """The parts of the largest peak among ``segments`` (serving ones of one engine start).

    ``composed`` as ``composed_at`` gives it for that segment. None when there is no segment.
    """
    if not segments:
        return None
    worst = max(segments, key=lambda s: s.peak["host.hwm"])
    return host_parts_of(worst, engine, composed=composed)


def composed_at(segments: Iterable[Segment], closed: Segment) -> Mapping[str, int]:
    """The gauges with which the last account of what memory is made of was read, at or before the
    end of ``closed``, in its engine start; empty when there is none."""
    found: Mapping[str, int] = {}
    for segment in segments:
        if segment.engine_start == closed.engine_start and segment.end_s <= closed.end_s:
            found = segment.gauges if "host.heap_free" in segment.gauges else found
    return found


def host_parts_of(
    segment: Segment, engine: EngineFacts, *, composed: Mapping[str, int]
) -> Attribution:
    """The parts of one segment's peak; ``composed`` as ``composed_at`` gives it."""
    by_pages = "engine.kv_resident" in composed
    total = segment.peak["host.hwm"]
    weights = engine.idle.get("engine.weights_resident", 0)
    weights += segment.gauges.get("engine.weights_passing", 0)
    activations = host_transient_bytes(segment) + _compute_buffers_touched(segment, engine)
    # The heap was read when the step had ended: what tensors had held of it was no slack at the peak.
    reused = max(0, activations - max(0, given_back_bytes(segment)))
    slack = max(0, composed.get("host.heap_free", 0) - reused)
    file_growth = max(0, segment.gauges.get("host.file", 0) - engine.idle.get("host.file", 0))
    page_cache = _stale_file_bytes(engine) + file_growth
    kv = _kv_bytes(segment, composed, engine) if engine.device == "cpu" else 0
    runtime = _named_runtime(engine, composed) if by_pages else {}
    runtime_bytes = sum(runtime.values()) if by_pages else _runtime_by_difference(engine)
    explained = weights + kv + activations + runtime_bytes + slack + page_cache
    return Attribution(
        place="cpu",
        total_bytes=total,
        at_s=segment.end_s,
        weights_bytes=weights,
        kv_bytes=kv,
        activations_bytes=activations,
        runtime_bytes=runtime_bytes,
        allocator_slack_bytes=slack,
        page_cache_bytes=page_cache,
        unexplained_bytes=total - explained,
        method=BY_PAGES if by_pages else BY_DIFFERENCE,
        runtime_parts=runtime,
        kv_parts=_kv_parts(kv, segment, engine),
        tensors=segment.tensors,
        peak_module=segment.peak_module,
    )


def _compute_buffers_touched(segment: Segment, engine: EngineFacts) -> int:
    """Of a server that makes its buffers when it starts and touches them when it needs them: what became
    resident since it was at rest, at most what it said that its compute buffers are."""
    foretold = sum(
        size for name, size in engine.predicted.items() if name.startswith(("compute ", "output "))
    )
    grown = segment.gauges.get("host.anon", 0) - engine.idle.get("host.anon", 0)
    return max(0, min(grown, foretold))


def _kv_parts(kv_bytes: int, segment: Segment, engine: EngineFacts) -> Mapping[str, int]:
    """Of a pool that was resident from the start: what requests hold of it, and the rest."""
    if "engine.kv_pool" not in engine.idle or engine.kv_kind != "reserved":
        return kv_parts_of(kv_bytes, segment.gauges)
    used = min(kv_bytes, pool_bytes(segment.gauges))
    return {"of requests": used, "unused": kv_bytes - used}


def _kv_bytes(segment: Segment, composed: Mapping[str, int], engine: EngineFacts) -> int:
    """Resident pages of the pool, corrected by the blocks that came or went since they were counted; all
    of a pool that a server made resident when it started."""
    if engine.kv_kind == "reserved" and "engine.kv_pool" in engine.idle:
        return engine.idle["engine.kv_pool"]
    blocks = pool_bytes(segment.gauges)
    if "engine.kv_resident" not in composed:
        return blocks
    return max(0, composed["engine.kv_resident"] + blocks - pool_bytes(composed))


def _stale_file_bytes(engine: EngineFacts) -> int:
    """Pages of the weight files that are resident at idle and hold no weights in use."""
    mapped = engine.idle.get("engine.weights_resident_mapped", 0)
    return max(0, engine.idle.get("engine.weight_files_resident", mapped) - mapped)


def _named_runtime(engine: EngineFacts, composed: Mapping[str, int]) -> Mapping[str, int]:
    idle = engine.idle
    in_heap = idle.get("engine.weights_resident_heap", 0)
    file_bytes = min(idle.get("host.file", 0), composed.get("host.file", 0))
    parts = {
        "library files": file_bytes
        - idle.get("engine.weights_resident_mapped", 0)
        - _stale_file_bytes(engine),
        "library data": idle.get("host.library_data", 0),
        "library heap": composed.get("host.heap_used", 0)
        - composed.get("host.heap_untouched", 0)
        - in_heap,
        "interpreter": composed.get("host.interpreter", 0),
        "JIT code": composed.get("host.jit_code", 0),
        "adapters": composed.get("engine.adapters", 0) if engine.device == "cpu" else 0,
        "kept buffers": composed.get("engine.buffers", 0),
        "not told apart": _idle_without_source(engine),
    }
    return {name: size for name, size in parts.items() if size > 0}


def _idle_without_source(engine: EngineFacts) -> int:
    """Anonymous memory at idle that an uncounted interpreter or heap must hold; 0 where both are
    counted, so that the rest stays unexplained."""
    idle = engine.idle
    if "host.interpreter" in idle and "host.heap_used" in idle:
        return 0
    counted = (
        *("engine.kv_resident", "host.heap_used", "host.heap_free", "host.library_data"),
        "host.jit_code",
    )
    apart = idle.get("engine.weights_resident", 0) - sum(
        idle.get(f"engine.weights_resident_{place}", 0) for place in ("mapped", "heap")
    )
    known = sum(idle.get(name, 0) for name in (*counted, "host.interpreter")) + apart
    known += idle.get("engine.adapters", 0) if engine.device == "cpu" else 0
    known += idle.get("engine.buffers", 0)
    return max(0, idle.get("host.anon", known) - known)


def _runtime_by_difference(engine: EngineFacts) -> int:
    idle = engine.idle
    known = idle.get("engine.weights_resident", 0) + idle.get("host.heap_free", 0)
    known += idle.get("engine.kv_pool", 0) if engine.device == "cpu" else 0
    return max(0, idle["host.rss"] - known - _stale_file_bytes(engine))
