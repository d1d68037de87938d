"""How many replicas a node holds, by peak: one replica's need and one node in, a Density out.

The conservative figure: every replica is given the largest memory that the process was ever seen
to hold, as if all replicas peaked at once. It has not been checked under a real memory limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memplan.errors import InputError
from memplan.plan.nodes import NodeSpec
from memplan.stats.summary import RunSummary

Limit = Literal["memory", "vcpu", "gpu_memory"]

HEADROOM_RATIO = 0.10
"""For the kernel, the node's agents and what no run has shown yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaNeed:
    """What one replica takes from a node at its peak."""

    private_peak_bytes: int
    """Held by each replica for itself."""
    shared_bytes: int
    """Mapped weights, which replicas on one node hold once."""
    threads: int | None
    """Compute threads of one replica; None where the engine did not say."""
    gpu_peak_bytes: int | None
    """None where nothing was measured on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """Replicas a node holds and what stops the next one; 0 is an answer, not an error."""

    replicas: int
    limited_by: Limit
    usable_bytes: int
    """The node's memory less the headroom."""
    used_bytes: int
    """Of it, with that many replicas at their peak."""
    headroom_ratio: float
    is_nominal: bool
    """The node's memory is a price list's figure: no measured one is known."""


def need_of(summary: RunSummary, threads: int | None) -> ReplicaNeed | None:
    """The replica that a run measured; None where its peak is unknown."""
    if summary.peak_bytes is None:
        return None
    peak_bytes = max(summary.peak_bytes, summary.load_peak_bytes or 0)
    return ReplicaNeed(
        private_peak_bytes=peak_bytes - summary.shared_bytes,
        shared_bytes=summary.shared_bytes,
        threads=threads,
        gpu_peak_bytes=summary.gpu_peak_bytes,
    )


def density_of(
    need: ReplicaNeed, node: NodeSpec, *, headroom_ratio: float = HEADROOM_RATIO
) -> Density | None:
    """None where the node's GPU memory is needed and unknown: it is not guessed.

    Raises InputError for a need or a headroom that no node could be planned with.
    """
    _check(need, headroom_ratio)
    usable_bytes = int(node.memory_bytes * (1 - headroom_ratio))
    by_memory = max(0, usable_bytes - need.shared_bytes) // need.private_peak_bytes
    limits: list[tuple[int, Limit]] = [(by_memory, "memory")]
    if need.threads is not None:
        limits.append((node.vcpu // need.threads, "vcpu"))
    if need.gpu_peak_bytes is not None:
        by_gpu = replicas_by_gpu(need.gpu_peak_bytes, node, headroom_ratio)
        if by_gpu is None:
            return None
        limits.append((by_gpu, "gpu_memory"))
    replicas, limited_by = min(limits, key=lambda limit: limit[0])
    return Density(
        replicas=replicas,
        limited_by=limited_by,
        usable_bytes=usable_bytes,
        used_bytes=need.shared_bytes + replicas * need.private_peak_bytes if replicas else 0,
        headroom_ratio=headroom_ratio,
        is_nominal=node.memory_measured_bytes is None,
    )


def replicas_by_gpu(peak_bytes: int, node: NodeSpec, headroom_ratio: float) -> int | None:
    """A replica lives on one GPU: what is left over on two of them does not hold a third."""
    if not node.has_gpu:
        return 0
    if node.gpu_count is None or node.gpu_memory_bytes_each is None:
        return None
    return node.gpu_count * (int(node.gpu_memory_bytes_each * (1 - headroom_ratio)) // peak_bytes)


def _check(need: ReplicaNeed, headroom_ratio: float) -> None:
    if not 0 <= headroom_ratio < 1:
        raise InputError(
            f"headroom: got {headroom_ratio}, expected a share of the node from 0 to below 1",
            hint=f"{HEADROOM_RATIO} keeps a tenth of the node's memory free",
        )
    for name, value in (
        ("private peak in bytes", need.private_peak_bytes),
        ("threads", need.threads),
        ("GPU peak in bytes", need.gpu_peak_bytes),
    ):
        if value is not None and value <= 0:
            raise InputError(
                f"what one replica needs: {name}: got {value}, expected more than 0",
                hint="measure the deployment again: a replica that needs nothing was not seen",
            )
