"""A deployment with pools under one trace: everything opened, run and closed, each pool a run folder."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import psutil

from memplan.cgroups import Place
from memplan.clock import Clock, MonotonicClock, VirtualClock
from memplan.compiled import cache_folder
from memplan.engines import open_engine
from memplan.gateway.loop import Pool, replay_pools
from memplan.gateway.routing import Gateway, pools_in_use
from memplan.gateway_file import GatewayWriter
from memplan.measure import Job, header_of
from memplan.probes import open_probes
from memplan.probes.witness import WitnessProbe
from memplan.recording import ENGINE_LOG, WITNESS, RunWriter
from memplan.records import GATEWAY_SCHEMA, GatewayHeader, Request, Sample
from memplan.replay import EngineRun, StopFlag, Watcher
from memplan.specs import Deployment
from memplan.specs.pools import PoolSpec
from memplan.wear import Wear
from memplan.workload.ladder import Wave

PRESSURE_PERIOD_S = 0.1
"""Between two looks at what is available to the node."""


def measure_pools(
    job: Job, *, watcher: Watcher, stop: StopFlag, above: Place | None = None
) -> bool:
    """True when every request's path has ended. ``job.waves`` is one wave; ``above``: the control group
    that the pools' engines are made in.

    Raises RecordingError before anything is measured when a folder cannot be written, and EngineError
    when a pool's engine cannot start: requests that it would have served have no way yet.
    """
    deployment = job.deployment
    (wave,) = job.waves
    used = pools_in_use(deployment.routes, wave.requests)
    specs = [spec for spec in deployment.pools if spec.name in used]
    clock: Clock = VirtualClock() if deployment.engine == "scripted" else MonotonicClock()
    epoch_s = clock.now_s()
    writer = GatewayWriter(job.folder, _header(job, specs), force=job.force)
    is_whole = False
    try:
        writer.schedule(wave.requests)
        with ExitStack() as closing:
            pools = {
                spec.name: _open_pool(
                    job, spec, clock, epoch_s, _Quiet(watcher), stop, closing, above
                )
                for spec in specs
            }
            for pool in pools.values():
                pool.run.start_engine(wave)
            is_whole = replay_pools(
                wave.requests,
                pools=pools,
                gateway=Gateway(
                    deployment.routes, specs, alive=lambda name: not pools[name].run.is_dead
                ),
                writer=writer,
                clock=clock,
                epoch_s=epoch_s,
                stop=stop,
                watcher=watcher,
                is_under_pressure=_pressure(deployment, clock),
            )
            for pool in pools.values():
                pool.run.end()
        return is_whole
    finally:
        writer.close(is_whole=is_whole)


def _open_pool(
    job: Job,
    spec: PoolSpec,
    clock: Clock,
    epoch_s: float,
    watcher: Watcher,
    stop: StopFlag,
    closing: ExitStack,
    above: Place | None,
) -> Pool:
    deployment = job.deployment.pool(spec)
    own = replace(job, deployment=deployment, folder=job.folder / spec.name)
    writer = RunWriter(own.folder, header_of(own), force=job.force)
    closing.callback(writer.close)
    writer.schedule(())
    witness = WitnessProbe(own.folder / WITNESS, epoch_s=epoch_s, cache=cache_folder())
    closing.callback(witness.stop)
    if deployment.has_processes_here and (finding := witness.start()) is not None:
        writer.finding(finding)
    pool = Pool(writer)
    pool.run = EngineRun(
        lambda number: open_engine(
            deployment,
            clock=clock,
            epoch_s=epoch_s,
            engine_start=number,
            log=own.folder / ENGINE_LOG,
            above=above,
        ),
        (*open_probes(deployment), witness),
        writer,
        clock,
        epoch_s,
        job.sample_period_s,
        stop,
        watcher,
        restarts=0,
        wear=Wear(requests=None, grown_bytes=None),
        heard=pool.heard,
    )
    closing.callback(pool.run.stop_engine)
    return pool


def _header(job: Job, specs: list[PoolSpec]) -> GatewayHeader:
    deployment = job.deployment
    return GatewayHeader(
        schema=GATEWAY_SCHEMA,
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        deployment_name=deployment.name,
        pools=tuple(spec.name for spec in specs),
        gateway={
            "pools": [
                {
                    "name": spec.name,
                    "max_in_flight": spec.max_in_flight,
                    "max_tokens_in_flight": spec.max_tokens_in_flight,
                }
                for spec in deployment.pools
            ],
            "routes": [route.model_dump(mode="json") for route in deployment.routes],
            "pressure": deployment.gateway.model_dump(mode="json")["pressure"],
        },
        workload=job.workload,
    )


def _pressure(deployment: Deployment, clock: Clock) -> Callable[[], bool]:
    """Whether the node is short of memory, looked up at most every ``PRESSURE_PERIOD_S``."""
    pressure = deployment.gateway.pressure
    if pressure is None or deployment.engine == "scripted":  # which holds no memory of any node
        return lambda: False
    looked_s, is_short = -PRESSURE_PERIOD_S, False

    def look() -> bool:
        nonlocal looked_s, is_short
        now_s = clock.now_s()
        if now_s - looked_s >= PRESSURE_PERIOD_S:
            looked_s = now_s
            is_short = psutil.virtual_memory().available < pressure.available_below_bytes
        return is_short

    return look


class _Quiet:
    """A pool's engine under the gateway's progress, which counts requests by their whole way."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def engine_starting(self, wave: str) -> None:
        self._watcher.engine_starting(wave)

    def wave_started(self, wave: Wave) -> None: ...

    def request_ended(self, request: Request) -> None: ...

    def sampled(self, sample: Sample, in_flight: int) -> None:
        self._watcher.sampled(sample, in_flight)

    def scored(self, done: int, total: int) -> None: ...
