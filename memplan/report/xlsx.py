"""A plan as a workbook that finance can recompute: inputs in named cells, every sum a live formula.

Sheets: Inputs, Budget, Density, TCO, Sensitivity, Sources. Measured figures are inputs too, so that a
reviewer sees what the plan rests on and may doubt it by typing over it. Every formula also carries the
value that memplan computed, for readers that do not recalculate.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xlsxwriter

from memplan.plan.cost import HOURS_PER_MONTH
from memplan.plan.fleet import Demand, Loss
from memplan.plan.tco import Tco, price_of
from memplan.report.plan_document import PlanReport
from memplan.specs.costs import Costs
from memplan.units import GIB, MIB


@dataclass(frozen=True, slots=True)
class Input:
    """One cell that a reviewer may change."""

    name: str
    """Of the cell, in formulas."""
    title: str
    value: float | None
    """None: unknown, an empty cell that makes the sums say so."""
    unit: str
    source: str


def workbook_of(report: PlanReport, demand: Demand, costs: Costs) -> bytes:
    """The whole file. Raises nothing for unknown prices: they are empty cells."""
    target = io.BytesIO()
    book = xlsxwriter.Workbook(target, {"in_memory": True})
    book.set_properties({"title": "memplan plan", "comments": report.summary.run_id})
    book.set_calc_mode("auto")
    style = _styles(book)
    inputs = inputs_of(report, demand, costs)
    _inputs(book, style, inputs)
    _budget(book, style, report)
    _density(book, style, report)
    _tco(book, style, report, costs, demand.loss)
    _sensitivity(book, style, report, costs)
    _sources(book, style, report, inputs)
    book.close()
    return target.getvalue()


def inputs_of(report: PlanReport, demand: Demand, costs: Costs) -> tuple[Input, ...]:
    capacity = report.nodes[0].capacity
    node, own = capacity.node, costs.own
    price = f"{node.price_source or 'unknown'}, {node.date or 'undated'}"
    currency = costs.currency
    run = f"run {report.summary.run_id}"
    rates = (
        ("in_tokens_per_s", "input tokens/s of one replica", "input_tokens_per_s"),
        ("cached_tokens_per_s", "of them cached", "cached_tokens_per_s"),
        ("out_tokens_per_s", "output tokens/s of one replica", "output_tokens_per_s"),
    )
    found = [
        Input("peak_requests_per_s", "busiest traffic", demand.peak_requests_per_s, "1/s", "asked"),
        Input("mean_ratio", "mean over busiest", demand.mean_ratio, "share", "asked"),
        Input("replicas_per_node", "replicas on a node", capacity.replicas, "replicas", run),
        Input("requests_per_s", "requests/s of one replica", capacity.requests_per_s, "1/s", run),
        *(
            Input(name, title, sum(getattr(one, field) for one in capacity.classes), "tokens/s", run)
            for name, title, field in rates
        ),
        Input("node_gib", "memory of a node", node.memory_bytes / GIB, "GiB", price),
        Input("zones", "zones", demand.zones, "zones", "asked"),
        Input("spot_ratio", "spot nodes taken back at once", demand.spot_ratio, "share", "asked"),
        Input("usd_per_node_h", f"a node, {costs.basis}", price_of(node, costs.basis), "USD/h", price)
        if own is None
        else Input("wacc", "cost of capital", costs.wacc, "a year", "costs.yaml"),
        Input("support_ratio", "support", costs.support_ratio, "share", "costs.yaml"),
        Input("people_usd", "people", costs.people_usd_per_month, "USD/month", "costs.yaml"),
        Input("network_usd", "network", costs.network_usd_per_month, "USD/month", "costs.yaml"),
        Input("per_usd", f"1 USD in {currency.code}", currency.per_usd, "", currency.source),
    ]  # fmt: skip
    if own is not None:
        source = f"{own.source}, {own.date or 'undated'}"
        found += [
            Input("chassis_usd", "processor, chassis, network card", own.cpu_chassis_nic, "USD", source),
            Input("dram_gib", "DRAM of a node", own.dram_gib, "GiB", source),
            Input("dram_usd_per_gib", "DRAM", own.dram_usd_per_gib, "USD/GiB", source),
            Input("accelerators_usd", "accelerators", own.accelerators, "USD", source),
            Input("years", "years of use", own.years, "years", source),
            Input("residual_ratio", "residual value", own.residual_ratio, "share", source),
            Input("watts", "power of a node", own.watts, "W", source),
            Input("pue", "PUE", own.pue, "", source),
            Input("usd_per_kwh", "electricity", own.usd_per_kwh, "USD/kWh", source),
            Input("rack_usd", "rack", own.rack_usd_per_month, "USD/month", source),
        ]  # fmt: skip
    return tuple(found)


_LOSS = {
    "none": "nothing is kept for a loss",
    "node": "so that the loss of a node is carried",
    "zone": "so that the loss of a zone is carried",
    "spot": "so that what is left still serves when that share of the nodes is taken back",
}

# --- sheets -----------------------------------------------------------------------------------


def _styles(book: Any) -> dict[str, Any]:
    return {
        "head": book.add_format({"bold": True, "bottom": 1}),
        "title": book.add_format({"bold": True, "font_size": 14}),
        "input": book.add_format(
            {"bg_color": "#FFF6D6", "border": 1, "num_format": "#,##0.######"}
        ),
        "number": book.add_format({"num_format": "#,##0.00"}),
        "whole": book.add_format({"num_format": "#,##0"}),
        "wrap": book.add_format({"text_wrap": True, "valign": "top"}),
    }


def _sheet(book: Any, style: dict[str, Any], name: str, title: str, widths: Sequence[int]) -> Any:
    sheet = book.add_worksheet(name)
    for column, width in enumerate(widths):
        sheet.set_column(column, column, width)
    sheet.write(0, 0, title, style["title"])
    sheet.set_paper(9)  # A4
    sheet.fit_to_pages(1, 0)
    return sheet


def _inputs(book: Any, style: dict[str, Any], inputs: Sequence[Input]) -> None:
    sheet = _sheet(
        book, style, "Inputs", "What the plan rests on: change a yellow cell", (36, 16, 14, 22, 60)
    )
    sheet.write_row(2, 0, ("input", "value", "unit", "name in formulas", "source"), style["head"])
    for row, one in enumerate(inputs, start=3):
        sheet.write(row, 0, one.title)
        if one.value is None:
            sheet.write_blank(row, 1, None, style["input"])
        else:
            sheet.write_number(row, 1, one.value, style["input"])
        sheet.write_row(row, 2, (one.unit, one.name, one.source))
        book.define_name(one.name, f"=Inputs!$B${row + 1}")


def _budget(book: Any, style: dict[str, Any], report: PlanReport) -> None:
    budget = report.budget
    sheet = _sheet(book, style, "Budget", "Memory of one replica", (40, 16, 40))
    sheet.write_row(2, 0, ("part", "MiB", ""), style["head"])
    parts = (
        ("weights", budget.weights_bytes),
        ("runtime", budget.runtime_bytes),
        ("KV cache, the most at once", budget.kv_bytes),
        ("activations and the rest", budget.activations_bytes),
        ("margin", budget.margin_bytes),
    )
    for row, (name, size) in enumerate(parts, start=3):
        sheet.write(row, 0, name)
        sheet.write_number(row, 1, size / MIB, style["number"])
    last = 3 + len(parts)
    whole = sum(size for _, size in parts) / MIB
    sheet.write(last, 0, "sum", style["head"])
    sheet.write_formula(last, 1, f"=SUM(B4:B{last})", style["number"], whole)
    sheet.write(last + 1, 0, "container request, whole MiB")
    sheet.write_formula(last + 1, 1, f"=ROUNDUP(B{last + 1},0)", style["whole"], -(-whole // 1))
    sheet.write(last + 2, 0, "container limit")
    sheet.write_number(last + 2, 1, budget.limit_bytes / MIB, style["whole"])
    sheet.write_row(last + 4, 0, ("class", "may own, MiB", "evidence"), style["head"])
    for row, one in enumerate(budget.classes, start=last + 5):
        sheet.write(row, 0, one.name)
        if one.bytes is not None:
            sheet.write_number(row, 1, one.bytes / MIB, style["number"])
        sheet.write(row, 2, "p99" if one.is_p99 else "largest seen; p99 withheld")


def _density(book: Any, style: dict[str, Any], report: PlanReport) -> None:
    sheet = _sheet(
        book, style, "Density", "Replicas on each node", (34, 14, 12, 18, 18, 14, 14, 14, 14)
    )
    sheet.write_row(
        2, 0,
        ("node", "usable GiB", "replicas", "limited by", "over, share of time", "upper 95 %",
         "sum of peaks", "at a restart", "by vCPU", "by GPU memory"),
        style["head"],
    )  # fmt: skip
    for row, one in enumerate(report.nodes, start=3):
        capacity = one.capacity
        sheet.write(row, 0, f"{capacity.node.provider} {capacity.node.instance}")
        sheet.write_number(row, 1, capacity.usable_bytes / GIB, style["number"])
        sheet.write_number(row, 2, capacity.replicas, style["whole"])
        sheet.write(row, 3, capacity.limited_by)
        sheet.write_number(row, 4, one.overflow.share)
        sheet.write_number(row, 5, one.overflow.upper)
        sheet.write_number(row, 6, one.by_peaks, style["whole"])
        sheet.write_number(row, 7, one.by_restart, style["whole"])
        if one.by_vcpu is not None:
            sheet.write_number(row, 8, one.by_vcpu, style["whole"])
        if one.by_gpu is not None:
            sheet.write_number(row, 9, one.by_gpu, style["whole"])


def _tco(book: Any, style: dict[str, Any], report: PlanReport, costs: Costs, loss: Loss) -> None:
    sheet = _sheet(book, style, "TCO", "The first month", (44, 18, 70))
    sheet.write_row(2, 0, ("", "value", "how"), style["head"])
    tco, fleet = report.tco, report.fleet
    row = 3

    def line(name: str, title: str, formula: str, value: float | None, how: str) -> None:
        nonlocal row
        sheet.write(row, 0, title)
        sheet.write_formula(
            row, 1, f"={formula}", style["number"], "unknown" if value is None else value
        )
        sheet.write(row, 2, how)
        book.define_name(name, f"=TCO!$B${row + 1}")
        row += 1

    month = tco.usd_per_month if tco else None
    serving = fleet.periods[0].nodes_serving if fleet else None
    nodes = tco.nodes if tco else None
    line(
        "serving_nodes", "nodes that the traffic needs",
        'IF(replicas_per_node*requests_per_s>0,MAX(1,ROUNDUP(peak_requests_per_s/(replicas_per_node*'
        'requests_per_s)-0.000000001,0)),"unknown")',
        serving, "busiest traffic over what a node's replicas served",
    )  # fmt: skip
    spare = {
        "none": "0",
        "node": "1",
        "zone": "ROUNDUP(serving_nodes/(zones-1),0)",
        "spot": "ROUNDUP(serving_nodes/(1-spot_ratio)-0.000000001,0)-serving_nodes",
    }[loss]
    line(
        "spare_nodes", "spare nodes", spare,
        fleet.periods[0].nodes_spare if fleet else None, _LOSS[loss],
    )  # fmt: skip
    line(
        "nodes", "nodes, spares included", 'IFERROR(serving_nodes+spare_nodes,"unknown")', nodes, ""
    )
    base = _base_formula(costs)
    lines = {one.name: one.usd_per_month for one in tco.lines} if tco else {}
    first = [usd for name, usd in lines.items() if " × " in name]
    known = None if not first or None in first else sum(usd or 0.0 for usd in first)
    line("nodes_usd", "nodes, $/month", base, known, _base_words(costs))
    line(
        "month_usd", "a month, in all",
        'IF(ISNUMBER(nodes_usd),nodes_usd*(1+support_ratio)+people_usd+network_usd,"unknown")',
        month, "nodes and support, people, network",
    )  # fmt: skip
    load = "peak_requests_per_s*mean_ratio/requests_per_s"
    seconds = HOURS_PER_MONTH * 3600
    for name, title, rate, value in (
        ("usd_per_1m_in", "1M input tokens", "in_tokens_per_s", _of(tco, "usd_per_1m_input_tokens")),
        ("usd_per_1m_cached", "1M cached tokens", "cached_tokens_per_s",
         _of(tco, "usd_per_1m_cached_tokens")),
        ("usd_per_1m_out", "1M output tokens", "out_tokens_per_s", _of(tco, "usd_per_1m_output_tokens")),
    ):  # fmt: skip
        line(
            name, f"{title}, $",
            f'IFERROR(month_usd/({rate}*{load}*{seconds})*1000000,"unknown")',
            value, "the whole month over that many tokens",
        )  # fmt: skip
    line(
        "usd_per_gib_month", "a GiB-month of node memory, $",
        'IFERROR(month_usd/(nodes*node_gib),"unknown")', _of(tco, "usd_per_gib_month"), "",
    )  # fmt: skip
    line(
        "month_currency", f"a month, in {costs.currency.code}",
        'IFERROR(month_usd*per_usd,"unknown")',
        None if month is None else month * costs.currency.per_usd, costs.currency.source,
    )  # fmt: skip


def _sensitivity(book: Any, style: dict[str, Any], report: PlanReport, costs: Costs) -> None:
    """Each row recomputes the month by the same formula with one factor on one input."""
    sheet = _sheet(
        book, style, "Sensitivity", "A month, if one input were other than it is", (40, 16, 16, 16)
    )
    names = (
        ["usd_per_node_h"]
        if costs.own is None
        else ["dram_usd_per_gib", "chassis_usd", "usd_per_kwh"]
    )
    names += ["people_usd", "network_usd"]
    factors = (0.5, 0.8, 1.0, 1.2, 2.0, 4.0)
    sheet.write_row(2, 0, ("input", *(f"× {factor:g}" for factor in factors)), style["head"])
    for row, name in enumerate(names, start=3):
        sheet.write(row, 0, name)
        for column, factor in enumerate(factors, start=1):
            base = _base_formula(costs).replace(name, f"({factor}*{name})")
            month = f"({base})*(1+support_ratio)+people_usd+network_usd"
            if name in ("people_usd", "network_usd"):
                month = month.replace(name, f"({factor}*{name})")
            known = report.tco.usd_per_month if report.tco and factor == 1.0 else None
            sheet.write_formula(
                row, column, f'=IFERROR({month},"unknown")', style["number"],
                0 if known is None else known,
            )  # fmt: skip


def _sources(book: Any, style: dict[str, Any], report: PlanReport, inputs: Sequence[Input]) -> None:
    sheet = _sheet(book, style, "Sources", "Where each figure is from", (34, 100))
    rows = [
        ("run", f"{report.summary.path} ({report.summary.run_id})"),
        ("how replicas were counted", report.nodes[0].capacity.method),
        *((one.title, one.source) for one in inputs),
        *((one.code, f"{one.text} {one.hint}") for one in report.findings),
    ]
    for row, (name, text) in enumerate(rows, start=2):
        sheet.write(row, 0, name, style["wrap"])
        sheet.write(row, 1, text, style["wrap"])


def _of(tco: Tco | None, field: str) -> float | None:
    return None if tco is None else getattr(tco, field)


def _base_formula(costs: Costs) -> str:
    if costs.own is None:
        known = "AND(ISNUMBER(usd_per_node_h),ISNUMBER(nodes))"
        return f'IF({known},usd_per_node_h*{HOURS_PER_MONTH}*nodes,"unknown")'
    capex = "(chassis_usd+dram_gib*dram_usd_per_gib+accelerators_usd)"
    rate, months = "((1+wacc)^(1/12)-1)", "(years*12)"
    annuity = (
        f"IF(wacc=0,{capex}*(1-residual_ratio)/{months},"
        f"({capex}-{capex}*residual_ratio*(1+{rate})^(-{months}))*{rate}/(1-(1+{rate})^(-{months})))"
    )
    power = f"watts/1000*{HOURS_PER_MONTH}*pue*usd_per_kwh"
    return f'IF(ISNUMBER(nodes),({annuity}+{power}+rack_usd)*nodes,"unknown")'


def _base_words(costs: Costs) -> str:
    if costs.own is None:
        return f"price of an hour × {HOURS_PER_MONTH} h × nodes"
    return "annuity of what was bought, power at the PUE, rack"
