"""Nodes over time, worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import CAPACITY, NODE

from memplan.errors import InputError
from memplan.plan.capacity import Capacity
from memplan.plan.fleet import Demand, fleet_of, spare_nodes


def test_nodes_grow_with_the_traffic_and_one_is_spare() -> None:
    # A node serves 4 replicas × 5 requests/s = 20.
    fleet = fleet_of(CAPACITY, Demand(peak_requests_per_s=40, growth_per_month=0.5, months=3))
    assert fleet is not None
    assert [one.nodes_serving for one in fleet.periods] == [2, 3, 5]  # 40, 60, 90
    assert [one.nodes_spare for one in fleet.periods] == [1, 1, 1]
    assert fleet.periods[0].utilisation_ratio == pytest.approx(40 * 0.5 / (3 * 20))


@given(st.integers(1, 500), st.integers(2, 6))
def test_the_loss_of_a_zone_leaves_enough(serving: int, zones: int) -> None:
    demand = Demand(peak_requests_per_s=1, loss="zone", zones=zones)
    nodes = serving + spare_nodes(serving, demand)
    fullest = -(-nodes // zones)
    assert nodes - fullest >= serving
    # One spare less would not be enough, but for what does not spread evenly.
    assert nodes - 1 - -(-(nodes - 1) // zones) < serving + 1


@given(st.integers(1, 500), st.floats(0.01, 0.9))
def test_what_spot_nodes_leave_is_enough_and_one_spare_less_is_not(
    serving: int, ratio: float
) -> None:
    demand = Demand(peak_requests_per_s=1, loss="spot", spot_ratio=ratio)
    nodes = serving + spare_nodes(serving, demand)
    assert nodes - nodes * ratio >= serving - 1e-6
    assert nodes - 1 - (nodes - 1) * ratio < serving


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_of_spot_nodes_that_cannot_be_is_a_fault(ratio: float) -> None:
    asked = Demand(peak_requests_per_s=1, loss="spot", spot_ratio=ratio)
    with pytest.raises(InputError, match="spot ratio"):
        fleet_of(CAPACITY, asked)


def test_without_a_replica_or_a_rate_there_is_no_fleet() -> None:
    none = Capacity(**{**{f: getattr(CAPACITY, f) for f in CAPACITY.__slots__}, "replicas": 0})
    assert fleet_of(none, Demand(peak_requests_per_s=1)) is None
    silent = Capacity(**{**{f: getattr(CAPACITY, f) for f in CAPACITY.__slots__}, "classes": ()})
    assert fleet_of(silent, Demand(peak_requests_per_s=1)) is None
    assert NODE.vcpu == 64


def test_every_fault_of_a_demand_is_told_at_once() -> None:
    asked = Demand(
        peak_requests_per_s=0, mean_ratio=2, growth_per_month=9, months=0, loss="zone", zones=1
    )
    with pytest.raises(InputError) as caught:
        fleet_of(CAPACITY, asked)
    for word in ("demand", "mean over peak", "growth", "months", "zones"):
        assert word in caught.value.message
