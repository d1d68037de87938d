"""Whether the sources of memory figures could be believed: marks, samplers, hooks, self-tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from memplan.records import Finding, PlantedSpike, Recording
from memplan.stats.percentiles import rank_of

_SLOW_SAMPLER = 5.0


def _peak_below_sample(recording: Recording) -> Iterator[Finding]:
    """An exact peak below a sample means that somebody else reset the high-water mark."""
    sampled = max((s.values.get("host.rss", 0) for s in recording.samples), default=0)
    exact = max((s.peak.get("host.hwm", 0) for s in recording.segments), default=0)
    if recording.segments and sampled > exact + recording.header.drift_bound_bytes:
        yield Finding(
            code="peak_below_sample",
            text=f"A sample saw {sampled:,} bytes, more than the largest exact peak of {exact:,}: "
            "something else reset the kernel's high-water mark, or the engine has more processes "
            "than its segments cover.",
            hint="Stop other memory profilers on the engine's process and replay again.",
        )


def _peaks_not_exact(recording: Recording) -> Iterator[Finding]:
    if any(e.settings.get("segment_peaks", "exact") != "exact" for e in recording.engines):
        yield Finding(
            code="peaks_not_exact",
            text="The kernel's high-water mark was not reset between segments: their peaks are "
            "readings at their ends, and a spike inside one is missed. The peak of the whole run "
            "is still the kernel's own.",
            hint="Measure on a Linux kernel with /proc/PID/clear_refs (gVisor has none).",
        )


def _tensors_not_counted(recording: Recording) -> Iterator[Finding]:
    reasons = {
        e.settings["live_tensors"] for e in recording.engines if "live_tensors" in e.settings
    }
    for reason in sorted(r for r in reasons if not r.startswith("counted")):
        yield Finding(
            code="tensors_not_counted",
            text=f"Live tensors were not counted ({reason}): activations, and the share of them that "
            "is attributed to a request, are lower bounds; the rest of them is in allocator slack.",
            hint="Install a C compiler (apt-get install gcc) and run again.",
        )


def _sampler_gaps(recording: Recording) -> Iterator[Finding]:
    times = [sample.t_s for sample in recording.samples]
    period_s = recording.header.sample_period_s
    ready = [engine.ready_s for engine in recording.engines]
    gaps = sorted(
        b - a
        for a, b in pairwise(times)
        if not any(a < at <= b for at in ready)  # the sampler rests while an engine starts
    )
    if gaps and (p99 := gaps[rank_of(len(gaps), 0.99)]) > _SLOW_SAMPLER * period_s:
        yield Finding(
            code="sampler_gaps",
            text=f"The timeline's samples were up to {p99:.3f} s apart (p99) instead of "
            f"{period_s:.3f} s. Exact peaks are not touched by this; the sampled line is coarser.",
            hint="Leave a core free for memplan, or set a longer --sample-period.",
        )


def _planted(recording: Recording) -> Iterator[Finding]:
    """The self-test's verdict: how many spikes of known size the peaks and the samples saw."""
    if not recording.planted:
        return
    exact = sampled = 0
    for spike in recording.planted:
        want = _resident_around(recording, spike) + 0.95 * spike.spike_bytes
        exact += any(
            s.peak["host.hwm"] >= want
            for s in recording.segments
            if s.start_s <= spike.gone_s and s.end_s >= spike.resident_s
        )
        sampled += any(
            s.values.get("host.rss", 0) >= want
            for s in recording.samples
            if spike.resident_s <= s.t_s <= spike.gone_s
        )
    count = len(recording.planted)
    lost = "" if exact == count else " Peaks of this run can be too low."
    yield Finding(
        code="self_test" if exact == count else "self_test_failed",
        text=f"Self-test: of {count} planted allocations of {recording.planted[0].spike_bytes:,} "
        f"bytes, segments saw {exact} and the {1 / recording.header.sample_period_s:.0f} Hz "
        f"sampler saw {sampled}.{lost}",
        hint="Remove self_test from model.yaml for a measurement that counts.",
    )


def _resident_around(recording: Recording, spike: PlantedSpike) -> int:
    """What was resident without the spike: the lower of the last reading before and the first after,
    because the engine's own memory moves meanwhile."""
    before = [s for s in recording.segments if s.end_s <= spike.began_s][-1:]
    after = [s for s in recording.segments if s.start_s >= spike.gone_s][:1]
    return min((s.gauges["host.rss"] for s in before + after), default=0)


RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (
    _peak_below_sample,
    _peaks_not_exact,
    _tensors_not_counted,
    _sampler_gaps,
    _planted,
)
