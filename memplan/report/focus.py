"""A plan's months as rows in FinOps FOCUS columns, for the tools that read cloud bills.

Columns and words are those of the FinOps Open Cost and Usage Specification 1.2 (focus.finops.org); those
that begin with ``x_`` are ours, as it allows. Rows are planned, not billed: ``x_Planned`` is true in
each.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from datetime import date

from memplan.plan.capacity import Capacity, Fleet
from memplan.plan.cost import HOURS_PER_MONTH, Basis
from memplan.plan.tco import class_shares, cost_lines, price_of
from memplan.specs.costs import Costs
from memplan.units import GIB

COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency",
    "ChargePeriodEnd", "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost",
    "ContractedUnitPrice", "EffectiveCost", "InvoiceIssuerName", "ListCost", "ListUnitPrice",
    "PricingCategory", "PricingCurrency", "PricingQuantity", "PricingUnit", "ProviderName",
    "PublisherName", "RegionId", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory",
    "ServiceName", "ServiceSubcategory", "SkuId", "SkuPriceId", "Tags",
    "x_Planned", "x_Source", "x_UtilisationRatio",
)  # fmt: skip
_PRICING: Mapping[Basis, str] = {
    "on demand": "Standard",
    "1 year": "Committed",
    "3 years": "Committed",
    "spot": "Dynamic",
}


def focus_csv(fleet: Fleet, costs: Costs, first_month: date) -> str:
    """One row for each month, cost and class; ``first_month`` is the first of the plan's months.

    A class carries the share of every cost that it carries in ``tco_of``, so that a month's
    EffectiveCost adds up to the plan's. What is unknown is empty, never zero.
    """
    target = io.StringIO()
    rows = csv.DictWriter(target, COLUMNS, lineterminator="\n")
    rows.writeheader()
    rows.writerows(_rows(fleet, costs, first_month))
    return target.getvalue()


def _rows(fleet: Fleet, costs: Costs, first_month: date) -> Iterator[dict[str, object]]:
    capacity = fleet.capacity
    shares: list[tuple[str | None, float]] = list(class_shares(capacity).items())
    shares = shares or [(None, 1.0)]
    for number, period in enumerate(fleet.periods):
        nodes = period.nodes_serving + period.nodes_spare
        start, end = _month(first_month, number), _month(first_month, number + 1)
        for at, line in enumerate(cost_lines(capacity.node, nodes, costs)):
            is_node = at == 0 and costs.own is None
            for name, share in shares:
                usd = None if line.usd_per_month is None else line.usd_per_month * share
                yield {
                    **_who(capacity, costs, is_node=is_node),
                    **(_priced(capacity, costs, nodes * share) if is_node else {}),
                    "BilledCost": usd,
                    "ContractedCost": usd,
                    "EffectiveCost": usd,
                    "BillingPeriodStart": start,
                    "BillingPeriodEnd": end,
                    "ChargePeriodStart": start,
                    "ChargePeriodEnd": end,
                    "ChargeDescription": line.name,
                    "ConsumedQuantity": capacity.node.memory_bytes
                    / GIB
                    * nodes
                    * HOURS_PER_MONTH
                    * share,
                    "ConsumedUnit": "GiB-Hours",
                    "Tags": _tags(capacity, name),
                    "x_Planned": "true",
                    "x_Source": line.source,
                    "x_UtilisationRatio": period.utilisation_ratio,
                }


def _who(capacity: Capacity, costs: Costs, *, is_node: bool) -> dict[str, object]:
    """What is the same in every month."""
    node = capacity.node
    issuer = node.provider if is_node else None
    return {
        "BillingCurrency": "USD",
        "PricingCurrency": "USD",
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Recurring",
        "InvoiceIssuerName": issuer,
        "ProviderName": issuer,
        "PublisherName": issuer,
        "PricingCategory": _PRICING[costs.basis] if is_node else "Other",
        "RegionId": node.region if is_node else None,
        "ResourceName": node.instance,
        "ResourceType": "Node",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": capacity.deployment,
        "ServiceSubcategory": "Generative AI",
        "SkuId": f"{node.provider}/{node.instance}" if is_node else None,
        "SkuPriceId": f"{node.provider}/{node.instance}/{costs.basis}" if is_node else None,
    }


def _priced(capacity: Capacity, costs: Costs, nodes: float) -> dict[str, object]:
    """By the hour, as nodes are rented; ``nodes`` may be a part of one."""
    listed = capacity.node.usd_per_h_on_demand
    hours = nodes * HOURS_PER_MONTH
    return {
        "PricingQuantity": hours,
        "PricingUnit": "Hours",
        "ListUnitPrice": listed,
        "ListCost": None if listed is None else listed * hours,
        "ContractedUnitPrice": price_of(capacity.node, costs.basis),
    }


def _tags(capacity: Capacity, class_name: str | None) -> str:
    tags = {"deployment": capacity.deployment, "variant": capacity.variant}
    return json.dumps(tags if class_name is None else {**tags, "class": class_name})


def _month(first: date, number: int) -> str:
    """The first instant of that month, as FOCUS writes it."""
    years, month = divmod(first.month - 1 + number, 12)
    return f"{first.year + years:04d}-{month + 1:02d}-01T00:00:00Z"
