"""Replays beside each other, each against the first: what a technique saved and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memplan.records import EngineFacts, Recording
from memplan.report.density_section import NodeOffer
from memplan.report.pieces import Cell, Column, Section, Table
from memplan.report.replay_sections import main_memory
from memplan.report.wording import NOTHING, Text, ratio_text
from memplan.stats.summary import ClassSummary, RunSummary
from memplan.units import bytes_text, seconds_text, usd_text

_MONEY = (
    "Dollars: nodes full of replicas that all peak at once, on demand, at the rate of the replay; where "
    "vCPU limits a node, less memory saves nothing there."
)
Runs = Sequence[tuple[RunSummary, Recording]]
Measure = tuple[str, Sequence[float | None], Text]
"""A row: its name, one value a run, and how the value is written."""


def comparison_section(runs: Runs, offers: Sequence[Sequence[NodeOffer]] = ()) -> Section | None:
    """None for a single run. ``offers``: of each run, the cheapest replica first."""
    if len(runs) < 2:
        return None
    measures = (*_process_measures(runs), *_money_measures(offers), *_class_measures(runs))
    names = run_names(runs)
    table = Table(
        id="replay-comparison-table",
        title="Variants compared",
        columns=(Column(title="", align="left"), *(Column(title=name) for name in names)),
        rows=tuple(
            _measure_row(measure)
            for measure in measures
            if any(value is not None for value in measure[1])
        ),
        notes=(
            f"The second line is the change against {names[0]}, the first of them.",
            *([_MONEY] if any(offers) else ()),
        ),
    )
    return Section(
        id="replay-comparison",
        title="Variants beside each other (replay)",
        blocks=(table,),
    )


def run_names(runs: Runs) -> list[str]:
    """The variant, or the deployment where runs are of several, with its variant unless that is the
    base; with the run's id where two runs have one name."""
    deployments = {summary.deployment_name for summary, _ in runs}
    names = [
        one.variant
        if len(deployments) == 1
        else one.deployment_name + ("" if one.variant == "base" else f" {one.variant}")
        for one, _ in runs
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({one.run_id})"
        for name, (one, _) in zip(names, runs, strict=True)
    ]


def _process_measures(runs: Runs) -> Iterator[Measure]:
    summaries = [summary for summary, _ in runs]
    engines = [next(iter(recording.engines), None) for _, recording in runs]
    yield "weights as stored", [_weights(one) for one in engines], bytes_text
    yield "idle", [one.idle_bytes for one in summaries], bytes_text
    yield (
        "idle, proportional (PSS)",
        [one.idle.get("host.pss") if one else None for one in engines],
        bytes_text,
    )
    yield "peak while loading", [one.load_peak_bytes for one in summaries], bytes_text
    yield "peak", [one.peak_bytes for one in summaries], bytes_text
    yield "GPU idle", [one.gpu_idle_bytes for one in summaries], bytes_text
    yield "GPU peak", [one.gpu_peak_bytes for one in summaries], bytes_text
    yield "KV cache of one token", [_kv_per_token(one) for one in engines], bytes_text


def _money_measures(offers: Sequence[Sequence[NodeOffer]]) -> Iterator[Measure]:
    """On the node that is cheapest for the first run, and each run on the node that is cheapest for it:
    where vCPU limits, less memory saves nothing on the one, and may on the other."""
    if not offers or not offers[0]:
        return
    node = offers[0][0].node
    same = [next((one for one in each if one.node == node), None) for each in offers]
    best = [each[0] if each else None for each in offers]
    yield (
        f"replicas on {node.instance}",
        [one.density.replicas if one else None for one in same],
        lambda value: f"{value:,.0f}",
    )
    yield (
        f"a replica on {node.instance}, a month",
        [one.usd_per_replica_month if one else None for one in same],
        usd_text,
    )
    yield (
        "a replica on its cheapest node, a month",
        [one.usd_per_replica_month if one else None for one in best],
        usd_text,
    )
    yield (
        "1,000 requests there",
        [
            one.cost.on_demand.usd_per_1k_requests if one and one.cost.on_demand else None
            for one in best
        ],
        usd_text,
    )


def _class_measures(runs: Runs) -> Iterator[Measure]:
    for name in dict.fromkeys(one.name for summary, _ in runs for one in summary.classes):
        found = [_class_named(summary, name) for summary, _ in runs]
        owned = [main_memory(one).attributed.p95.value if one else None for one in found]
        e2e = [one.e2e_s.p95.value if one else None for one in found]
        yield f"{name} owns, p95", owned, bytes_text
        yield f"{name} end to end, p95", e2e, seconds_text


def _measure_row(measure: Measure) -> tuple[Cell, ...]:
    name, values, text = measure
    base = values[0]
    cells = [
        NOTHING
        if value is None
        else Cell(text=text(value), detail=ratio_text(value, base) if at and base else "")
        for at, value in enumerate(values)
    ]
    return (Cell(text=name), *cells)


def _weights(engine: EngineFacts | None) -> int | None:
    return engine.weights_bytes if engine else None


def _kv_per_token(engine: EngineFacts | None) -> int | None:
    return engine.kv_bytes_per_token if engine else None


def _class_named(summary: RunSummary, name: str) -> ClassSummary | None:
    return next((one for one in summary.classes if one.name == name), None)
