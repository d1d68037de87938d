"""The commands that hold runs against each other and against what was asked for: compare and check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memplan.commands.options import ForceOption, JsonOption
from memplan.errors import GateError, InputError

if TYPE_CHECKING:
    from memplan.results import Found

FileOption = Annotated[
    Path | None,
    typer.Option("--out", help="Write it to a file too: .html, or .md for a pull request."),
]


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Run folder, before.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Run folder, after.")],
    out: FileOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Says what changed from one run to another, and which changes are beyond chance.

    Example: memplan compare runs/bf16 runs/int8 --out change.md
    """
    from memplan.report.change_document import change_document, differences_of
    from memplan.results import print_one, write_document
    from memplan.stats.changes import changes_between

    ours, theirs = _one_run(before), _one_run(after)
    document = change_document(ours, theirs)
    raw = {
        "schema": "memplan.compare/1",
        "before": ours[0].path,
        "after": theirs[0].path,
        "differences": list(differences_of(ours[1], theirs[1])),
        "changes": [_json_of(one) for one in changes_between(ours[0], theirs[0])],
    }
    print_one(document, raw, as_json=as_json)
    if out is not None:
        write_document(document, out, force=force)


def check(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    budget: Annotated[
        Path | None,
        typer.Option(
            "--budget", help="model.yaml whose budgets and promises count; the run's own."
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Run folder of the baseline.")
    ] = None,
    tolerance: Annotated[
        str, typer.Option(help="How far memory may be above the baseline.")
    ] = "2%",
    allow_unknown: Annotated[
        bool,
        typer.Option("--allow-unknown", help="Do not fail for what the run is too short to tell."),
    ] = False,
    out: FileOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fails (exit code 6) where a run breaks a budget or a promise, or needs more than its baseline.

    Example: memplan check runs/new --against runs/main --tolerance 2% --out check.md
    """
    from memplan.builtin import model_yaml
    from memplan.report.change_document import gate_document, workload_differences
    from memplan.report.limits import limits_of, verdicts_of
    from memplan.results import failures_of, print_one, write_document
    from memplan.specs import load_deployment
    from memplan.stats.gate import regressions

    tolerance_ratio = _ratio_of(tolerance)
    summary, recording = _one_run(folder)
    deployment = (
        load_deployment(model_yaml(budget, None)).resolved()
        if budget is not None
        else recording.header.deployment
    )
    verdicts = verdicts_of(limits_of(deployment), summary)
    baseline = None if against is None else _one_run(against)
    if baseline is not None and (differs := workload_differences(baseline[1], recording)):
        raise InputError(
            f"--against {against}: not the same workload: {'; '.join(differs)}",
            hint="replay both with the same trace and options; memplan compare shows them anyway",
        )
    if not verdicts and baseline is None:
        raise InputError(
            f"{folder}: there is nothing to check: no class has a budget or an slo",
            hint="--budget model.yaml with budgets in it, or --against BASELINE",
        )
    found = regressions(baseline[0], summary, tolerance_ratio=tolerance_ratio) if baseline else ()
    failures = failures_of(verdicts, found, allow_unknown=allow_unknown)
    document = gate_document(
        (summary, recording), verdicts, found,
        baseline=baseline[0] if baseline else None,
        tolerance_ratio=tolerance_ratio, failures=failures,
    )  # fmt: skip
    raw = {
        "schema": "memplan.check/1",
        "run": summary.path,
        "against": baseline[0].path if baseline else None,
        "passed": not failures,
        "failures": list(failures),
        "limits": [
            {
                "class": one.limit.class_name,
                "on": one.limit.subject,
                "limit": one.limit.value,
                "measured": one.judged.value if one.judged else None,
                "p": one.judged.p if one.judged else None,
                "outcome": one.outcome,
                "is_certain": one.is_certain,
            }
            for one in verdicts
        ],
        "regressions": [{**_json_of(one.change), "outcome": one.outcome} for one in found],
    }
    print_one(document, raw, as_json=as_json)
    if out is not None:
        write_document(document, out, force=force)
    if failures:
        raise GateError(
            f"{folder}: {'; '.join(failures)}",
            hint=f"memplan explain {folder} says who held the memory at the peak",
        )


def _one_run(folder: Path) -> Found:
    from memplan.results import read_runs

    found = read_runs([folder])
    if len(found) != 1:
        raise InputError(
            f"{folder}: holds {len(found)} runs, expected one",
            hint=f"name one of them: {', '.join(one.path for one, _ in found[:4])}",
        )
    return found[0]


def _ratio_of(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        ratio = float(number) / 100
    except ValueError:
        ratio = -1.0
    if not text.strip().endswith("%") or not 0 <= ratio < 10:
        raise InputError(
            f"--tolerance: got {text!r}, expected a share such as 2%", hint="--tolerance 2%"
        )
    return ratio


def _json_of(change: object) -> dict[str, object]:
    import dataclasses

    from memplan.stats.changes import Change

    assert isinstance(change, Change)
    raw = dataclasses.asdict(change)
    raw["class"] = raw.pop("class_name")
    return {**raw, "difference": change.difference, "ratio": change.ratio}
