from dataclasses import replace

import pytest

from memplan.plan.cost import HOURS_PER_MONTH, cost_of
from memplan.plan.density import Density
from memplan.plan.nodes import parse_nodes
from memplan.units import GIB

COLUMNS = (
    "provider,instance,kind,region,vcpu,mem_gib_nominal,mem_gib_measured_or_allocatable,mem_note,"
    "gpu,gpu_count,gpu_mem_mib_each,usd_h_ondemand,usd_h_1y,usd_h_3y,usd_h_spot,source_price,"
    "source_shape,date"
)
ROW = "gcp,n2,cpu,us,64,100,,,,0,,10.0,8.0,,4.0,price list,shape list,2026-07-30"
(NODE,) = parse_nodes(f"{COLUMNS}\n{ROW}\n", "nodes.csv")
TWENTY = Density(
    replicas=20,
    limited_by="memory",
    usable_bytes=90 * GIB,
    used_bytes=80 * GIB,
    headroom_ratio=0.1,
    is_nominal=True,
)


def test_an_on_demand_node_is_shared_out_over_its_replicas() -> None:
    price = cost_of(TWENTY, NODE, completed_per_s=0.5, output_tokens_per_s=50.0).on_demand
    assert price is not None
    assert price.usd_per_replica_month == pytest.approx(10.0 * HOURS_PER_MONTH / 20)
    assert price.usd_per_gib_month == pytest.approx(73.0)
    # 20 replicas at 0.5/s finish 36,000 requests in the hour that costs $10.
    assert price.usd_per_1k_requests == pytest.approx(10.0 / 36)
    assert price.usd_per_1m_output_tokens == pytest.approx(10.0 / 3.6)


def test_only_known_prices_are_priced() -> None:
    cost = cost_of(TWENTY, NODE, 0.5, 50.0)
    assert [price.basis for price in cost.prices] == ["on demand", "1 year", "spot"]
    unpriced = replace(NODE, usd_per_h_on_demand=None, usd_per_h_1y=None, usd_per_h_spot=None)
    nothing = cost_of(TWENTY, unpriced, 0.5, 50.0)
    assert nothing.prices == ()
    assert nothing.on_demand is None


def test_source_and_date_travel_with_the_cost() -> None:
    cost = cost_of(TWENTY, NODE, None, None)
    assert (cost.source, cost.date) == ("price list", "2026-07-30")


@pytest.mark.parametrize(("completed", "tokens"), [(None, None), (0.0, 0.0)])
def test_an_unknown_or_zero_rate_gives_no_price_for_each(
    completed: float | None, tokens: float | None
) -> None:
    price = cost_of(TWENTY, NODE, completed, tokens).on_demand
    assert price is not None
    assert price.usd_per_1k_requests is None
    assert price.usd_per_1m_output_tokens is None
    assert price.usd_per_replica_month is not None


def test_a_node_that_holds_nothing_has_a_price_by_the_hour_only() -> None:
    price = cost_of(replace(TWENTY, replicas=0), NODE, 0.5, 50.0).on_demand
    assert price is not None
    assert price.usd_per_h == 10.0
    assert price.usd_per_replica_month is None
    assert price.usd_per_1k_requests is None
