"""Money, by pencil and by a second derivation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned import CAPACITY, NODE

from memplan.plan.fleet import Demand, fleet_of
from memplan.plan.tco import Tco, monthly_share, tco_of
from memplan.specs.costs import Api, Costs, Currency, OwnNode

DEMAND = Demand(peak_requests_per_s=40, months=3)
PLAIN = Costs(memplan_costs=1)
OWN = OwnNode(
    cpu_chassis_nic=4000, dram_gib=100, dram_usd_per_gib=20, watts=500, pue=1.2, usd_per_kwh=0.1
)


def costed(costs: Costs, **changed: object) -> Tco:
    capacity = replace(CAPACITY, **changed)  # type: ignore[arg-type]
    fleet = fleet_of(capacity, DEMAND)
    assert fleet is not None
    return tco_of(fleet, costs, DEMAND.mean_ratio)


def test_a_rented_fleet_by_pencil() -> None:
    found = costed(PLAIN)
    # 2 nodes serve, 1 is spare: 3 × $10 × 730 h.
    assert found.usd_per_month == pytest.approx(21_900)
    # 40/s × 0.5 = 20/s on average: 4 replicas' worth: 4,000 input and 200 output tokens/s.
    month_s = 730 * 3600
    assert found.usd_per_1m_input_tokens == pytest.approx(21_900 / (4000 * month_s) * 1e6)
    assert found.usd_per_1m_output_tokens == pytest.approx(21_900 / (200 * month_s) * 1e6)
    # A quarter of the memory is held by short requests, of which there are 16/s.
    assert found.usd_per_1k_requests["short"] == pytest.approx(21_900 / 4 / (16 * month_s) * 1e3)
    assert found.usd_per_gib_month == pytest.approx(21_900 / 300)
    # The classes' requests cost the whole month together.
    rates = {"short": 16, "long": 4}
    whole = sum(
        (found.usd_per_1k_requests[name] or 0) / 1e3 * rate * month_s
        for name, rate in rates.items()
    )
    assert whole == pytest.approx(21_900)


def test_support_people_and_network_come_on_top() -> None:
    costs = Costs(
        memplan_costs=1, support_ratio=0.1, people_usd_per_month=1000, network_usd_per_month=50
    )
    assert costed(costs).usd_per_month == pytest.approx(21_900 * 1.1 + 1050)


def test_own_hardware_with_dram_apart_and_its_price_at_four_factors() -> None:
    found = costed(Costs(memplan_costs=1, own=OWN))
    power = 0.5 * 730 * 1.2 * 0.1
    assert found.usd_per_month == pytest.approx(3 * ((4000 + 2000) / 48 + power))
    assert found.dram == {
        factor: pytest.approx(3 * ((4000 + factor * 2000) / 48 + power))
        for factor in (0.5, 1.0, 2.0, 4.0)
    }


@pytest.mark.parametrize(("residual", "wacc"), [(0.0, 0.08), (0.2, 0.08), (0.2, 0.0), (1.0, 0.0)])
def test_an_annuity_pays_the_purchase_back_with_interest(residual: float, wacc: float) -> None:
    """The second derivation: the payments and the residual value, discounted month by month."""
    share = monthly_share(10_000, residual, 4, wacc)
    rate = (1 + wacc) ** (1 / 12)
    present = sum(share / rate**month for month in range(1, 49)) + 10_000 * residual / rate**48
    assert present == pytest.approx(10_000)


def test_an_unknown_price_makes_an_unknown_sum_and_never_a_zero() -> None:
    unpriced = replace(NODE, usd_per_h_on_demand=None)
    found = costed(PLAIN, node=unpriced)
    assert found.usd_per_month is None
    assert found.usd_per_1m_output_tokens is None
    assert set(found.usd_per_1k_requests.values()) == {None}
    assert found.npv_usd is None
    assert found.sensitivity == ()
    assert "holds no price for n2, on demand" in " ".join(found.notes)
    assert costed(Costs(memplan_costs=1, basis="3 years")).usd_per_month is None


def test_a_class_that_was_never_served_has_no_price() -> None:
    idle = replace(CAPACITY.classes[0], requests_per_s=0.0, name="idle")
    found = costed(PLAIN, classes=(*CAPACITY.classes, idle))
    assert found.usd_per_1k_requests["idle"] is None


def test_break_even_with_an_api() -> None:
    costs = Costs(memplan_costs=1, api=Api(input=1.0, output=10.0, cached=0.1))
    found = costed(costs).api
    assert found is not None
    month_s = 730 * 3600
    usd = ((4000 - 400) * 1.0 + 400 * 0.1 + 200 * 10.0) * month_s / 1e6
    assert found.usd_per_month == pytest.approx(usd)
    assert found.break_even_ratio == pytest.approx(21_900 / usd)


def test_months_are_discounted_at_the_cost_of_capital() -> None:
    found = costed(Costs(memplan_costs=1, wacc=0.12))
    assert found.npv_usd == pytest.approx(sum(21_900 / 1.12 ** (month / 12) for month in range(3)))


def test_the_tornado_has_the_widest_first_and_holds_the_month() -> None:
    found = costed(Costs(memplan_costs=1, own=OWN, people_usd_per_month=5000))
    widths = [one.width for one in found.sensitivity]
    assert widths == sorted(widths, reverse=True)
    month = found.usd_per_month
    assert month is not None
    for one in found.sensitivity:
        ends = sorted((one.low_usd_per_month, one.high_usd_per_month))
        assert ends[0] <= month <= ends[1]


def test_another_currency_is_said_with_its_rate() -> None:
    costs = Costs(memplan_costs=1, currency=Currency(code="EUR", per_usd=0.9, source="ECB"))
    assert "1 USD = 0.9 EUR (ECB, undated)" in " ".join(costed(costs).notes)
