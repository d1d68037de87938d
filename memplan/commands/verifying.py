"""The command that tries a plan on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memplan.commands.options import ForceOption, JsonOption, ModelOption
from memplan.errors import GateError, InputError


def verify(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json, or its folder.")],
    trace: Annotated[Path, typer.Argument(help="The trace that the plan's run replayed.")],
    model: ModelOption = None,
    replicas: Annotated[int, typer.Option(min=1, help="N: how many are to hold.")] = 2,
    limit: Annotated[
        int, typer.Option(min=1, help="Requests of each replica, behind those of the plan's run.")
    ] = 40,
    dilation: Annotated[
        float | None,
        typer.Option(help="Factor on all times between arrivals; the run's own by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write both runs to.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Starts the planned N replicas under a real memory limit, and N + 1; ends with 6 if N do not hold.

    The node is scaled: its memory is what the plan's own rule says that N replicas need.

    Example: memplan verify plan/plan.json azure_code.csv --model model.yaml --replicas 2
    """
    import dataclasses

    from memplan.builtin import model_yaml
    from memplan.jobs import trace_waves, variant_of
    from memplan.measure import run_name, stopping_on_signals
    from memplan.planning import read_plan
    from memplan.progress import ProgressWatcher
    from memplan.recording import read_run
    from memplan.results import print_one
    from memplan.specs import load_deployment
    from memplan.stats.summarise import summarise
    from memplan.verify_document import verify_document
    from memplan.verifying import scaled_node, try_replicas, warm_up_files

    raw = read_plan(plan)
    recording = read_run(Path(raw["run"]["path"]))
    header = recording.header
    deployment = variant_of(load_deployment(model_yaml(model, trace)), header.variant)
    if deployment.engine == "scripted":
        raise InputError(
            "memplan verify: engine scripted allocates no memory, so no limit could stop it",
            hint="use a run of the engines torch or ballast",
        )
    if deployment.resolved()["settings"] != header.deployment.get("settings"):
        raise InputError(
            f"{model or 'model.yaml'}: its settings are not those of the plan's run {header.run_id}",
            hint="give the model.yaml that the run was made with",
        )
    waves, facts = trace_waves(
        trace,
        deployment,
        start_row=len(recording.requests),
        limit=limit * (replicas + 1),
        length_scale=header.workload.length_scale,
        dilation=dilation or header.workload.dilation,
        oversize="reject",
    )
    if facts.sha256 != header.workload.sha256:
        raise InputError(
            f"{trace}: is not the trace that the plan's run replayed",
            hint=f"give {header.workload.source}, so that the rows behind those are new to the plan",
        )
    node = scaled_node(
        recording,
        summarise(recording).shared_bytes,
        replicas,
        target=float(raw["asked"]["overflow"]),
    )
    folder = out or Path("memplan-runs") / run_name(deployment, "verify")
    warm_up_files(deployment, folder)
    trials = []
    for count in (replicas, replicas + 1):
        requests = waves[0].requests[: limit * count]
        label = f"{deployment.name}: {count} replicas"
        with (
            stopping_on_signals() as stop,
            ProgressWatcher(label, (dataclasses.replace(waves[0], requests=requests),)) as watcher,
        ):
            trials.append(
                try_replicas(
                    deployment, requests, facts, node, count,
                    folder=folder / f"{count}-replicas", command=tuple(sys.argv[1:]), force=force,
                    watcher=watcher, stop=stop,
                )
            )  # fmt: skip
            if stop.is_set:
                raise typer.Exit(130)
    document = verify_document(node, trials[0], trials[1])
    print_one(
        document,
        {
            "schema": "memplan.verify/1",
            "plan": str(plan),
            "node": {**dataclasses.asdict(node), "limit_bytes": node.limit_bytes},
            "trials": [{**dataclasses.asdict(one), "holds": one.holds} for one in trials],
            "n_holds": trials[0].holds,
            "next_holds": trials[1].holds,
        },
        as_json=as_json,
    )
    print(f"runs: {folder}", file=sys.stderr)
    if not trials[0].holds:
        raise GateError(
            f"{replicas} replicas did not hold in {node.limit_bytes:,} bytes: {trials[0].died} of "
            f"them died, {trials[0].completed} of {trials[0].requests} requests were completed",
            hint="plan again with a smaller --overflow or a longer run",
        )
