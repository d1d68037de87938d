"""A plan tried on this machine: N replicas in one control group with the memory that the plan says N
need, under traffic that the plan was not made from; and then one replica more.

The node is scaled: its memory is what the plan's own rule gives N replicas. Files that replicas map
(weights, libraries) are in the page cache before, so they are charged to nobody here and are taken off
the limit. What only a control group counts comes on top: the kernel's own memory (stacks, open files),
and pages that each CPU holds charged ahead of their use.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from memplan.cgroups import make_group
from memplan.cgroups.gauges import GroupMemory
from memplan.clock import MonotonicClock
from memplan.engines import open_engine
from memplan.errors import InputError, MachineError
from memplan.gateway.measuring import measure_pools
from memplan.gateway_file import read_gateway
from memplan.measure import Job
from memplan.pages import PAGE_BYTES
from memplan.plan.node_memory import (
    held_out,
    most_replicas,
    needed_bytes,
    path_of,
    shared_files,
)
from memplan.recording import ENGINE_LOG, read_run
from memplan.records import Recording, Request, WorkloadFacts
from memplan.replay import StopFlag, Watcher
from memplan.specs import Deployment
from memplan.specs.pools import PoolSpec, RouteSpec, RouteWhen
from memplan.workload.ladder import Wave

REPLICA_LABEL = "memplan.replica"
CHARGED_AHEAD_PAGES = 64
"""The kernel charges a group so many pages at once and keeps the rest for the CPU's next faults
(MEMCG_CHARGE_BATCH, include/linux/memcontrol.h). At the limit it asks other CPUs to give theirs back,
but kills without waiting for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledNode:
    """A node that the plan's rule fills with ``replicas``."""

    replicas: int
    usable_bytes: int
    files_bytes: int
    """Of it, files that all replicas map."""
    margin_ratio: float
    kernel_bytes: int
    """What the kernel holds for ``replicas`` engines beside page tables, as the run's samples say; 0
    where no group of the engine's own was sampled."""
    charged_ahead_bytes: int
    """By this machine's CPUs."""

    @property
    def limit_bytes(self) -> int:
        own = self.usable_bytes - self.files_bytes
        return own + self.kernel_bytes + self.charged_ahead_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """So many replicas on the scaled node."""

    replicas: int
    requests: int
    completed: int
    died: int
    """Engines that ended on their own: killed by the kernel, or failed."""
    oom_kills: int
    peak_charged_bytes: int | None
    refaults: int | None
    folder: str
    problem: str | None
    """Why an engine did not even start."""

    @property
    def holds(self) -> bool:
        return self.problem is None and not self.died and self.completed == self.requests


def scaled_node(
    recording: Recording, shared_bytes: int, replicas: int, *, target: float
) -> ScaledNode:
    """The smallest that the plan's rule gives ``replicas``. Raises InputError where the run holds no
    path, or one that does not tell them apart."""
    path = path_of(recording, shared_bytes)
    if not len(path):
        raise InputError(
            f"{recording.path}: nothing was served in it", hint="plan from a replay that served"
        )
    files = shared_files(recording, shared_bytes)
    need = needed_bytes(path, replicas, target=target)
    tried = held_out(path, files + need, files, target=target)
    margin = tried.margin_ratio if tried is not None else 0.0
    usable = files + need * (1 + margin)
    room = files + (usable - files) / (1 + margin)
    found = most_replicas(path, room, files, target=target).replicas
    if found != replicas:
        raise InputError(
            f"the plan's rule gives a node of {usable:,.0f} bytes {found} replicas, not {replicas}: "
            "what one replica holds varies too little to tell them apart",
            hint="verify with fewer --replicas",
        )
    return ScaledNode(
        replicas=replicas,
        usable_bytes=int(usable),
        files_bytes=files,
        margin_ratio=margin,
        kernel_bytes=replicas * _other_kernel_bytes(recording),
        charged_ahead_bytes=(os.cpu_count() or 1) * CHARGED_AHEAD_PAGES * PAGE_BYTES,
    )


def warm_up_files(deployment: Deployment, folder: Path) -> None:
    """Starts one engine outside of the limit, so that what all replicas map is in the page cache."""
    folder.mkdir(parents=True, exist_ok=True)
    clock = MonotonicClock()
    engine = open_engine(
        deployment, clock=clock, epoch_s=clock.now_s(), engine_start=0, log=folder / ENGINE_LOG
    )
    try:
        engine.start()
    finally:
        engine.stop()


def try_replicas(
    deployment: Deployment,
    requests: tuple[Request, ...],
    workload: WorkloadFacts,
    node: ScaledNode,
    replicas: int,
    *,
    folder: Path,
    command: tuple[str, ...],
    force: bool,
    watcher: Watcher,
    stop: StopFlag,
) -> Trial:
    """``requests`` are dealt out to the replicas in turn. Raises MachineError where no limit can be
    set."""
    names = [f"replica-{number}" for number in range(1, replicas + 1)]
    dealt = tuple(
        replace(one, labels={**one.labels, REPLICA_LABEL: names[at % replicas]})
        for at, one in enumerate(requests)
    )
    pooled = replace(
        deployment,
        pools=tuple(PoolSpec(name=name) for name in names),
        routes=tuple(
            RouteSpec(name=name, when=RouteWhen(labels={REPLICA_LABEL: name}), to=(name,))
            for name in names
        ),
    )
    group = make_group(node.limit_bytes)
    gauges = GroupMemory(group.place)
    job = Job(
        kind="replay",
        deployment=pooled,
        waves=(Wave(name=dealt[0].wave, fresh=False, requests=dealt),),
        workload=workload,
        folder=folder,
        command=command,
        sample_period_s=0.05,
        force=force,
    )
    problem = None
    try:
        measure_pools(job, watcher=watcher, stop=stop, above=group.place)
    except MachineError:
        raise
    except Exception as error:
        message = getattr(error, "message", None)
        if message is None:
            raise
        problem = str(message)
    finally:
        last = gauges.read_detail()
        peak, kills = group.peak_bytes(), group.oom_kills()
        gauges.close()
        group.remove()
    gateway = read_gateway(folder)
    runs = [read_run(folder / name) for name in names if (folder / name / "header.json").exists()]
    died = sum(run.end is not None and run.end.reason == "engine_died" for run in runs)
    return Trial(
        replicas=replicas,
        requests=len(requests),
        completed=sum(one.outcome == "completed" for one in gateway.paths),
        died=died,
        oom_kills=max(kills, _kills_in(runs)),
        peak_charged_bytes=peak,
        refaults=last.get("cgroup.refaults"),
        folder=str(folder),
        problem=problem,
    )


def _other_kernel_bytes(recording: Recording) -> int:
    found = (
        one.values["cgroup.kernel"] - one.values["host.page_tables"]
        for one in recording.samples
        if {"cgroup.kernel", "host.page_tables"} <= one.values.keys()
    )
    return max(0, max(found, default=0))


def _kills_in(runs: list[Recording]) -> int:
    """Engines whose requests were lost to the kernel's killer."""
    return sum(
        any(record.reason == "oom_killed" for record in run.outcomes.values()) for run in runs
    )
