"""Whether the sources of memory figures could be believed: marks, samplers, hooks, self-tests."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from memplan.records import Finding, PlantedSpike, Recording
from memplan.stats.contradictions import above_peaks, below_own_ends
from memplan.stats.percentiles import rank_of

_SLOW_SAMPLER = 5.0
# Its last block is written within a second, and an engine may take some time to end.
_WITNESS_LATE_S = 5.0


def _peak_below_sample(recording: Recording) -> Iterator[Finding]:
    found = above_peaks(recording)
    if found:
        worst = max(found, key=lambda one: one.excess_bytes)
        yield Finding(
            code="peak_below_sample",
            text=f"{_segments_text(len(found), recording)} a sampler saw more than their exact peak, "
            f"by {worst.excess_bytes:,} bytes at most (at {worst.segment.end_s:.3f} s): something else "
            "reset the kernel's high-water mark, or the engine has more processes than its segments "
            "cover. Peaks of these segments are too low.",
            hint="Stop other memory profilers on the engine's process and replay again.",
        )


def _foreign_reset(recording: Recording) -> Iterator[Finding]:
    found = below_own_ends(recording)
    if found:
        worst = max(found, key=lambda one: one.excess_bytes)
        yield Finding(
            code="foreign_reset",
            text=f"{_segments_text(len(found), recording)} the peak is below what was resident when "
            f"they began, by {worst.excess_bytes:,} bytes at most (at {worst.segment.end_s:.3f} s): "
            "something else reset the kernel's high-water mark in them. Peaks of this run can be too "
            "low, in other segments as well.",
            hint="Find what writes to /proc/PID/clear_refs of the engine (another memory profiler), "
            "stop it and replay again.",
        )


def _segments_text(count: int, recording: Recording) -> str:
    return f"In {count:,} of {len(recording.segments):,} segments"


def _witness_stopped(recording: Recording) -> Iterator[Finding]:
    witness, segments = recording.witness, recording.segments
    if witness is None or not segments:
        return
    last_s = witness.t_s[-1] if witness.t_s else 0.0
    if segments[-1].end_s - last_s > _WITNESS_LATE_S:
        yield Finding(
            code="no_witness",
            text=f"The 1 kHz sampler's readings end at {last_s:.1f} s of {segments[-1].end_s:.1f} s: "
            "from then on no reading of its own stands beside the segments.",
            hint="See whether it was killed, or the disk was full; then replay again.",
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


def _cuda_snapshot_recorded(recording: Recording) -> Iterator[Finding]:
    settings = recording.header.deployment.get("settings")
    if isinstance(settings, Mapping) and settings.get("cuda_snapshot"):
        yield Finding(
            code="cuda_snapshot_recorded",
            text="Every CUDA allocation was recorded with its stack, which slows the engine: "
            "latencies of this run are not its own.",
            hint="Open cuda_snapshot.pickle of the run folder at docs.pytorch.org/memory_viz; "
            "replay without settings.cuda_snapshot for latencies.",
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
    exact = sampled = witnessed = 0
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
        witnessed += _is_witnessed(recording, spike, want)
    count = len(recording.planted)
    beside = f", and the 1 kHz one {witnessed}" if recording.witness is not None else ""
    lost = "" if exact == count else " Peaks of this run can be too low."
    yield Finding(
        code="self_test" if exact == count else "self_test_failed",
        text=f"Self-test: of {count} planted allocations of {recording.planted[0].spike_bytes:,} "
        f"bytes, segments saw {exact} and the {1 / recording.header.sample_period_s:.0f} Hz "
        f"sampler saw {sampled}{beside}.{lost}",
        hint="Remove self_test from model.yaml for a measurement that counts.",
    )


def _is_witnessed(recording: Recording, spike: PlantedSpike, want: float) -> bool:
    if recording.witness is None:
        return False
    times, values = recording.witness.t_s, recording.witness.rss_bytes
    during = values[bisect_left(times, spike.resident_s) : bisect_right(times, spike.gone_s)]
    return max(during, default=0) >= want


def _resident_around(recording: Recording, spike: PlantedSpike) -> int:
    """What was resident without the spike: the lower of the last reading before and the first after,
    because the engine's own memory moves meanwhile."""
    before = [s for s in recording.segments if s.end_s <= spike.began_s][-1:]
    after = [s for s in recording.segments if s.start_s >= spike.gone_s][:1]
    return min((s.gauges["host.rss"] for s in before + after), default=0)


RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (
    _peak_below_sample,
    _foreign_reset,
    _witness_stopped,
    _peaks_not_exact,
    _tensors_not_counted,
    _cuda_snapshot_recorded,
    _sampler_gaps,
    _planted,
)
