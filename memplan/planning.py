"""From one run and what was asked to a plan, and to the files that it is written as."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from memplan.errors import InputError, RecordingError
from memplan.plan.budget import budget_of, snippets_of
from memplan.plan.density import ReplicaNeed, density_of, need_of
from memplan.plan.fleet import Demand, fleet_of
from memplan.plan.memory_model import MemoryModel, fit_memory, observations_of
from memplan.plan.node_memory import path_of, shared_files
from memplan.plan.nodes import NodeSpec
from memplan.plan.plan import Asked, NodePlan, node_plan
from memplan.plan.tco import price_of, tco_of
from memplan.records import Finding, Recording
from memplan.report.focus import focus_csv
from memplan.report.plan_document import PlanReport, plan_document
from memplan.results import catalog_of, write_document
from memplan.specs.costs import Costs
from memplan.stats.summary import RunSummary
from memplan.units import bytes_text

MOST_NODES = 8
"""Without --node: those whose replicas are cheapest."""
MARGIN_RATIO = 0.1
"""On what a replica holds above idle, in its container's request."""

_NO_NODE = {
    False: "no node can be planned: the run used no GPU, so that nodes with GPUs are not offered to it",
    True: "no node can be planned: the run used a GPU, and these nodes have none, or of unknown memory",
}
NOTABLE_GROWTH = 0.05
"""Of what an idle replica holds."""

NOT_THE_NEED = ("refaults", "memory_pressure", "swap_used", "engine_degraded")
"""Findings of a run whose resident memory shrank under pressure: no plan is made from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a plan is asked."""

    asked: Asked
    nodes: tuple[str, ...]
    peak_requests_per_s: float | None
    """None: what one replica served, so that one node is planned."""
    demand: Demand
    costs: Costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    report: PlanReport
    demand: Demand
    costs: Costs
    first_month: date
    """Of the plan: the one after that in which the run was measured."""


def read_catalog(path: Path | None) -> tuple[NodeSpec, ...]:
    return catalog_of(path)


def plan_of(
    run: tuple[RunSummary, Recording], catalog: Sequence[NodeSpec], question: Question
) -> Made:
    """Raises RecordingError for a run that holds nothing to plan from, InputError for what was asked."""
    summary, recording = run
    if summary.kind != "replay":
        raise RecordingError(
            f"{summary.path}: is a profile, and a plan needs a replay: a ladder's peak is not the peak "
            "of any traffic",
            hint="memplan replay TRACE --model model.yaml, and plan from that run",
        )
    short = [one.code for one in summary.findings if one.code in NOT_THE_NEED]
    if short:
        raise RecordingError(
            f"{summary.path}: memory was short while it was measured ({', '.join(short)}), so that what "
            "was resident is what was left, and not what is needed",
            hint="replay without a memory limit, or with one at which these findings go, and plan from "
            "that run",
        )
    if summary.not_the_trace is not None:
        raise RecordingError(
            f"{summary.path}: {summary.not_the_trace.text}", hint=summary.not_the_trace.hint
        )
    need = need_of(summary, _threads(recording))
    budget = budget_of(summary, recording, margin_ratio=MARGIN_RATIO)
    files = shared_files(recording, summary.shared_bytes)
    path = path_of(recording, summary.shared_bytes)
    if need is None or budget is None or not len(path):
        raise RecordingError(
            f"{summary.path}: nothing was served in it, so there is no memory to plan from",
            hint="memplan report says what became of its requests",
        )
    model = fit_memory(list(observations_of(recording)))
    chosen = _chosen(catalog, question, need)
    plans = [
        made
        for node in chosen
        if (
            made := node_plan(
                summary,
                recording,
                node,
                path=path,
                files=files,
                need=need,
                model=model,
                asked=question.asked,
            )
        )
        is not None
    ]
    if not plans:
        raise InputError(
            _NO_NODE[need.gpu_peak_bytes is not None],
            hint="--node with another instance, or --nodes nodes.csv with a line for one",
        )
    if not question.nodes:
        plans.sort(key=lambda one: _order(one.capacity.node, one.capacity.replicas, question.costs))
    first = plans[0]
    asked = question.peak_requests_per_s
    peak = asked if asked is not None else first.capacity.requests_per_s or 1.0
    demand = replace(question.demand, peak_requests_per_s=peak)
    fleet = fleet_of(first.capacity, demand)
    tco = tco_of(fleet, question.costs, demand.mean_ratio) if fleet is not None else None
    report = PlanReport(
        summary=summary,
        asked=question.asked,
        model=model,
        budget=budget,
        nodes=tuple(plans),
        fleet=fleet,
        tco=tco,
        findings=(*_doubts(first, model, question, recording), *summary.findings),
    )
    return Made(
        report=report,
        demand=demand,
        costs=question.costs,
        first_month=_month_after(recording.header.started_at),
    )


def plan_json(made: Made) -> dict[str, Any]:
    """``memplan.plan/1``: docs/plan-json.md."""
    report = made.report
    return {
        "schema": "memplan.plan/1",
        "run": {"path": report.summary.path, "run_id": report.summary.run_id},
        "asked": dataclasses.asdict(report.asked),
        "demand": dataclasses.asdict(made.demand),
        "model": None if report.model is None else _plain(report.model),
        "budget": {
            **dataclasses.asdict(report.budget),
            "snippets": dict(snippets_of(report.budget)),
        },
        "nodes": [_node_json(one) for one in report.nodes],
        "fleet": None
        if report.fleet is None
        else [dataclasses.asdict(one) for one in report.fleet.periods],
        "tco": None if report.tco is None else _plain(report.tco),
        "findings": [dataclasses.asdict(one) for one in report.findings],
    }


def write_plan(made: Made, raw: Mapping[str, Any], folder: Path) -> None:
    """plan.json, plan.html, plan.md and plan.xlsx, and where there is a fleet plan.focus.csv; replaces
    what is there. Raises InputError."""
    from memplan.report.xlsx import workbook_of  # noqa: PLC0415 - xlsxwriter, for this one verb

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        (folder / "plan.xlsx").write_bytes(workbook_of(made.report, made.demand, made.costs))
        if made.report.fleet is not None:
            rows = focus_csv(made.report.fleet, made.costs, made.first_month)
            (folder / "plan.focus.csv").write_text(rows, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written: {error.strerror}", hint="name another folder with --out"
        ) from error
    document = plan_document(made.report)
    write_document(document, folder / "plan.html", force=True)
    write_document(document, folder / "plan.md", force=True)


def _month_after(started_at: str) -> date:
    """``started_at`` in ISO 8601; this month where a run does not say."""
    try:
        day = date.fromisoformat(started_at[:10])
    except ValueError:
        day = datetime.now(UTC).date()
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def read_plan(path: Path) -> dict[str, Any]:
    """plan.json, or the folder that holds it. Raises InputError for anything else."""
    file = path / "plan.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: cannot be read as a plan: {error}", hint="memplan plan RUN --out FOLDER"
        ) from error
    if not isinstance(raw, dict) or raw.get("schema") != "memplan.plan/1":
        raise InputError(
            f"{file}: is no plan: its schema is "
            f"{raw.get('schema') if isinstance(raw, dict) else type(raw).__name__!r}",
            hint="memplan plan RUN --out FOLDER writes plan.json",
        )
    return raw


def _chosen(catalog: Sequence[NodeSpec], question: Question, need: ReplicaNeed) -> list[NodeSpec]:
    """In the order of the names; without names those whose replicas, all at their peak, are cheapest."""
    if not question.nodes:

        def by_peaks(node: NodeSpec) -> int:
            density = density_of(need, node, headroom_ratio=question.asked.headroom_ratio)
            return density.replicas if density else 0

        fit = [node for node in catalog if node.has_gpu == (need.gpu_peak_bytes is not None)]
        return sorted(fit, key=lambda node: _order(node, by_peaks(node), question.costs))[
            :MOST_NODES
        ]
    found = []
    for name in question.nodes:
        like = [one for one in catalog if one.instance == name]
        if not like:
            known = ", ".join(sorted(one.instance for one in catalog if not one.has_gpu)[:12])
            raise InputError(
                f"--node {name}: the catalog has no such instance, expected one such as {known}",
                hint="--nodes nodes.csv with a line for it",
            )
        found += like
    return found


def _order(node: NodeSpec, replicas: int, costs: Costs) -> tuple[bool, float, str]:
    """The cheapest replica first; unknown prices and empty nodes last."""
    price = price_of(node, costs.basis)
    is_known = price is not None and replicas > 0
    return (not is_known, (price or 0.0) / max(replicas, 1), node.instance)


def _threads(recording: Recording) -> int | None:
    text = recording.engines[-1].settings.get("threads", "") if recording.engines else ""
    return (int(text) or None) if text.isdecimal() else None


def _doubts(
    first: NodePlan, model: MemoryModel | None, question: Question, recording: Recording
) -> list[Finding]:
    found = []
    over, asked = first.overflow, question.asked.overflow
    if over.upper > asked:
        wanted = f"{int(3 / asked):,} would be needed" if asked else "no run can show never"
        found.append(
            Finding(
                code="overflow_not_proven",
                text=f"Overflow in at most {asked:g} of the time was asked, and {over.share:.2g} "
                f"was seen; but {over.blocks} independent blocks only show less than "
                f"{over.upper:.2g} with 95 % confidence ({wanted}).",
                hint="Replay a longer trace, or ask for a larger --overflow.",
            )
        )
    if first.held_out is None:
        found.append(
            Finding(
                code="density_not_held_out",
                text="The run is too short to choose a density on one half and try it on the other, "
                "so no margin was found, and the replicas are those of the run alone.",
                hint="Replay at least a minute and a half of traffic.",
            )
        )
    elif not first.held_out.holds:
        found.append(
            Finding(
                code="density_did_not_hold",
                text="No margin up to 50 % makes a density chosen on one half of the run hold on the "
                "other: its halves are different traffic.",
                hint="Replay more of the trace; until then plan with the sum of peaks.",
            )
        )
    if model is not None and model.share_explained < 0.5:
        found.append(
            Finding(
                code="memory_law_is_weak",
                text=f"On parts that it was not fitted on the law explains {model.share_explained:.0%} "
                "of the variance of resident memory: it is no ground for other traffic.",
                hint="Replay traffic that varies more, or a profile's ladder.",
            )
        )
    if model is not None and (finding := growth_with_lengths(model, recording)) is not None:
        found.append(finding)
    return found


def growth_with_lengths(model: MemoryModel, recording: Recording) -> Finding | None:
    """What the run did not see of memory that each new length of a prompt chunk costs for good."""
    term = next(one for one in model.terms if one.name == "chunk_lengths")
    settings: Mapping[str, Any] = recording.header.deployment.get("settings", {})  # type: ignore[assignment]
    most, seen = settings.get("max_batch_tokens", 0), model.measured["chunk_lengths"][1]
    more_bytes = term.low * (most - seen)
    if more_bytes <= NOTABLE_GROWTH * model.fixed.value:
        return None
    return Finding(
        code="memory_grows_with_lengths",
        text=f"Each length of a prompt chunk that was not there before costs "
        f"{bytes_text(round(term.value))} for good (95 %: {bytes_text(round(term.low))} to "
        f"{bytes_text(round(term.high))}): the matrix library compiles code for it. The run saw "
        f"{seen:.0f} of {most} lengths; with all of them a replica would hold "
        f"{bytes_text(round(more_bytes))} or more on top, which this plan does not count.",
        hint="Replay a longer trace; or a variant with a smaller max_batch_tokens, as there are no more "
        "lengths than that.",
    )


def _node_json(one: NodePlan) -> dict[str, Any]:
    raw = dataclasses.asdict(one)
    capacity = raw.pop("capacity")
    node = capacity.pop("node")
    return {
        "node": {"provider": node["provider"], "instance": node["instance"]},
        **capacity,
        **{key: value for key, value in raw.items() if key != "overflow"},
        "overflow": raw["overflow"]["share"],
        "overflow_upper": raw["overflow"]["upper"],
        "overflow_blocks": raw["overflow"]["blocks"],
    }


def _plain(value: Any) -> dict[str, Any]:
    raw = dataclasses.asdict(value)
    if "dram" in raw:
        raw["dram"] = {f"{factor:g}": usd for factor, usd in raw["dram"].items()}
    return raw
