"""One variant under one workload, measured into one run folder: everything opened, run and closed."""

from __future__ import annotations

import datetime
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import memplan
from memplan.clock import Clock, MonotonicClock, VirtualClock
from memplan.compiled import cache_folder
from memplan.engines import open_engine
from memplan.errors import EngineError, InputError, MachineError
from memplan.machine import read_machine
from memplan.probes import open_probes
from memplan.probes.witness import WitnessProbe
from memplan.procfs import drift_bound_bytes
from memplan.quality import QualityMeter
from memplan.recording import ENGINE_LOG, WITNESS, RunWriter
from memplan.records import SCHEMA, Finding, RunEnd, RunHeader, WorkloadFacts
from memplan.replay import StopFlag, Watcher, replay
from memplan.specs import Deployment
from memplan.workload.ladder import Wave
from memplan.workload.retries import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to measure and where to write it."""

    kind: Literal["replay", "profile"]
    deployment: Deployment
    waves: tuple[Wave, ...]
    workload: WorkloadFacts
    folder: Path
    command: tuple[str, ...]
    sample_period_s: float
    restarts: int = 0
    """How often an engine that died may be started again."""
    repeats: int = 1
    """How many of the waves are replays of one trace."""
    force: bool = False
    retries: RetryPolicy | None = None
    quality: QualityMeter | None = None
    """Compares the variant's answers after the run; None leaves that out."""


def measure(job: Job, *, watcher: Watcher, stop: StopFlag) -> RunEnd:
    """Runs the job; the folder can be read again whatever happens on the way.

    Raises RecordingError before anything is measured when the folder cannot be written, and
    EngineError when the engine cannot start.
    """
    clock: Clock = VirtualClock() if job.deployment.engine == "scripted" else MonotonicClock()
    epoch_s = clock.now_s()
    writer = RunWriter(job.folder, header_of(job), force=job.force)
    witness = WitnessProbe(job.folder / WITNESS, epoch_s=epoch_s, cache=cache_folder())
    try:
        if job.deployment.has_processes_here and (finding := witness.start()) is not None:
            writer.finding(finding)
        end = replay(
            job.waves,
            open_engine=lambda number: open_engine(
                job.deployment,
                clock=clock,
                epoch_s=epoch_s,
                engine_start=number,
                log=job.folder / ENGINE_LOG,
            ),
            probes=(*open_probes(job.deployment), witness),
            writer=writer,
            clock=clock,
            epoch_s=epoch_s,
            sample_period_s=job.sample_period_s,
            restarts=job.restarts,
            # A profile's rungs say themselves which of them get a fresh engine.
            recycle_after=job.deployment.settings.recycle_after_requests
            if job.kind == "replay"
            else None,
            recycle_after_bytes=job.deployment.settings.recycle_after_bytes
            if job.kind == "replay"
            else None,
            retries=job.retries,
            stop=stop,
            watcher=watcher,
        )
        witness.stop()
        if job.quality is not None and end.reason == "finished":
            _add_quality(job.deployment, job.quality, writer, watcher=watcher, stop=stop)
        return end
    finally:
        witness.stop()
        writer.close()


@contextmanager
def stopping_on_signals() -> Iterator[StopFlag]:
    """The first Ctrl-C (or SIGTERM) sets the flag; the second one ends memplan at once."""
    stop = StopFlag()

    def handle(number: int, _: FrameType | None) -> None:
        if stop.is_set:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_name(deployment: Deployment, kind: str) -> str:
    """A folder name that sorts by time and says what it holds."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{kind}-{deployment.name}-{deployment.variant}"


def _add_quality(
    deployment: Deployment,
    meter: QualityMeter,
    writer: RunWriter,
    *,
    watcher: Watcher,
    stop: StopFlag,
) -> None:
    """The run has ended and is whole without it."""

    def told(done: int, total: int) -> bool:
        watcher.scored(done, total)
        return not stop.is_set

    try:
        quality = meter.quality_of(deployment, told)
    except (EngineError, MachineError, InputError) as error:
        writer.finding(_quality_not_measured(error.message, error.hint))
        return
    if quality is not None:
        writer.quality(quality)
        return
    writer.finding(_quality_not_measured("it was interrupted", "Measure again for it."))
    raise KeyboardInterrupt


def _quality_not_measured(reason: str, hint: str) -> Finding:
    return Finding(
        code="quality_not_measured",
        text=f"What this variant costs in answers was not measured: {reason}. Nothing here says that "
        "what it saves is free.",
        hint=hint,
    )


def header_of(job: Job) -> RunHeader:
    """What will be written before it is measured."""
    return RunHeader(
        schema=SCHEMA,
        kind=job.kind,
        run_id=secrets.token_hex(6),
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        memplan_version=memplan.__version__,
        command=job.command,
        deployment_name=job.deployment.name,
        variant=job.deployment.variant,
        deployment=job.deployment.resolved(),
        model_digest=_model_digest(job.deployment),
        workload=job.workload,
        machine=read_machine(),
        sample_period_s=job.sample_period_s,
        drift_bound_bytes=drift_bound_bytes(os.cpu_count() or 1),
        repeats=job.repeats,
    )


def _model_digest(deployment: Deployment) -> str | None:
    if deployment.model is None:
        return None
    from memplan.engines.torch.prepare import fingerprint  # noqa: PLC0415 - no torch in it

    return fingerprint(deployment.model_file())
