"""One run and one node in, how many replicas it holds and why not one more.

Four counts stand beside each other: by the measured path over time (the answer), by the sum of peaks, by
slots of the longest request, and what the other limits of the node allow.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.plan.capacity import Capacity, ClassLoad, Evidence
from memplan.plan.density import ReplicaNeed, replicas_by_gpu
from memplan.plan.memory_model import MemoryModel
from memplan.plan.node_memory import HeldOut, Overflow, Path, held_out, most_replicas, overflow_of
from memplan.plan.nodes import NodeSpec
from memplan.records import EngineFacts, Recording
from memplan.stats.summary import RunSummary

METHOD = (
    "the measured path of one replica's exact peaks, superposed from {draws} sets of random moments, in "
    "the memory that the margin leaves"
)

ON_GPU = "device memory is counted by the peak of each replica, on one GPU each"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a plan is to keep."""

    overflow: float = 1e-4
    """Share of time in which replicas may want more than the node has."""
    headroom_ratio: float = 0.1
    """Of the node, for its kernel and agents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """Replicas of one variant on one kind of node."""

    capacity: Capacity
    overflow: Overflow
    """Of the replicas that are planned, in the node's whole usable memory."""
    held_out: HeldOut | None
    """None where the run is too short to be parted."""
    by_path: int
    """With the margin, before other limits."""
    by_peaks: int
    """Every replica at its peak at once."""
    by_slots: int | None
    """Every replica with as many requests of the longest context as it may run; None without a model, or
    where that is beyond what was measured."""
    by_restart: int
    """While one of them loads anew beside the others, in host memory."""
    by_vcpu: int | None
    by_gpu: int | None
    """Every replica on one GPU, at its peak there: an allocator gives device memory back to nobody. None
    where none was used."""
    next_overflow: float
    """Share of time over, with one replica more."""


def node_plan(
    summary: RunSummary,
    recording: Recording,
    node: NodeSpec,
    *,
    path: Path,
    files: int,
    need: ReplicaNeed,
    model: MemoryModel | None,
    asked: Asked,
) -> NodePlan | None:
    """``files``: bytes of files that all replicas map, held once. None where a GPU is needed
    and the node has none or its memory is unknown, and for a node with GPUs where none is needed."""
    if node.has_gpu != (need.gpu_peak_bytes is not None) or not len(path):
        return None
    by_gpu = None
    if need.gpu_peak_bytes is not None:
        by_gpu = replicas_by_gpu(need.gpu_peak_bytes, node, asked.headroom_ratio)
        if by_gpu is None:
            return None
    usable = int(node.memory_bytes * (1 - asked.headroom_ratio))
    shared = files
    tried = held_out(path, usable, shared, target=asked.overflow)
    margin = tried.margin_ratio if tried else 0.0
    room = shared + (usable - shared) / (1 + margin)
    by_path = most_replicas(path, room, shared, target=asked.overflow).replicas
    by_peaks = max(0, usable - need.shared_bytes) // need.private_peak_bytes
    load_bytes = max(0, (summary.load_peak_bytes or 0) - shared)
    left = usable - load_bytes
    by_restart = 1 + most_replicas(path, left, shared, target=asked.overflow).replicas
    by_restart = by_restart if shared + max(load_bytes, float(path.max())) <= usable else 0
    by_vcpu = node.vcpu // need.threads if need.threads else None
    counts = {"memory": by_path, "rolling restart": by_restart}
    counts |= {} if by_vcpu is None else {"vcpu": by_vcpu}
    counts |= {} if by_gpu is None else {"gpu_memory": by_gpu}
    limited_by = min(counts, key=lambda name: counts[name])
    replicas = counts[limited_by]
    over = overflow_of(path, replicas, usable, shared)
    return NodePlan(
        capacity=Capacity(
            deployment=summary.deployment_name,
            variant=summary.variant,
            node=node,
            replicas=replicas,
            limited_by=limited_by,
            private_bytes=need.private_peak_bytes,
            shared_bytes=shared,
            usable_bytes=usable,
            overflow=over.share,
            overflow_upper=over.upper,
            method=f"{METHOD.format(draws=60)}; margin {margin:.0%}"
            + ("" if by_gpu is None else f"; {ON_GPU}"),
            evidence=_evidence(tried),
            classes=loads_of(summary, recording),
        ),
        overflow=over,
        held_out=tried,
        by_path=by_path,
        by_peaks=by_peaks,
        by_slots=_by_slots(model, recording.engines[-1], usable, shared),
        by_restart=by_restart,
        by_vcpu=by_vcpu,
        by_gpu=by_gpu,
        # One more than the GPUs hold is over for as long as it runs.
        next_overflow=1.0
        if by_gpu is not None and replicas + 1 > by_gpu
        else overflow_of(path, replicas + 1, usable, shared).share,
    )


def loads_of(summary: RunSummary, recording: Recording) -> tuple[ClassLoad, ...]:
    """What one replica served of each class in the run. A rate is over the time from the first send to
    the last end."""
    if not summary.duration_s or summary.completed_per_s is None:
        return ()
    done: dict[str, list[tuple[int, int, int]]] = {one.name: [] for one in summary.classes}
    for request in recording.requests:
        record = recording.outcomes[request.request_id]
        if record.outcome == "completed" and request.class_name in done:
            done[request.class_name].append(
                (record.input_tokens_run, record.shared_tokens, record.output_tokens_run)
            )
    total = sum(len(rows) for rows in done.values())
    served_s = total / summary.completed_per_s if summary.completed_per_s else 0.0
    if not served_s:
        return ()
    names = {request.request_id: request.class_name for request in recording.requests}
    held = dict.fromkeys(done, 0.0)
    for segment in recording.segments:
        for flight in segment.in_flight:
            if (name := names.get(flight.request_id)) in held:
                assert name is not None
                held[name] += flight.kv_reserved_bytes * (segment.end_s - segment.start_s)
    return tuple(
        ClassLoad(
            name=name,
            requests_per_s=len(rows) / served_s,
            input_tokens_per_s=sum(row[0] for row in rows) / served_s,
            cached_tokens_per_s=sum(row[1] for row in rows) / served_s,
            output_tokens_per_s=sum(row[2] for row in rows) / served_s,
            resident_mean_bytes=held[name] / served_s,
        )
        for name, rows in done.items()
    )


def _by_slots(
    model: MemoryModel | None, engine: EngineFacts, usable: int, shared: int
) -> int | None:
    """What a planner without traffic would say: every slot at the longest context, and the model's law
    carried there, however far that is."""
    if model is None:
        return None
    tokens = min(engine.max_requests * engine.context_tokens, engine.kv_pool_tokens)
    asked = model.predict(
        kv_bytes=tokens * engine.kv_bytes_per_token,
        sequences=engine.max_requests,
        largest_step_tokens=model.measured["largest_step_tokens"][1],
    )
    private = asked.resident_bytes - shared
    return int(max(0, usable - shared) // private) if private > 0 else None


def _evidence(tried: HeldOut | None) -> Evidence:
    return "measured" if tried is not None and tried.holds else "declared"
