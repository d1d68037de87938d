"""What one replica may be given, and the limits that follow: a run in, numbers for a manifest out.

Limits are what the run was seen to need, with the margin on top; what it did not show is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from memplan.records import Recording
from memplan.stats.summary import RunSummary
from memplan.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBudget:
    """Of one request of the class."""

    name: str
    bytes: float | None
    """What it may own: the p99 of what requests owned, or the largest seen where p99 is withheld."""
    is_p99: bool
    upper_bytes: float | None
    """The upper 95 % bound of that p99; None where the run holds none."""
    in_flight: int
    """The most of them at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaBudget:
    """Of one replica; bytes are of host memory unless the name says otherwise."""

    weights_bytes: int
    runtime_bytes: int
    """What an idle engine holds besides its weights."""
    kv_bytes: int
    """The most that blocks of the pool held at once."""
    activations_bytes: int
    """The most above idle and KV."""
    margin_bytes: int
    request_bytes: int
    """The container's request: its sum, rounded up to whole MiB."""
    limit_bytes: int
    """The container's limit: that, or what loading takes, whichever is more."""
    requests_in_flight: int
    kv_tokens_in_flight: int
    batch_tokens: int
    queue: int
    context_tokens: int
    block_tokens: int
    classes: tuple[ClassBudget, ...]


def budget_of(
    summary: RunSummary, recording: Recording, *, margin_ratio: float
) -> ReplicaBudget | None:
    """None where nothing served, or the peak is unknown."""
    steps = [one for one in recording.segments if one.kind == "step"]
    if not steps or summary.peak_bytes is None or not recording.engines:
        return None
    engine = recording.engines[-1]
    idle_bytes = summary.idle_bytes or 0
    kv_bytes = max(
        _kv_bytes(one.gauges, [f.kv_reserved_bytes for f in one.in_flight]) for one in steps
    )
    above = max(0, summary.peak_bytes - idle_bytes)
    activations_bytes = max(0, above - kv_bytes)
    margin_bytes = math.ceil(margin_ratio * above)
    needed = _whole_mib(idle_bytes + above + margin_bytes)
    per_token = max(1, engine.kv_bytes_per_token)
    classes = {request.request_id: request.class_name for request in recording.requests}
    return ReplicaBudget(
        weights_bytes=engine.weights_bytes,
        runtime_bytes=max(0, idle_bytes - engine.weights_bytes),
        kv_bytes=kv_bytes,
        activations_bytes=activations_bytes,
        margin_bytes=margin_bytes,
        request_bytes=needed,
        limit_bytes=max(needed, _whole_mib(summary.load_peak_bytes or 0)),
        requests_in_flight=max(len(one.in_flight) for one in steps),
        kv_tokens_in_flight=-(-kv_bytes // per_token),
        batch_tokens=max(one.prefill_tokens + one.decode_tokens for one in steps),
        queue=max(one.waiting for one in steps),
        context_tokens=engine.context_tokens,
        block_tokens=engine.kv_block_tokens,
        classes=tuple(
            ClassBudget(
                name=one.name,
                bytes=one.cpu.attributed.p99.value
                if one.cpu.attributed.p99.value is not None
                else one.cpu.attributed.peak,
                is_p99=one.cpu.attributed.p99.value is not None,
                upper_bytes=one.cpu.attributed.p99.high,
                in_flight=max(
                    sum(classes.get(f.request_id) == one.name for f in step.in_flight)
                    for step in steps
                ),
            )
            for one in summary.classes
        ),
    )


def snippets_of(budget: ReplicaBudget) -> Mapping[str, str]:
    """Ready text by what reads it. Lengths and counts are those that the run needed."""
    request, limit = budget.request_bytes // MIB, budget.limit_bytes // MIB
    tokens = _whole_blocks(budget.kv_tokens_in_flight, budget.block_tokens)
    running, batch = max(1, budget.requests_in_flight), max(budget.batch_tokens, 1)
    return {
        "Kubernetes": (
            f"resources:\n  requests: {{memory: {request}Mi}}\n  limits: {{memory: {limit}Mi}}"
        ),
        "memplan": (
            "settings:\n"
            f"  max_requests: {running}\n"
            f"  max_kv_tokens: {tokens}\n"
            f"  max_batch_tokens: {max(batch, running)}\n"
            f"  memory_budget: {request}MiB"
        ),
        "vLLM": (
            f"--max-num-seqs {running} --max-num-batched-tokens {max(batch, running)} "
            f"--max-model-len {budget.context_tokens} --kv-cache-memory-bytes {budget.kv_bytes}"
        ),
        "llama.cpp": (
            f"-np {running} -c {tokens} -b {max(batch, 32)} -ub {max(min(batch, 512), 32)} "
            "-cram 0 --no-kv-unified"
        ),
    }


def _kv_bytes(gauges: Mapping[str, int], reserved: list[int]) -> int:
    return gauges.get("engine.kv_blocks", sum(reserved))


def _whole_mib(size_bytes: int) -> int:
    return -(-size_bytes // MIB) * MIB


def _whole_blocks(tokens: int, block_tokens: int) -> int:
    block = max(1, block_tokens)
    return max(1, -(-tokens // block)) * block
