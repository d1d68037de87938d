"""Whether memory was short while it was measured: swap, refaults, stalls, charges unseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from memplan.records import Finding, Recording
from memplan.stats.degradations import degraded_of
from memplan.stats.truths import charged_peak_bytes, no_group, samples_of

_STALLED_RATIO = 0.01
_FEW_REFAULTS = 256
"""Pages, 1 MiB: a library's page or two read again are no sign of need."""
_LITTLE_RATIO = 0.02
_LITTLE_BYTES = 32 << 20
"""Sockets, slab and swap cache of an engine at rest come to a few MiB."""
_UNFOLDED_BYTES = 64 * 4096
"""memory.stat may lack this much of each CPU for each counter (MEMCG_CHARGE_BATCH, mm/memcontrol.c)."""


def _swapped(recording: Recording) -> Iterator[Finding]:
    most = max((s.values.get("host.swap", 0) for s in recording.samples), default=0)
    if most:
        yield Finding(
            code="swap_used",
            text=f"Up to {most:,} bytes of the engine were swapped out: resident memory was less "
            "than the engine needed.",
            hint="Run `swapoff -a`, or measure on a machine with more memory.",
        )


def _refaults(recording: Recording) -> Iterator[Finding]:
    """Pages of files that were evicted and read again: the engine did not have what it needed."""
    pages = _growth(recording, "cgroup.refaults")
    if _limit_bytes(recording) is not None and pages >= _FEW_REFAULTS:
        yield Finding(
            code="refaults",
            text=f"Under its memory limit the engine read {pages:,} file pages again that had been "
            "evicted: resident memory under this pressure is less than it needs, and latency "
            "includes the reading.",
            hint="Raise the memory limit until this finding goes.",
        )


def _memory_pressure(recording: Recording) -> Iterator[Finding]:
    """Whose stall it is depends on the version of control groups; the text says so."""
    whose = {"cgroup": "the engine's", "machine": "the machine's (no figure of the engine's own)"}
    for source, words in whose.items():
        name = f"{source}.psi_full_us"
        times = [s.t_s for s in recording.samples if name in s.values]
        seen_s = times[-1] - times[0] if times else 0.0
        stalled_s = _growth(recording, name) / 1e6
        if seen_s and stalled_s / seen_s > _STALLED_RATIO:
            yield Finding(
                code="memory_pressure",
                text=f"For {stalled_s / seen_s:.1%} of the time all of {words} tasks stood still "
                "for memory (PSI full): latency is that of the pressure, and resident memory may be "
                "less than the need.",
                hint="Raise the memory limit, or free memory on the machine.",
            )


def _engine_degraded(recording: Recording) -> Iterator[Finding]:
    serving = [s for s in recording.segments if s.kind in _SERVING]
    found = degraded_of(recording, serving)
    if found is None or not any(step.times for step in found.steps):
        return
    steps = ", ".join(
        f"{step.name} {step.times:,} × ({step.lasted_s:.1f} s)"
        for step in found.steps
        if step.times
    )
    threshold = "" if found.at_bytes is None else f" of {found.at_bytes:,} bytes"
    seen = "" if found.most_bytes is None else f"; the most it saw were {found.most_bytes:,}"
    yield Finding(
        code="engine_degraded",
        text=f"For {found.lasted_s:.1f} of {found.served_s:.1f} s the engine gave something up because "
        f"its working set had passed the threshold{threshold}{seen}. Steps taken: {steps}. "
        f"Because of it {found.rejected:,} requests were rejected and {found.waited:,} waited, of which "
        f"{found.preempted:,} had run already; {found.shortened:,} were shortened meanwhile. Memory "
        "is what was left to the engine, not what the traffic needs.",
        hint="Raise the memory limit until this finding goes, or set memory_budget, which keeps "
        "requests waiting before memory is short.",
    )


def _cgroup_peak_differs(recording: Recording) -> Iterator[Finding]:
    """Page cache is left out on both sides: it is charged to whoever read it first, and given back
    under pressure, so that a difference of it alone says nothing about what must fit."""
    unseen = max(
        (
            sum(s.values.get(name, 0) for name in _CHARGED_FOR_GOOD)
            - sum(s.values.get(name, 0) for name in _RESIDENT_FOR_GOOD)
            for s in recording.samples
            if "cgroup.anon" in s.values and "host.anon" in s.values
        ),
        default=0,
    )
    resident = max((s.values.get("host.rss", 0) for s in recording.samples), default=0)
    folding = 3 * recording.header.machine.cpu_count * _UNFOLDED_BYTES
    if unseen > max(_LITTLE_BYTES, _LITTLE_RATIO * resident) + folding:
        yield Finding(
            code="cgroup_peak_differs",
            text=f"The engine was charged for {unseen:,} bytes that cannot be given back and are in "
            "no resident figure: tmpfs that nothing maps, or the kernel's own memory for it.",
            hint="Size limits by the charged peak (cgroup.peak in the timeline), not by resident "
            "memory.",
        )


def _no_charged_witness(recording: Recording) -> Iterator[Finding]:
    """One for the run: the group of every engine start is made, or not, for the same reason."""
    for engine in recording.engines:
        reason = no_group(engine)
        if engine.engine == "scripted":
            continue
        if reason is None and charged_peak_bytes(recording, engine) is None:
            reason = "the kernel keeps no charged peak, or no sample of it was taken"
        if reason is not None:
            yield Finding(
                code="no_charged_witness",
                text=f"No charged peak stands beside the resident one ({reason}): this run does not "
                "show what a container's limit would count, and nothing contradicts its peaks.",
                hint="Run as root, or as `systemd-run --user --scope -p Delegate=yes memplan …`.",
            )
            return


def _witnesses_disagree(recording: Recording) -> Iterator[Finding]:
    """What is resident and maps no file is charged to the group that made it resident.

    File pages are left out, by the larger of what was mapped at the segment's two ends: they may be
    another group's. Charges run ahead by a batch a CPU; resident counters by their drift.
    """
    cpus = recording.header.machine.cpu_count
    bound = recording.header.drift_bound_bytes + cpus * _UNFOLDED_BYTES
    for engine in recording.engines:
        marks = [
            (s.t_s, s.values["cgroup.peak"])
            for s in samples_of(recording, engine)
            if "cgroup.peak" in s.values
        ]
        if not marks:
            continue
        charged, known_until_s = max(mark for _, mark in marks), marks[-1][0]
        file_before = engine.idle.get("host.file", 0)
        for segment in recording.segments:
            if segment.engine_start != engine.engine_start or segment.kind not in _SERVING:
                continue
            file_after = segment.gauges.get("host.file", 0)
            unmapped = segment.peak["host.hwm"] - max(file_before, file_after)
            file_before = file_after
            # Forked processes share pages that each of them counts and nobody is charged for twice.
            if segment.end_s > known_until_s or segment.gauges.get("host.processes", 1) > 1:
                continue
            if unmapped > charged + bound:
                yield Finding(
                    code="witnesses_disagree",
                    text=f"A segment peaked at {unmapped:,} resident bytes that map no file, and the "
                    f"engine's control group was never charged more than {charged:,}: one of the two "
                    "counts is wrong, and no peak of this run is confirmed.",
                    hint="Look for a second owner of the group or of the high-water mark; report it "
                    "with the run folder.",
                )
                return


def _warm_page_cache(recording: Recording) -> Iterator[Finding]:
    engine = next(iter(recording.engines), None)
    cached = engine.start.get("engine.weight_files_cached", 0) if engine else 0
    charged = charged_peak_bytes(recording, engine) if engine else None
    if engine is not None and charged is not None and cached > _LITTLE_RATIO * charged:
        yield Finding(
            code="warm_page_cache",
            text=f"{cached:,} of {engine.start.get('engine.weight_files', 0):,} bytes of the weight "
            "files were in the page cache before the engine started: whoever read them first is "
            f"charged for them, so the charged peak of {charged:,} bytes misses them.",
            hint="Drop the files from the page cache and run again, for a charged peak as in a "
            "container that starts cold; demand is not touched by it.",
        )


_SERVING = ("idle", "step", "release")
_CHARGED_FOR_GOOD = ("cgroup.anon", "cgroup.shmem", "cgroup.kernel")
_RESIDENT_FOR_GOOD = ("host.anon", "host.shmem", "host.page_tables")


def _growth(recording: Recording, counter: str) -> int:
    """How much a counter rose while engines served; it may start anew with each engine."""
    seen = [(s.t_s, s.values[counter]) for s in recording.samples if counter in s.values]
    ready = [engine.ready_s for engine in recording.engines]
    return sum(
        max(0, after - before)
        for (a, before), (b, after) in pairwise(seen)
        if not any(a < at <= b for at in ready)
    )


def _limit_bytes(recording: Recording) -> int | None:
    settings = recording.header.deployment.get("settings")
    limit = settings.get("memory_limit_bytes") if isinstance(settings, Mapping) else None
    return limit if isinstance(limit, int) else None


RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (
    _swapped,
    _refaults,
    _memory_pressure,
    _engine_degraded,
    _cgroup_peak_differs,
    _no_charged_witness,
    _witnesses_disagree,
    _warm_page_cache,
)
