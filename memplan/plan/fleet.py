"""Nodes over time: one capacity and a demand that grows in, nodes of each month out.

Spare nodes stand beside those that the traffic needs: one for a node that fails, one zone's share for
a zone, a share of all for spot nodes that are taken back together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from memplan.errors import InputError
from memplan.plan.capacity import Capacity, Fleet, FleetPeriod
from memplan.plan.cost import HOURS_PER_MONTH

Loss = Literal["none", "node", "zone", "spot"]
"""What may fail without requests being turned away."""
MOST_MONTHS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Of the whole service."""

    peak_requests_per_s: float
    """At its busiest, in the first month."""
    mean_ratio: float = 0.5
    """Mean over peak, over a month."""
    growth_per_month: float = 0.0
    """0.05 is 5 % more each month."""
    months: int = 12
    loss: Loss = "node"
    zones: int = 3
    spot_ratio: float = 0.25
    """Of all nodes, that may be taken back at once, under the loss of ``spot``."""


def fleet_of(capacity: Capacity, demand: Demand) -> Fleet | None:
    """None where no replica fits, or the run does not say what one serves. Raises InputError for a
    demand that cannot be."""
    _check(demand)
    per_node = capacity.replicas * capacity.requests_per_s
    if per_node <= 0:
        return None
    return Fleet(
        capacity=capacity,
        periods=tuple(_period(demand, month, per_node) for month in range(demand.months)),
    )


def spare_nodes(serving: int, demand: Demand) -> int:
    """So many that what is left after the loss still serves: with nodes spread over Z zones, Z / (Z − 1)
    of those that serve; where a share s of spot nodes goes, 1 / (1 − s)."""
    match demand.loss:
        case "none":
            return 0
        case "node":
            return 1
        case "zone":
            return math.ceil(serving / (demand.zones - 1))
        case "spot":
            return math.ceil(serving / (1 - demand.spot_ratio) - 1e-9) - serving


def _period(demand: Demand, month: int, per_node: float) -> FleetPeriod:
    peak = demand.peak_requests_per_s * (1 + demand.growth_per_month) ** month
    serving = max(1, math.ceil(peak / per_node - 1e-9))
    spare = spare_nodes(serving, demand)
    return FleetPeriod(
        label=f"month {month + 1}",
        hours=HOURS_PER_MONTH,
        requests_per_s=peak,
        nodes_serving=serving,
        nodes_spare=spare,
        utilisation_ratio=peak * demand.mean_ratio / ((serving + spare) * per_node),
    )


def _check(demand: Demand) -> None:
    faults = []
    if not 0 < demand.peak_requests_per_s < 1e9:
        faults.append(
            f"demand: got {demand.peak_requests_per_s:g} requests/s, expected more than 0"
        )
    if not 0 < demand.mean_ratio <= 1:
        faults.append(f"mean over peak: got {demand.mean_ratio:g}, expected 0 to 1")
    if not -0.5 <= demand.growth_per_month <= 2:
        faults.append(f"growth: got {demand.growth_per_month:.0%} a month, expected −50 % to 200 %")
    if not 1 <= demand.months <= MOST_MONTHS:
        faults.append(f"months: got {demand.months}, expected 1 to {MOST_MONTHS}")
    if demand.loss == "zone" and demand.zones < 2:
        faults.append(
            f"zones: got {demand.zones}, expected at least 2, or one that fails takes all"
        )
    if demand.loss == "spot" and not 0 < demand.spot_ratio < 1:
        faults.append(
            f"spot ratio: got {demand.spot_ratio:g}, expected a share of the nodes above 0 and below 1"
        )
    if faults:
        raise InputError.of_faults("plan", faults, hint="correct these options")
