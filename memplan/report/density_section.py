"""How many such replicas each node of the catalog would hold, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan.plan.cost import HOURS_PER_MONTH, Cost, Price, cost_of
from memplan.plan.density import Density, Limit, ReplicaNeed, density_of
from memplan.plan.nodes import NodeSpec
from memplan.report.pieces import Cell, Column, Section, Table
from memplan.report.wording import NOTHING
from memplan.stats.summary import RunSummary
from memplan.units import bytes_text, seconds_text, usd_text

LIMIT_NAMES: dict[Limit, str] = {
    "memory": "memory",
    "vcpu": "vCPU",
    "gpu_memory": "GPU memory",
}
TERMINAL_ROWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOffer:
    """One node, how many replicas it holds and what they cost."""

    node: NodeSpec
    density: Density
    cost: Cost

    @property
    def usd_per_replica_month(self) -> float | None:
        return self.cost.on_demand.usd_per_replica_month if self.cost.on_demand else None


def offers_of(
    need: ReplicaNeed, summary: RunSummary, nodes: Sequence[NodeSpec], headroom_ratio: float
) -> tuple[NodeOffer, ...]:
    """The cheapest on-demand replica first; unknown prices and empty nodes last.

    A replica measured on a GPU is offered GPU nodes only, and one that was not, none of them.
    """
    offers = []
    for node in nodes:
        if node.has_gpu != (need.gpu_peak_bytes is not None):
            continue
        density = density_of(need, node, headroom_ratio=headroom_ratio)
        if density is not None:
            cost = cost_of(density, node, summary.completed_per_s, summary.output_tokens_per_s)
            offers.append(NodeOffer(node=node, density=density, cost=cost))
    return tuple(sorted(offers, key=_order))


def _order(offer: NodeOffer) -> tuple[bool, float, str]:
    usd = offer.usd_per_replica_month
    return (usd is None, usd or 0.0, f"{offer.node.provider} {offer.node.instance}")


def density_section(
    need: ReplicaNeed,
    summary: RunSummary,
    nodes: Sequence[NodeSpec],
    offers: Sequence[NodeOffer],
    headroom_ratio: float,
    prefix: str,
) -> Section:
    sources = tuple(dict.fromkeys(_source(offer.node) for offer in offers))
    table = Table(
        id=f"{prefix}density-table",
        title="Replicas and cost by node",
        columns=(
            Column(title="node", align="left"),
            Column(title="memory", is_spare=True),
            Column(title="replicas"),
            Column(title="node $/h"),
            Column(title="replica $/month"),
            Column(title="$/GiB-month", is_spare=True),
            Column(title="$/1k requests"),
            Column(title="$/1M out tokens"),
            Column(title="source", is_spare=True),
        ),
        rows=tuple(_offer_row(offer, sources.index(_source(offer.node)) + 1) for offer in offers),
        notes=(
            *_left_out(need, nodes, offers),
            f"A month is {HOURS_PER_MONTH} h. Prices are list prices in US dollars. $ per request "
            "and per token are at the rate this one replica served in the replay "
            f"({_rate(summary)}), not at the most it could serve. $/GiB-month is the node's price "
            "over its memory. Under replicas: what keeps out the next one.",
            "Sources: " + "; ".join(f"[{at + 1}] {text}" for at, text in enumerate(sources)) + ".",
        ),
        terminal_rows=TERMINAL_ROWS,
    )
    bases = _bases_table(offers, prefix)
    return Section(
        id=f"{prefix}density",
        title="How many fit on a node, and what that costs",
        paragraphs=(_need_text(need, headroom_ratio),),
        blocks=tuple(block for block in (table, bases) if block) if offers else (),
    )


def _need_text(need: ReplicaNeed, headroom_ratio: float) -> str:
    parts = [f"{bytes_text(need.private_peak_bytes)} of its own at its peak"]
    if need.shared_bytes:
        parts.append(f"{bytes_text(need.shared_bytes)} of weights that all replicas share")
    if need.gpu_peak_bytes is not None:
        parts.append(f"{bytes_text(need.gpu_peak_bytes)} of one GPU")
    threads = "an unknown number of threads" if need.threads is None else f"{need.threads} threads"
    return (
        f"One replica needs {', '.join(parts)}, and {threads}. {headroom_ratio * 100:.0f} % of "
        "each node's memory is kept free. Every replica is given its peak, as if all peaked at "
        "once: this is the conservative figure, and it has not yet been checked under a real "
        "memory limit."
    )


def _left_out(
    need: ReplicaNeed, nodes: Sequence[NodeSpec], offers: Sequence[NodeOffer]
) -> tuple[str, ...]:
    gpu_nodes = sum(node.has_gpu for node in nodes)
    if need.gpu_peak_bytes is None:
        left_out = gpu_nodes
        why = "GPU nodes, not priced because nothing was measured on a GPU"
    else:
        left_out = len(nodes) - gpu_nodes
        why = "CPU nodes, left out because this replica was measured on a GPU"
    notes = [f"{why}: {left_out}."] if left_out else []
    unknown = len(nodes) - left_out - len(offers)
    if unknown:
        notes.append(f"Nodes left out because their GPU memory is not in the catalog: {unknown}.")
    return tuple(notes)


def _rate(summary: RunSummary) -> str:
    if summary.completed_per_s is None:
        return "unknown"
    tokens = summary.output_tokens_per_s
    tokens_text = "an unknown number of" if tokens is None else f"{tokens:,.1f}"
    return (
        f"{summary.completed_per_s:,.2f} requests/s and {tokens_text} output tokens/s over "
        f"{seconds_text(summary.duration_s)}"
    )


def _source(node: NodeSpec) -> str:
    return f"{node.price_source or 'unknown'}, {node.date or 'undated'}"


def _offer_row(offer: NodeOffer, source: int) -> tuple[Cell, ...]:
    node, density = offer.node, offer.density
    replicas = Cell(text=f"{density.replicas:,}", detail=f"by {LIMIT_NAMES[density.limited_by]}")
    if not density.replicas:
        replicas = Cell(
            text="0", detail=f"no fit, by {LIMIT_NAMES[density.limited_by]}", tone="bad"
        )
    return (
        Cell(text=node.instance, detail=f"{node.provider}, {node.region or 'region unknown'}"),
        Cell(
            text=bytes_text(node.memory_bytes),
            detail="nominal" if density.is_nominal else "measured",
        ),
        replicas,
        *_price_cells(offer.cost.on_demand),
        Cell(text=f"[{source}]", tone="muted"),
    )


def _price_cells(price: Price | None) -> tuple[Cell, ...]:
    if price is None:
        return (Cell(text="unknown", tone="muted"), *(NOTHING,) * 4)
    figures = (
        price.usd_per_h,
        price.usd_per_replica_month,
        price.usd_per_gib_month,
        price.usd_per_1k_requests,
        price.usd_per_1m_output_tokens,
    )
    return tuple(_usd_cell(value) for value in figures)


def _usd_cell(value: float | None) -> Cell:
    return NOTHING if value is None else Cell(text=usd_text(value))


def _bases_table(offers: Sequence[NodeOffer], prefix: str) -> Table | None:
    """One replica's month by every way of paying, for the nodes that have more than one."""
    bases = ("on demand", "1 year", "3 years", "spot")
    rows: list[tuple[Cell, ...]] = []
    for offer in offers:
        by_basis: dict[str, float | None] = {
            price.basis: price.usd_per_replica_month for price in offer.cost.prices
        }
        if offer.density.replicas and set(by_basis) - {"on demand"}:
            cells = (_usd_cell(by_basis.get(basis)) for basis in bases)
            rows.append((Cell(text=offer.node.instance, detail=offer.node.provider), *cells))
    if not rows:
        return None
    return Table(
        id=f"{prefix}bases-table",
        title="One replica, $/month, by how the node is paid for",
        columns=(Column(title="node", align="left"), *(Column(title=basis) for basis in bases)),
        rows=tuple(rows),
        notes=("Only nodes whose committed or spot price the catalog holds.",),
        terminal_rows=0,
    )
