"""The commands that read what was measured, or what could be: report, explain and doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memplan.commands.options import ForceOption, JsonOption


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or a profile's folder.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File .html, .md, or .yaml (llm-d); report.html in the first run."
        ),
    ] = None,
    nodes: Annotated[
        Path | None, typer.Option(help="CSV of node shapes and prices; a built-in one.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Writes one self-contained HTML page from recordings; nothing is measured again.

    With --json the document goes to stdout, and a page is written only where --out says.

    Example: memplan report memplan-runs/20261123T120000-replay-smollm2-135m-base
    """
    from memplan.recording import REPORT
    from memplan.results import print_runs, read_gateways, read_runs, write_report

    found, gateways = read_runs(runs), read_gateways(runs)
    if as_json:
        print_runs(found, as_json=True, gateways=gateways)
    if out is not None or not as_json:
        target = out or runs[0] / REPORT
        write_report(found, target, nodes=nodes, force=force, gateways=gateways)
        print(target, file=sys.stderr if as_json else sys.stdout)


def explain(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a profile's.")],
    as_json: JsonOption = False,
) -> None:
    """Says for each class when its memory peaked, who held it, and what would lower it.

    Example: memplan explain memplan-runs/20261123T120000-replay-smollm2-135m-base
    """
    from memplan.results import print_explanations, read_recordings

    print_explanations(read_recordings([folder]), as_json=as_json)


def doctor(as_json: JsonOption = False) -> None:
    """Says what can be measured on this machine, and what a missing source no longer proves.

    Example: memplan doctor
    """
    import dataclasses
    import json

    from memplan.doctor import examine, print_checks

    checks = examine()
    if as_json:
        rows = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"schema": "memplan.doctor/1", "checks": rows}, indent=2))
    else:
        print_checks(checks)
