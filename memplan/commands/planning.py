"""The command that plans: how many replicas fit, with which limits, at which risk, and what that
costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from memplan.commands.options import ForceOption, JsonOption
from memplan.errors import InputError


def plan(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a replay.")],
    nodes: Annotated[
        Path | None, typer.Option(help="CSV of node shapes and prices; a built-in one.")
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Only these instances; the first is chosen.")
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="costs.yaml: people, support, own hardware, an API's price.")
    ] = None,
    overflow: Annotated[
        float, typer.Option(help="Share of time in which replicas may want more than a node has.")
    ] = 1e-4,
    headroom: Annotated[float, typer.Option(help="Share of each node that is kept free.")] = 0.1,
    demand: Annotated[
        float | None,
        typer.Option(help="Requests/s of the whole service at its busiest; one replica's rate."),
    ] = None,
    mean_ratio: Annotated[float, typer.Option(help="Mean over busiest traffic.")] = 0.5,
    growth: Annotated[float, typer.Option(help="Growth a month; 0.05 is 5 %.")] = 0.0,
    months: Annotated[int, typer.Option(help="How many.")] = 12,
    loss: Annotated[
        str,
        typer.Option(
            help="What may fail without turning requests away: none | node | zone | spot."
        ),
    ] = "node",
    zones: Annotated[int, typer.Option(help="Zones that nodes are spread over.")] = 3,
    spot_ratio: Annotated[
        float,
        typer.Option(help="Share of the nodes that may be taken back at once, for --loss spot."),
    ] = 0.25,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for plan.json, .html, .md, .xlsx and .focus.csv."),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Plans nodes from a replay: density with its risk, budgets and limits, a fleet over time, and
    money.

    Example: memplan plan memplan-runs/day --node n2-standard-16 --demand 40 --out plan
    """
    from memplan.plan.fleet import Demand, Loss
    from memplan.plan.plan import Asked
    from memplan.planning import Question, plan_json, plan_of, read_catalog, write_plan
    from memplan.report.plan_document import plan_document
    from memplan.results import print_one, read_runs
    from memplan.specs.costs import Costs, load_costs

    if loss not in get_args(Loss):
        raise InputError(
            f"--loss: got {loss!r}, expected none, node, zone or spot", hint="--loss node"
        )
    if not 0 <= overflow < 1:
        raise InputError(
            f"--overflow: got {overflow:g}, expected a share of time from 0 to below 1",
            hint="--overflow 1e-4",
        )
    if out is not None and (out / "plan.json").exists() and not force:
        raise InputError(f"{out}: holds a plan already", hint="add --force, or name another --out")
    found = read_runs([folder])
    if len(found) != 1:
        raise InputError(
            f"{folder}: holds {len(found)} runs, expected one replay",
            hint=f"name one of them: {', '.join(one.path for one, _ in found[:4])}",
        )
    question = Question(
        asked=Asked(overflow=overflow, headroom_ratio=headroom),
        nodes=tuple(node or ()),
        peak_requests_per_s=demand,
        demand=Demand(
            peak_requests_per_s=1.0 if demand is None else demand,
            mean_ratio=mean_ratio,
            growth_per_month=growth,
            months=months,
            loss=cast(Loss, loss),
            zones=zones,
            spot_ratio=spot_ratio,
        ),
        costs=load_costs(costs) if costs is not None else Costs(memplan_costs=1),
    )
    made = plan_of(found[0], read_catalog(nodes), question)
    raw = plan_json(made)
    print_one(plan_document(made.report), raw, as_json=as_json)
    if out is not None:
        write_plan(made, raw, out)
        print(out / "plan.html", file=sys.stderr if as_json else sys.stdout)
