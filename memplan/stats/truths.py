"""One memory, five truths: resident, proportional, charged, working set and demand, kept apart.

Each answers another question, and each is right: which one a decision needs is said in the report.
What a run does not know stays None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memplan.records import EngineFacts, Recording, Sample, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Truths:
    """One engine at one moment; all are bytes."""

    resident_bytes: int | None
    """Pages mapped and present. Every replica counts shared pages in full."""
    proportional_bytes: int | None
    """PSS: each resident page divided by the processes that map it, as they were then."""
    charged_bytes: int | None
    """What the kernel charges the engine's control group: page cache, tmpfs, page tables and other
    kernel memory too; not file pages that another group read first."""
    working_set_bytes: int | None
    """Charged less file pages on the inactive list, which is the kubelet's definition."""
    demand_alone_bytes: int | None
    """What one replica needs: anonymous memory, shared memory (tmpfs that nothing maps too), page
    tables, what is swapped out, and mapped file pages."""
    demand_shared_bytes: int | None
    """Of it, mapped pages of the weight files: further replicas on the node share them."""
    demand_libraries_bytes: int | None
    """Of it, other mapped file pages: replicas of one image on one node share them too."""
    other_kernel_bytes: int | None = None
    """Charged to the group beside page tables: slab, stacks, sockets."""
    file_balance_bytes: int | None = None
    """File pages charged less file pages mapped: page cache that nothing maps, less mapped pages
    that another group is charged for."""

    @property
    def demand_private_bytes(self) -> int | None:
        parts = (self.demand_alone_bytes, self.demand_shared_bytes, self.demand_libraries_bytes)
        alone, shared, libraries = parts
        if alone is None or shared is None or libraries is None:
            return None
        return alone - shared - libraries

    def demand_of_replicas(self, count: int) -> int | None:
        """``count`` of them on one node: the private part each, weights and libraries once."""
        private, alone = self.demand_private_bytes, self.demand_alone_bytes
        return None if private is None or alone is None else alone + (count - 1) * private

    @property
    def charged_less_demand_bytes(self) -> int | None:
        """Page cache that nothing maps, other kernel memory, and what the first toucher paid for."""
        if self.charged_bytes is None or self.demand_alone_bytes is None:
            return None
        return self.charged_bytes - self.demand_alone_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTruths:
    """Of the engine start that held the run's largest resident peak while serving."""

    idle: Truths
    """After the warm-up, nothing in flight yet."""
    peak: Truths | None
    """Resident and demand: the worst serving segment. Charged: the group's own mark while serving.
    Working set: the largest sampled. They need not be the same instant."""
    after: Truths | None
    """When the last request had ended; None where the run was cut off before."""
    charged_peak_bytes: int | None
    """While serving, the largest of all engine starts."""
    charged_load_peak_bytes: int | None
    """Until the engine was ready, the largest of all engine starts."""
    charged_since: str | None
    """What the charged mark covers, in words; None where there is no mark."""
    no_group: str | None
    """Why nothing was charged to a group of the engine's own; None where one was."""
    weight_files_bytes: int | None
    weight_files_cached_bytes: int | None
    """Of the weight files, in the page cache before the run's first engine start."""


def truths_of(recording: Recording, serving: Sequence[Segment]) -> RunTruths | None:
    """``serving``: the segments that count for classes. None where no engine with memory of its own
    ran: the scripted one has only a formula."""
    real = [engine for engine in recording.engines if engine.engine != "scripted"]
    if not real:
        return None
    worst = max(serving, key=lambda s: s.peak["host.hwm"], default=None)
    engine = next((e for e in real if worst and e.engine_start == worst.engine_start), real[-1])
    mine = samples_of(recording, engine)
    quiet = next((s for s in reversed(mine) if "host.pss" in s.values), None)
    load_peaks = [e.load_peak["cgroup.peak"] for e in real if "cgroup.peak" in e.load_peak]
    peaks = [peak for e in real if (peak := charged_peak_bytes(recording, e)) is not None]
    return RunTruths(
        idle=truths_at(engine.idle, engine),
        peak=_at_the_peak(worst, engine, mine) if worst else None,
        after=truths_at(quiet.values, engine) if quiet else None,
        charged_peak_bytes=max(peaks, default=None),
        charged_load_peak_bytes=max(load_peaks, default=None),
        charged_since=engine.settings.get("charged_peak"),
        no_group=no_group(engine),
        weight_files_bytes=real[0].start.get("engine.weight_files"),
        weight_files_cached_bytes=real[0].start.get("engine.weight_files_cached"),
    )


def truths_at(gauges: Mapping[str, int], engine: EngineFacts) -> Truths:
    """From readings of one moment at rest."""
    resident = gauges.get("host.rss")
    charged, inactive = gauges.get("cgroup.current"), gauges.get("cgroup.inactive_file")
    alone, shared, libraries = _demand(resident, gauges, engine)
    kernel, tables = gauges.get("cgroup.kernel"), gauges.get("host.page_tables")
    cache, mapped = gauges.get("cgroup.file"), gauges.get("host.file")
    return Truths(
        resident_bytes=resident,
        proportional_bytes=gauges.get("host.pss"),
        charged_bytes=charged,
        working_set_bytes=_less(charged, inactive),
        demand_alone_bytes=alone,
        demand_shared_bytes=shared,
        demand_libraries_bytes=libraries,
        other_kernel_bytes=_less(kernel, tables),
        file_balance_bytes=_less(_less(cache, gauges.get("cgroup.shmem")), mapped),
    )


def charged_peak_bytes(recording: Recording, engine: EngineFacts) -> int | None:
    """The group's own mark: while this engine served, or of its life where it cannot be set back."""
    return _largest_mark(samples_of(recording, engine))


def samples_of(recording: Recording, engine: EngineFacts) -> list[Sample]:
    """Taken from when this engine was ready until the next one was."""
    later = [e.ready_s for e in recording.engines if e.engine_start > engine.engine_start]
    until_s = min(later, default=float("inf"))
    return [s for s in recording.samples if engine.ready_s <= s.t_s < until_s]


def no_group(engine: EngineFacts) -> str | None:
    """Why no control group of its own was charged for this engine, in words; None where one was."""
    said = engine.settings.get("cgroup")
    if said is None:
        return "the run says nothing of one"
    return said.removeprefix("none: ") if said.startswith("none") else None


# --- steps ------------------------------------------------------------------------------------


def _at_the_peak(worst: Segment, engine: EngineFacts, samples: Sequence[Sample]) -> Truths:
    detailed = [s for s in samples if "cgroup.inactive_file" in s.values]
    working_sets = [
        s.values["cgroup.current"] - s.values["cgroup.inactive_file"]
        for s in detailed
        if "cgroup.current" in s.values
    ]
    nearest = min(detailed, key=lambda s: abs(s.t_s - worst.end_s), default=None)
    gauges = dict(worst.gauges)
    if nearest is not None and "cgroup.shmem" in nearest.values:
        gauges["cgroup.shmem"] = nearest.values["cgroup.shmem"]
    resident = worst.peak["host.hwm"]
    alone, shared, libraries = _demand(resident, gauges, engine)
    return Truths(
        resident_bytes=resident,
        proportional_bytes=None,
        charged_bytes=_largest_mark(samples),
        working_set_bytes=max(working_sets, default=None),
        demand_alone_bytes=alone,
        demand_shared_bytes=shared,
        demand_libraries_bytes=libraries,
    )


def _largest_mark(samples: Sequence[Sample]) -> int | None:
    return max(
        (s.values["cgroup.peak"] for s in samples if "cgroup.peak" in s.values), default=None
    )


def _demand(
    resident_bytes: int | None, gauges: Mapping[str, int], engine: EngineFacts
) -> tuple[int | None, int | None, int | None]:
    """(alone, of it weights mapped from files, of it other mapped file pages).

    Resident is anonymous + mapped shared memory + mapped file pages (VmRSS, proc(5)). Of an engine of
    several processes file pages that they share are taken once, as PSS at rest had them; where that is
    not known they count once each, and this is an upper bound.
    """
    tables, file = gauges.get("host.page_tables"), gauges.get("host.file")
    if resident_bytes is None or tables is None:
        return None, None, None
    if file is not None and "host.pss_file" in engine.idle and gauges.get("host.processes", 1) > 1:
        again = max(0, engine.idle.get("host.file", 0) - engine.idle["host.pss_file"])
        resident_bytes, file = resident_bytes - again, file - again
    shared_memory = gauges.get("host.shmem", 0)
    unmapped = max(0, gauges.get("cgroup.shmem", 0) - shared_memory)
    alone = resident_bytes + tables + gauges.get("host.swap", 0) + unmapped
    if file is None:
        return alone, None, None
    shared = min(file, _weight_file_pages(engine))
    return alone, shared, file - shared


def _weight_file_pages(engine: EngineFacts) -> int:
    """Mapped pages of the weight files at idle, of weights or not: replicas share all of them."""
    weights = engine.idle.get("engine.weights_resident_mapped", 0)
    return engine.idle.get("engine.weight_files_resident", weights)


def _less(whole: int | None, part: int | None) -> int | None:
    return None if whole is None or part is None else whole - part
