"""What a density costs: one node's prices and one replica's measured rate in, a Cost out.

A price that the catalog does not hold gives no figure. Rates are those of the replay, not the
most that a replica could serve, and nothing is added for people, traffic or idle nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memplan.plan.density import Density
from memplan.plan.nodes import NodeSpec
from memplan.units import GIB

Basis = Literal["on demand", "1 year", "3 years", "spot"]

HOURS_PER_MONTH = 730
"""365 days x 24 h / 12, which is also how the large clouds quote a month."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One way of paying for the node; a figure is None where its divisor is unknown or zero."""

    basis: Basis
    usd_per_h: float
    usd_per_replica_month: float | None
    usd_per_gib_month: float
    """The whole node's price over the node's memory."""
    usd_per_1k_requests: float | None
    usd_per_1m_output_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one node full of replicas costs, by every basis whose price is known."""

    prices: tuple[Price, ...]
    source: str | None
    date: str | None

    @property
    def on_demand(self) -> Price | None:
        return next((price for price in self.prices if price.basis == "on demand"), None)


def cost_of(
    density: Density,
    node: NodeSpec,
    completed_per_s: float | None,
    output_tokens_per_s: float | None,
) -> Cost:
    """The rates are those of one replica in the replay."""
    bases: tuple[tuple[Basis, float | None], ...] = (
        ("on demand", node.usd_per_h_on_demand),
        ("1 year", node.usd_per_h_1y),
        ("3 years", node.usd_per_h_3y),
        ("spot", node.usd_per_h_spot),
    )
    return Cost(
        prices=tuple(
            Price(
                basis=basis,
                usd_per_h=usd_per_h,
                usd_per_replica_month=_over(usd_per_h * HOURS_PER_MONTH, density.replicas),
                usd_per_gib_month=usd_per_h * HOURS_PER_MONTH / (node.memory_bytes / GIB),
                usd_per_1k_requests=_each(usd_per_h, density, completed_per_s, 1e3),
                usd_per_1m_output_tokens=_each(usd_per_h, density, output_tokens_per_s, 1e6),
            )
            for basis, usd_per_h in bases
            if usd_per_h is not None
        ),
        source=node.price_source,
        date=node.date,
    )


def _each(usd_per_h: float, density: Density, per_s: float | None, many: float) -> float | None:
    """Dollars for ``many`` units, every replica of the node serving ``per_s`` of them."""
    if per_s is None:
        return None
    return _over(usd_per_h * many, density.replicas * per_s * 3600)


def _over(value: float, divisor: float) -> float | None:
    return value / divisor if divisor > 0 else None
