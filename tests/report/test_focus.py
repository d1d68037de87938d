"""A plan's months in FinOps FOCUS columns: they add up to the plan, and nothing unknown is a zero."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from datetime import date

import pytest
from planned import CAPACITY, NODE

from memplan.plan.capacity import Fleet
from memplan.plan.fleet import Demand, fleet_of
from memplan.plan.tco import tco_of
from memplan.report.focus import COLUMNS, focus_csv
from memplan.specs.costs import Costs, OwnNode

DEMAND = Demand(peak_requests_per_s=40, months=14, growth_per_month=0.1)
OWN = OwnNode(
    cpu_chassis_nic=4000, dram_gib=100, dram_usd_per_gib=20, watts=500, pue=1.2, usd_per_kwh=0.1
)
MOST = Costs(
    memplan_costs=1, support_ratio=0.1, people_usd_per_month=1000, network_usd_per_month=50
)


def fleet(**changed: object) -> Fleet:
    found = fleet_of(replace(CAPACITY, **changed), DEMAND)  # type: ignore[arg-type]
    assert found is not None
    return found


def rows_of(costs: Costs, **changed: object) -> list[dict[str, str]]:
    text = focus_csv(fleet(**changed), costs, date(2026, 12, 1))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    return rows


@pytest.mark.parametrize(
    "costs", [Costs(memplan_costs=1), MOST, MOST.model_copy(update={"own": OWN})]
)
def test_a_months_effective_cost_is_the_plans(costs: Costs) -> None:
    rows = rows_of(costs)
    first = [one for one in rows if one["ChargePeriodStart"] == "2026-12-01T00:00:00Z"]
    month = tco_of(fleet(), costs, DEMAND.mean_ratio).usd_per_month
    assert math.fsum(float(one["EffectiveCost"]) for one in first) == pytest.approx(month)
    assert {json.loads(one["Tags"])["class"] for one in first} == {"short", "long"}
    # A quarter of the memory is held by short requests.
    short = [one for one in first if json.loads(one["Tags"])["class"] == "short"]
    assert sum(float(one["EffectiveCost"]) for one in short) == pytest.approx((month or 0) / 4)


def test_months_follow_each_other_over_the_years_end() -> None:
    starts = list(dict.fromkeys(one["ChargePeriodStart"] for one in rows_of(MOST)))
    ends = list(dict.fromkeys(one["ChargePeriodEnd"] for one in rows_of(MOST)))
    assert len(starts) == DEMAND.months
    assert starts[:3] == [f"{m}-01T00:00:00Z" for m in ("2026-12", "2027-01", "2027-02")]
    assert starts[-1] == "2028-01-01T00:00:00Z"
    assert starts[1:] == ends[:-1]


def test_a_nodes_hours_times_its_price_are_its_cost() -> None:
    for one in rows_of(Costs(memplan_costs=1)):
        hours, price = float(one["PricingQuantity"]), float(one["ContractedUnitPrice"])
        assert hours * price == pytest.approx(float(one["EffectiveCost"]))
        assert one["PricingCategory"] == "Standard"
        assert (one["x_Planned"], one["BillingCurrency"]) == ("true", "USD")


def test_an_unknown_price_is_empty_and_never_zero() -> None:
    rows = rows_of(MOST, node=replace(NODE, usd_per_h_on_demand=None))
    nodes = [one for one in rows if one["SkuId"]]
    assert nodes
    assert {one[name] for one in nodes for name in ("EffectiveCost", "ListCost", "BilledCost")} == {
        ""
    }


def test_where_no_class_is_known_to_hold_memory_the_cost_stands_whole() -> None:
    nobody = tuple(replace(one, resident_mean_bytes=None) for one in CAPACITY.classes)
    rows = rows_of(Costs(memplan_costs=1), classes=nobody)
    assert len(rows) == DEMAND.months
    assert all("class" not in json.loads(one["Tags"]) for one in rows)
