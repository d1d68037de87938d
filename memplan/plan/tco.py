"""What a fleet costs and what that makes for a token, a request and a GiB: a fleet and costs in, lines
out.

An unknown price gives an unknown sum, never zero. Money is US dollars; another currency is written
beside them by its declared rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from memplan.plan.capacity import Capacity, Fleet
from memplan.plan.cost import HOURS_PER_MONTH, Basis
from memplan.plan.nodes import NodeSpec
from memplan.specs.costs import Costs, OwnNode
from memplan.specs.values import Part
from memplan.units import GIB

SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
SWING = 0.2
"""Each input of the tornado, down and up."""
_P = TypeVar("_P", bound=Part)
DRAM_FACTORS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """``usd_per_month`` None: the price is unknown."""

    name: str
    usd_per_month: float | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swing:
    """The month's cost with one input changed, all else as it is."""

    name: str
    low_usd_per_month: float
    high_usd_per_month: float

    @property
    def width(self) -> float:
        return abs(self.high_usd_per_month - self.low_usd_per_month)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiComparison:
    """The same tokens bought elsewhere."""

    usd_per_month: float
    break_even_ratio: float | None
    """The share of the planned traffic at which both cost the same; None where ours is unknown."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tco:
    """Of the fleet's first month, but for ``npv_usd``."""

    lines: tuple[CostLine, ...]
    usd_per_month: float | None
    usd_per_1m_input_tokens: float | None
    """The whole month over that many tokens: each kind of token carries all of it."""
    usd_per_1m_cached_tokens: float | None
    usd_per_1m_output_tokens: float | None
    usd_per_1k_requests: Mapping[str, float | None]
    """By class: the month is shared out by the memory that each class held over time."""
    usd_per_gib_month: float | None
    """Over the memory of all nodes."""
    npv_usd: float | None
    """Of all months' costs, discounted at the WACC."""
    dram: Mapping[float, float]
    """Factor on the price of DRAM → the month; empty for rented nodes, whose DRAM has no price of its
    own."""
    sensitivity: tuple[Swing, ...]
    """The widest first."""
    api: ApiComparison | None
    nodes: int
    currency: str
    per_usd: float
    notes: tuple[str, ...]


def tco_of(fleet: Fleet, costs: Costs, mean_ratio: float) -> Tco:
    """``mean_ratio``: mean over peak of the demand."""
    first = fleet.periods[0]
    nodes = first.nodes_serving + first.nodes_spare
    capacity = fleet.capacity
    lines = cost_lines(capacity.node, nodes, costs)
    month = total_of(lines)
    load = first.requests_per_s * mean_ratio / capacity.requests_per_s
    per_class = _per_class(capacity, month, load)
    months = [
        total_of(cost_lines(capacity.node, one.nodes_serving + one.nodes_spare, costs))
        for one in fleet.periods
    ]
    return Tco(
        lines=lines,
        usd_per_month=month,
        usd_per_1m_input_tokens=_per_million(capacity, month, load, "input_tokens_per_s"),
        usd_per_1m_cached_tokens=_per_million(capacity, month, load, "cached_tokens_per_s"),
        usd_per_1m_output_tokens=_per_million(capacity, month, load, "output_tokens_per_s"),
        usd_per_1k_requests=per_class,
        usd_per_gib_month=None
        if month is None
        else month / (nodes * capacity.node.memory_bytes / GIB),
        npv_usd=None
        if any(one is None for one in months)
        else math.fsum(
            (one or 0.0) / (1 + costs.wacc) ** (at / 12) for at, one in enumerate(months)
        ),
        dram=_dram(capacity.node, nodes, costs),
        sensitivity=_sensitivity(capacity.node, nodes, costs),
        api=_api(capacity, costs, load, month),
        nodes=nodes,
        currency=costs.currency.code,
        per_usd=costs.currency.per_usd,
        notes=_notes(capacity.node, costs),
    )


def cost_lines(node: NodeSpec, nodes: int, costs: Costs) -> tuple[CostLine, ...]:
    if costs.own is not None:
        base = [*_own_lines(costs.own, nodes, costs.wacc)]
    else:
        price = price_of(node, costs.basis)
        base = [
            CostLine(
                name=f"{nodes} × {node.instance}, {costs.basis}",
                usd_per_month=None if price is None else price * HOURS_PER_MONTH * nodes,
                source=f"{node.price_source or 'source unknown'}, {node.date or 'undated'}",
            )
        ]
    known = total_of(tuple(base))
    rest = [
        CostLine(
            name=f"support, {costs.support_ratio:.0%} of that",
            usd_per_month=None if known is None else known * costs.support_ratio,
            source="costs.yaml",
        ),
        CostLine(name="people", usd_per_month=costs.people_usd_per_month, source="costs.yaml"),
        CostLine(name="network", usd_per_month=costs.network_usd_per_month, source="costs.yaml"),
    ]
    return (*base, *(one for one in rest if one.usd_per_month != 0))


def total_of(lines: tuple[CostLine, ...]) -> float | None:
    if any(one.usd_per_month is None for one in lines):
        return None
    return math.fsum(one.usd_per_month or 0.0 for one in lines)


def price_of(node: NodeSpec, basis: Basis) -> float | None:
    return {
        "on demand": node.usd_per_h_on_demand,
        "1 year": node.usd_per_h_1y,
        "3 years": node.usd_per_h_3y,
        "spot": node.usd_per_h_spot,
    }[basis]


def monthly_share(usd: float, residual_ratio: float, years: float, wacc: float) -> float:
    """What a purchase costs a month: the annuity that pays it back with interest, less what it still
    brings (Brealey, Myers & Allen, Principles of Corporate Finance: equivalent annual cost)."""
    months = years * 12
    rate = (1 + wacc) ** (1 / 12) - 1
    residual = usd * residual_ratio
    if rate == 0:
        return (usd - residual) / months
    discount = (1 + rate) ** -months
    return float((usd - residual * discount) * rate / (1 - discount))


def _own_lines(own: OwnNode, nodes: int, wacc: float) -> tuple[CostLine, ...]:
    source = f"{own.source}, {own.date or 'undated'}"

    def share(usd: float) -> float:
        return monthly_share(usd, own.residual_ratio, own.years, wacc) * nodes

    power = own.watts / 1000 * HOURS_PER_MONTH * own.pue * own.usd_per_kwh * nodes
    parts = (
        ("processor, chassis, network card", share(own.cpu_chassis_nic)),
        (f"DRAM, {own.dram_gib:g} GiB", share(own.dram_gib * own.dram_usd_per_gib)),
        ("accelerators", share(own.accelerators)),
        (f"power at PUE {own.pue:g}", power),
        ("rack", own.rack_usd_per_month * nodes),
    )
    return tuple(
        CostLine(name=f"{nodes} × {name}", usd_per_month=usd, source=source)
        for name, usd in parts
        if usd
    )


def _per_million(capacity: Capacity, month: float | None, load: float, field: str) -> float | None:
    """``load``: how many replicas' worth of the measured rate the fleet serves on average."""
    rate = sum(getattr(one, field) for one in capacity.classes) * load
    return None if month is None or rate <= 0 else month / (rate * SECONDS_PER_MONTH) * 1e6


def _per_class(capacity: Capacity, month: float | None, load: float) -> dict[str, float | None]:
    shares = class_shares(capacity)
    found: dict[str, float | None] = {}
    for one in capacity.classes:
        rate = one.requests_per_s * load
        if month is None or rate <= 0 or not shares:
            found[one.name] = None
        else:
            found[one.name] = month * shares[one.name] / (rate * SECONDS_PER_MONTH) * 1e3
    return found


def class_shares(capacity: Capacity) -> dict[str, float]:
    """What part of all costs each class carries: that of the memory that its requests held over time.
    Empty where none is known to have held any."""
    held = {one.name: one.resident_mean_bytes or 0.0 for one in capacity.classes}
    whole = sum(held.values())
    return {name: size / whole for name, size in held.items()} if whole > 0 else {}


def _dram(node: NodeSpec, nodes: int, costs: Costs) -> dict[float, float]:
    if costs.own is None:
        return {}
    found = {}
    for factor in DRAM_FACTORS:
        own = costs.own.model_copy(update={"dram_usd_per_gib": costs.own.dram_usd_per_gib * factor})
        total = total_of(cost_lines(node, nodes, costs.model_copy(update={"own": own})))
        assert total is not None  # an own node has every price
        found[factor] = total
    return found


def _sensitivity(node: NodeSpec, nodes: int, costs: Costs) -> tuple[Swing, ...]:
    """Inputs that are not zero, each by SWING; nodes by one."""
    if total_of(cost_lines(node, nodes, costs)) is None:
        return ()

    def month(changed: Costs, node: NodeSpec = node, nodes: int = nodes) -> float:
        found = total_of(cost_lines(node, nodes, changed))
        assert found is not None
        return found

    swings = [
        Swing(
            name="one node less, or more",
            low_usd_per_month=month(costs, nodes=max(1, nodes - 1)),
            high_usd_per_month=month(costs, nodes=nodes + 1),
        )
    ]
    names = ("people_usd_per_month", "network_usd_per_month", "support_ratio")
    for name in names:
        if getattr(costs, name):
            swings.append(_swing(name, lambda f, n=name: month(_scaled(costs, n, f))))
    if costs.own is not None:
        own = costs.own
        for name in ("cpu_chassis_nic", "dram_usd_per_gib", "accelerators", "usd_per_kwh", "years"):
            if getattr(own, name):
                swings.append(
                    _swing(
                        name,
                        lambda f, n=name: month(
                            costs.model_copy(update={"own": _scaled(own, n, f)})
                        ),
                    )
                )
    else:
        base = month(costs)
        fixed = month(costs, nodes=0)
        swings.append(
            Swing(
                name="price of a node",
                low_usd_per_month=fixed + (base - fixed) * (1 - SWING),
                high_usd_per_month=fixed + (base - fixed) * (1 + SWING),
            )
        )
    return tuple(sorted(swings, key=lambda one: -one.width))


def _swing(name: str, month_at: object) -> Swing:
    assert callable(month_at)
    return Swing(
        name=f"{name} −20 %, +20 %",
        low_usd_per_month=month_at(1 - SWING),
        high_usd_per_month=month_at(1 + SWING),
    )


def _scaled(part: _P, name: str, factor: float) -> _P:
    return part.model_copy(update={name: getattr(part, name) * factor})


def _api(
    capacity: Capacity, costs: Costs, load: float, month: float | None
) -> ApiComparison | None:
    api = costs.api
    if api is None:
        return None
    inputs = sum(one.input_tokens_per_s for one in capacity.classes) * load * SECONDS_PER_MONTH
    cached = sum(one.cached_tokens_per_s for one in capacity.classes) * load * SECONDS_PER_MONTH
    outputs = sum(one.output_tokens_per_s for one in capacity.classes) * load * SECONDS_PER_MONTH
    cached_price = api.input if api.cached is None else api.cached
    usd = ((inputs - cached) * api.input + cached * cached_price + outputs * api.output) / 1e6
    return ApiComparison(
        usd_per_month=usd,
        break_even_ratio=month / usd if month is not None and usd > 0 else None,
        source=f"{api.source}, {api.date or 'undated'}",
    )


def _notes(node: NodeSpec, costs: Costs) -> tuple[str, ...]:
    notes = [
        f"A month is {HOURS_PER_MONTH} h. Each kind of token carries the whole month; a class "
        "carries the "
        "share of it that its requests held of the KV memory over time."
    ]
    if costs.own is None and price_of(node, costs.basis) is None:
        notes.append(
            f"The catalog holds no price for {node.instance}, {costs.basis}: the sum is unknown."
        )
    if costs.currency.code != "USD":
        notes.append(
            f"1 USD = {costs.currency.per_usd:g} {costs.currency.code} ({costs.currency.source}, "
            f"{costs.currency.date or 'undated'}); figures here are US dollars."
        )
    return tuple(notes)
