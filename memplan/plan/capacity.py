"""What density hands to fleet and cost: replicas of a variant on a node, and what each one serves.

Rates are of one replica under the traffic that was measured or simulated; unknown is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memplan.plan.nodes import NodeSpec

Evidence = Literal["measured", "fitted", "declared"]
"""measured: seen on the real engine; fitted: by a model of what was seen; declared: a user said so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLoad:
    """What one replica serves of one request class, and what that class holds of its memory."""

    name: str
    requests_per_s: float
    input_tokens_per_s: float
    """All prompt tokens, cached ones included."""
    cached_tokens_per_s: float
    """Of these, tokens whose KV was there already; 0 is measured zero."""
    output_tokens_per_s: float
    resident_mean_bytes: float | None
    """Mean over time of what the class's requests in flight held: KV and activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Replicas of one variant on one kind of node."""

    deployment: str
    variant: str
    node: NodeSpec
    replicas: int
    """0: not even one fits."""
    limited_by: str
    """``memory``, ``gpu_memory``, ``vcpu``, or the name of another constraint of the plan."""
    private_bytes: int
    """The budget of one replica for itself, margin included."""
    shared_bytes: int
    """Mapped weights, which replicas on a node hold once."""
    usable_bytes: int
    """Of the node, less what is kept free."""
    overflow: float | None
    """Share of time in which the node's replicas want more than it has; None where no traffic was
    simulated, as for the sum of peaks."""
    overflow_upper: float | None
    """Upper 95 % confidence limit of it."""
    method: str
    """How ``replicas`` was found, in words that a report can print."""
    evidence: Evidence
    classes: tuple[ClassLoad, ...]
    """What one replica serves. Empty where nothing was served."""

    @property
    def requests_per_s(self) -> float:
        """Of one replica, over all classes."""
        return sum(one.requests_per_s for one in self.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPeriod:
    """Nodes that a stretch of time needs."""

    label: str
    """Such as ``2027-03``, or ``hour 14``."""
    hours: float
    requests_per_s: float
    """Of the whole fleet, at its busiest in this period."""
    nodes_serving: int
    """That the traffic needs."""
    nodes_spare: int
    """On top: N+1, the loss of a zone, of spot nodes."""
    utilisation_ratio: float
    """Mean load over what ``nodes_serving + nodes_spare`` can serve, 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Nodes over time for one capacity; ``periods`` in order, without gaps."""

    capacity: Capacity
    periods: tuple[FleetPeriod, ...]
