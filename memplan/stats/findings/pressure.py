"""Whether memory was short while it was measured: swap, refaults, stalls, charges unseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from memplan.records import Finding, Recording

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
    _cgroup_peak_differs,
)
