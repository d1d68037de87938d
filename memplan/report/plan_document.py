"""A plan as a document: how many fit, with which limits, at which risk, how many nodes that makes, and
what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.plan.budget import ReplicaBudget, snippets_of
from memplan.plan.capacity import Fleet
from memplan.plan.memory_model import COVERAGE, MemoryModel, Term
from memplan.plan.node_memory import BLOCK_S
from memplan.plan.plan import Asked, NodePlan
from memplan.plan.tco import Tco
from memplan.records import Finding
from memplan.report.pieces import (
    Cell,
    Column,
    Document,
    Fact,
    Facts,
    FindingList,
    KeyFigure,
    Section,
    Table,
)
from memplan.report.wording import DASH, NOTHING
from memplan.stats.summary import RunSummary
from memplan.units import bytes_text, usd_text

_TERMS = {
    "fixed": "weights and runtime",
    "kv_bytes": "a byte of KV cache",
    "sequences": "a request in flight",
    "largest_step_tokens": "a token of the largest step",
    "chunk_lengths": "a length of prompt chunks that was not there before",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """All that a plan holds; the first node is the one that was chosen."""

    summary: RunSummary
    asked: Asked
    model: MemoryModel | None
    budget: ReplicaBudget
    nodes: tuple[NodePlan, ...]
    fleet: Fleet | None
    tco: Tco | None
    findings: tuple[Finding, ...]


def plan_document(report: PlanReport) -> Document:
    chosen = report.nodes[0]
    return Document(
        title=f"{report.summary.deployment_name}, variant {report.summary.variant}: the plan",
        subtitle=f"from {report.summary.path}, run {report.summary.run_id}; verify it with "
        "memplan verify before it is relied on",
        answer=_answer(report),
        figures=_figures(report, chosen),
        sections=tuple(
            section
            for section in (
                _density_section(report),
                _budget_section(report.budget),
                _model_section(report.model),
                _fleet_section(report.fleet),
                _tco_section(report.tco),
                Section(
                    id="findings",
                    title="What to doubt",
                    blocks=(FindingList(id="plan-findings", findings=report.findings),),
                )
                if report.findings
                else None,
            )
            if section is not None
        ),
    )


def _answer(report: PlanReport) -> str:
    chosen = report.nodes[0]
    capacity, over = chosen.capacity, chosen.overflow
    if not capacity.replicas:
        return (
            f"{capacity.node.instance} holds not one replica: {bytes_text(capacity.usable_bytes)} are "
            f"usable, and one needs {bytes_text(capacity.private_bytes + capacity.shared_bytes)} at its "
            f"peak (by {capacity.limited_by})."
        )
    seen = f"in {over.share:.2g} of the time" if over.share else "at no time"
    money = ""
    if report.tco is not None and report.tco.usd_per_month is not None:
        money = f" It costs {usd_text(report.tco.usd_per_month)} a month."
    nodes = ""
    if report.fleet is not None:
        last = report.fleet.periods[-1]
        nodes = (
            f" {report.fleet.periods[0].nodes_serving + report.fleet.periods[0].nodes_spare} "
            "nodes carry "
            f"the first month, {last.nodes_serving + last.nodes_spare} the last, spares included."
        )
    return (
        f"{capacity.node.instance} holds {capacity.replicas:,} replicas, limited by "
        f"{capacity.limited_by}; all at their peak at once it would be {chosen.by_peaks:,}. Over the "
        f"measured traffic they want more than the node has {seen}; with 95 % "
        f"confidence, for traffic like it, in less than {over.upper:.2g} ({over.blocks} "
        "independent blocks)."
        f"{nodes}{money}"
    )


def _figures(report: PlanReport, chosen: NodePlan) -> tuple[KeyFigure, ...]:
    found = [
        KeyFigure(
            name="replicas on a node",
            text=f"{chosen.capacity.replicas:,}",
            detail=f"{chosen.capacity.node.instance}, by {chosen.capacity.limited_by}",
        ),
        KeyFigure(
            name="memory of one",
            text=bytes_text(report.budget.request_bytes),
            detail=f"limit {bytes_text(report.budget.limit_bytes)}",
        ),
    ]
    if report.tco is not None and report.tco.usd_per_month is not None:
        found.append(
            KeyFigure(
                name="a month",
                text=usd_text(report.tco.usd_per_month),
                detail=f"{usd_text(report.tco.usd_per_1m_output_tokens)} per 1M output tokens",
            )
        )
    return tuple(found)


def _density_section(report: PlanReport) -> Section:
    rows = []
    for one in report.nodes:
        tried = one.held_out
        rows.append(
            (
                Cell(text=one.capacity.node.instance, detail=one.capacity.node.provider),
                Cell(text=bytes_text(one.capacity.usable_bytes)),
                Cell(
                    text=f"{one.capacity.replicas:,}",
                    detail=f"by {one.capacity.limited_by}",
                    tone="plain" if one.capacity.replicas else "bad",
                ),
                Cell(
                    text=f"{one.overflow.share:.2g}",
                    detail=f"below {one.overflow.upper:.2g} (95 %)",
                ),
                Cell(text=f"{one.next_overflow:.2g}"),
                Cell(
                    text=DASH if tried is None else f"{tried.margin_ratio:.0%}",
                    detail="too short to tell"
                    if tried is None
                    else ("held" if tried.holds else "did not hold"),
                    tone="bad" if tried is not None and not tried.holds else "plain",
                ),
                Cell(text=f"{one.by_path:,}"),
                Cell(text=f"{one.by_peaks:,}"),
                NOTHING if one.by_slots is None else Cell(text=f"{one.by_slots:,}"),
                Cell(text=f"{one.by_restart:,}"),
                NOTHING if one.by_vcpu is None else Cell(text=f"{one.by_vcpu:,}"),
                NOTHING if one.by_gpu is None else Cell(text=f"{one.by_gpu:,}"),
            )
        )
    return Section(
        id="density",
        title="How many fit",
        paragraphs=(
            f"Asked: replicas want more than the node has in at most {report.asked.overflow:g} "
            "of the time; "
            f"{report.asked.headroom_ratio:.0%} of each node is kept free for its kernel and agents.",
        ),
        blocks=(
            Table(
                id="density-table",
                title="Replicas on each node, and what the other ways of counting say",
                columns=(
                    Column(title="node", align="left"),
                    Column(title="usable"),
                    Column(title="replicas"),
                    Column(title="over, share of time"),
                    Column(title="with one more"),
                    Column(title="margin"),
                    Column(title="by memory", is_spare=True),
                    Column(title="sum of peaks", is_spare=True),
                    Column(title="longest slots", is_spare=True),
                    Column(title="at a restart", is_spare=True),
                    Column(title="by vCPU", is_spare=True),
                    Column(title="by GPU memory", is_spare=True),
                ),
                rows=tuple(rows),
                notes=(
                    f"Counted over {report.nodes[0].capacity.method}. The "
                    "margin is the "
                    "smallest with which a density chosen on one half of the run held on the "
                    "other, both "
                    f"ways round. Blocks of {BLOCK_S:g} s count as independent; with none over, "
                    "the bound is 3 "
                    "over their number. Bursts that hit all replicas at once are the sum of peaks.",
                ),
            ),
        ),
    )


def _budget_section(budget: ReplicaBudget) -> Section:
    rows = tuple(
        (
            Cell(text=one.name),
            Cell(
                text=bytes_text(one.bytes),
                detail="p99" if one.is_p99 else "largest seen; p99 withheld",
            ),
            Cell(text=bytes_text(one.upper_bytes)) if one.upper_bytes is not None else NOTHING,
            Cell(text=f"{one.in_flight:,}"),
        )
        for one in budget.classes
    )
    facts = (
        Fact(name="weights", text=bytes_text(budget.weights_bytes)),
        Fact(name="runtime", text=bytes_text(budget.runtime_bytes)),
        Fact(name="KV cache, the most at once", text=bytes_text(budget.kv_bytes)),
        Fact(name="activations and the rest", text=bytes_text(budget.activations_bytes)),
        Fact(name="margin", text=bytes_text(budget.margin_bytes)),
        Fact(name="container request", text=bytes_text(budget.request_bytes)),
        Fact(name="container limit", text=bytes_text(budget.limit_bytes)),
        Fact(name="requests in flight", text=f"{budget.requests_in_flight:,}"),
        Fact(name="KV tokens in flight", text=f"{budget.kv_tokens_in_flight:,}"),
        Fact(name="tokens of one step", text=f"{budget.batch_tokens:,}"),
        Fact(name="longest queue", text=f"{budget.queue:,}"),
    )
    snippets = tuple(Fact(name=name, text=text) for name, text in snippets_of(budget).items())
    return Section(
        id="budget",
        title="What one replica may be given",
        paragraphs=(
            "Limits are what the run was seen to need. Those for vLLM and llama.cpp carry over its "
            "counts and lengths; what these engines hold besides was not measured here.",
        ),
        blocks=(
            Facts(id="replica-budget", title="One replica", facts=facts),
            Table(
                id="class-budget",
                title="One request of each class",
                columns=(
                    Column(title="class", align="left"),
                    Column(title="may own"),
                    Column(title="p99 at most (95 %)"),
                    Column(title="most at once"),
                ),
                rows=rows,
            ),
            Facts(id="snippets", title="As limits, ready to paste", facts=snippets),
        ),
    )


def _model_section(model: MemoryModel | None) -> Section:
    if model is None:
        return Section(
            id="model",
            title="The law of its memory",
            paragraphs=("Not fitted: the run holds too few steps.",),
        )
    ranges = ", ".join(
        f"{name} {low:,.0f} to {high:,.0f}" for name, (low, high) in model.measured.items()
    )
    return Section(
        id="model",
        title="The law of its memory",
        paragraphs=(
            f"Resident memory of a step, fitted over {model.n:,} steps in {model.blocks} blocks. "
            "On parts that "
            f"it was not fitted on it explains {model.share_explained:.1%} of the variance, and "
            f"{COVERAGE:.0%} of steps lie below it plus {bytes_text(model.open_bytes)}.",
        ),
        blocks=(
            Table(
                id="model-table",
                title="Bytes for one unit",
                columns=(
                    Column(title="of", align="left"),
                    Column(title="bytes"),
                    Column(title="95 % interval"),
                    Column(title="evidence", align="left"),
                ),
                rows=tuple(_term_row(term) for term in (model.fixed, *model.terms)),
                notes=(f"Measured within {ranges}; beyond that it answers nothing.",),
            ),
        ),
    )


def _term_row(term: Term) -> tuple[Cell, ...]:
    if term.evidence != "fitted":
        return (
            Cell(text=_TERMS[term.name]),
            NOTHING,
            NOTHING,
            Cell(text="never varied: part of the first line", tone="muted"),
        )

    def text(value: float) -> str:
        return f"{value:.3f}" if abs(value) < 100 else bytes_text(value)

    return (
        Cell(text=_TERMS[term.name]),
        Cell(text=text(term.value)),
        Cell(text=f"{text(term.low)} to {text(term.high)}"),
        Cell(text=term.evidence),
    )


def _fleet_section(fleet: Fleet | None) -> Section | None:
    if fleet is None:
        return None
    return Section(
        id="fleet",
        title="How many nodes, over time",
        blocks=(
            Table(
                id="fleet-table",
                title="Nodes of each month",
                columns=(
                    Column(title="", align="left"),
                    Column(title="busiest, requests/s"),
                    Column(title="serving"),
                    Column(title="spare"),
                    Column(title="used"),
                ),
                rows=tuple(
                    (
                        Cell(text=one.label),
                        Cell(text=f"{one.requests_per_s:,.3g}"),
                        Cell(text=f"{one.nodes_serving:,}"),
                        Cell(text=f"{one.nodes_spare:,}"),
                        Cell(text=f"{one.utilisation_ratio:.0%}"),
                    )
                    for one in fleet.periods
                ),
                notes=(
                    "At the rate that one replica served in the run, which is what was measured "
                    "and may be "
                    "less than it could serve. Used: mean load over what all nodes can serve.",
                ),
            ),
        ),
    )


def _tco_section(tco: Tco | None) -> Section | None:
    if tco is None:
        return None
    rows = tuple(
        (
            Cell(text=line.name, detail=line.source),
            Cell(
                text=usd_text(line.usd_per_month) if line.usd_per_month is not None else "unknown"
            ),
        )
        for line in tco.lines
    )
    units = (
        ("a month, in all", tco.usd_per_month),
        ("1M input tokens", tco.usd_per_1m_input_tokens),
        ("1M output tokens", tco.usd_per_1m_output_tokens),
        *((f"1k {name} requests", usd) for name, usd in tco.usd_per_1k_requests.items()),
        ("a GiB-month resident", tco.usd_per_gib_month),
    )
    sensitivity = tuple(
        (
            Cell(text=one.name),
            Cell(text=usd_text(one.low_usd_per_month)),
            Cell(text=usd_text(one.high_usd_per_month)),
        )
        for one in tco.sensitivity
    )
    blocks: list[Table | Facts] = [
        Table(
            id="tco-lines",
            title="What a month of the first month's fleet costs",
            columns=(Column(title="", align="left"), Column(title="$/month")),
            rows=rows,
            notes=tco.notes,
        ),
        Facts(
            id="tco-units",
            title="What that makes",
            facts=tuple(
                Fact(name=name, text="unknown" if usd is None else usd_text(usd))
                for name, usd in units
            ),
        ),
    ]
    if sensitivity:
        blocks.append(
            Table(
                id="tco-sensitivity",
                title="A month, if one input were other than it is",
                columns=(
                    Column(title="input", align="left"),
                    Column(title="low"),
                    Column(title="high"),
                ),
                rows=sensitivity,
            )
        )
    return Section(id="tco", title="What it costs", blocks=tuple(blocks))
