"""The command that simulates replicas: what they would do with more traffic than was replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memplan.commands.options import (
    ColumnsOption,
    ForceOption,
    JsonOption,
    TraceFormatOption,
)
from memplan.errors import InputError


def simulate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a replay.")],
    trace: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRACE", help="A trace, all of it; the run's own requests by default."
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests/s to all replicas together; the trace's own by default."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many rows.")] = None,
    length_scale: Annotated[
        float | None, typer.Option(help="Factor on all lengths; the run's own by default.")
    ] = None,
    trace_format: TraceFormatOption = None,
    columns: ColumnsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write it to a file too: .html or .md.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Simulates replicas with a run's engine rules and fitted laws: latency, KV, memory and what limits.

    Example: memplan simulate memplan-runs/day azure_code.csv --replicas 12 --rate 8
    """
    from memplan.results import print_one, read_runs, write_document
    from memplan.simulating import simulate_requests, simulator_of
    from memplan.simulation_document import simulation_document, simulation_json
    from memplan.specs import classes_of_record
    from memplan.workload.classify import plan_requests
    from memplan.workload.trace import read_trace

    if rate is not None and not 0 < rate < 1e9:
        raise InputError(f"--rate: got {rate:g} requests/s, expected more than 0", hint="--rate 8")
    if trace is None and length_scale is not None:
        raise InputError(
            f"--length-scale {length_scale:g}: the run's own requests have their lengths",
            hint="name a TRACE, or leave it out",
        )
    found = read_runs([folder])
    if len(found) != 1 or found[0][0].kind != "replay":
        raise InputError(
            f"{folder}: holds {len(found)} runs, expected one replay",
            hint="name the folder of one replay",
        )
    summary, recording = found[0]
    simulator = simulator_of(summary.path, recording)
    requests = recording.requests
    if trace is not None:
        own_scale = recording.header.workload.length_scale
        requests = plan_requests(
            read_trace(trace, trace_format, columns=columns),
            classes=classes_of_record(recording.header.deployment),
            length_scale=own_scale if length_scale is None else length_scale,
            limit=limit,
        )
    simulated = simulate_requests(simulator, requests[:limit], replicas, rate)
    document = simulation_document(summary.deployment_name, simulator, simulated)
    print_one(document, simulation_json(summary.path, simulator, simulated), as_json=as_json)
    if out is not None:
        write_document(document, out, force=force)
