"""What makes a measurement doubtful, and what it therefore does not prove.

Each rule is a function from a recording to findings; ``findings_of`` is the list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from memplan.records import Finding, PlantedSpike, Recording
from memplan.stats.percentiles import fewest_for, rank_of
from memplan.stats.summary import Attribution, ClassSummary, Percentiles

_UNEXPLAINED_RATIO = 0.02
_LATE_S = 0.1
_SLOW_SAMPLER = 5.0
_SATURATED_RATIO = 0.2
_STALLED_RATIO = 0.01
_FEW_REFAULTS = 256
"""Pages, 1 MiB: a library's page or two read again are no sign of need."""
_LITTLE_BYTES = 32 << 20
"""Sockets, slab and swap cache of an engine at rest come to a few MiB."""
_UNFOLDED_BYTES = 64 * 4096
"""memory.stat may lack this much of each CPU for each counter (MEMCG_CHARGE_BATCH, mm/memcontrol.c)."""


def findings_of(
    recording: Recording,
    classes: tuple[ClassSummary, ...],
    attributions: tuple[Attribution, ...],
) -> tuple[Finding, ...]:
    """The recording's own findings first, then every rule's, in the order of this module."""
    found = list(recording.findings)
    for rule in _RECORDING_RULES:
        found.extend(rule(recording))
    found.extend(_withheld(classes))
    found.extend(_unexplained(attributions))
    return tuple(found)


def _interrupted(recording: Recording) -> Iterator[Finding]:
    if recording.end is not None and recording.end.reason == "interrupted":
        yield Finding(
            code="interrupted",
            text="The run was ended by Ctrl-C before its workload was; figures cover what ran.",
            hint="Replay without interruption, or with --limit for a shorter workload.",
        )


def _swapped(recording: Recording) -> Iterator[Finding]:
    most = max((s.values.get("host.swap", 0) for s in recording.samples), default=0)
    if most:
        yield Finding(
            code="swap_used",
            text=f"Up to {most:,} bytes of the engine were swapped out: resident memory was less "
            "than the engine needed.",
            hint="Run `swapoff -a`, or measure on a machine with more memory.",
        )


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
    if unseen > max(_LITTLE_BYTES, _UNEXPLAINED_RATIO * resident) + folding:
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


def _late_sends(recording: Recording) -> Iterator[Finding]:
    lags = sorted(
        o.sent_s - o.intended_s
        for o in recording.outcomes.values()
        if o.sent_s is not None and o.intended_s is not None
    )
    if lags and (p99 := lags[rank_of(len(lags), 0.99)]) > _LATE_S:
        yield Finding(
            code="schedule_not_kept",
            text=f"Requests were sent up to {p99:.3f} s late (p99): the peaks are those of this "
            "sending, not of the trace.",
            hint="Leave a core free for memplan (settings.threads one below the cores).",
        )


def _saturated(recording: Recording) -> Iterator[Finding]:
    """A queue in front of the engine hides concurrency that a faster fleet would have had."""
    steps = [s for s in recording.segments if s.kind == "step"]
    busy_s = sum(s.end_s - s.start_s for s in steps)
    queued_s = sum(s.end_s - s.start_s for s in steps if s.waiting)
    if recording.header.kind == "replay" and busy_s and queued_s / busy_s > _SATURATED_RATIO:
        yield Finding(
            code="engine_saturated",
            text=f"For {queued_s / busy_s:.0%} of its busy time the engine had requests waiting "
            "outside its batch: resident memory was capped by its limits, and latency includes "
            "the queue.",
            hint="Raise --dilation, or max_requests and max_kv_tokens in model.yaml.",
        )


def _no_reference(recording: Recording) -> Iterator[Finding]:
    if recording.header.kind == "replay":
        yield Finding(
            code="no_reference_concurrency",
            text="The trace states arrivals and lengths, not service times. The concurrency of this "
            "replay is the one that this engine reached at this dilation; it is not shown to be "
            "the concurrency of the fleet that made the trace.",
            hint="Compare peak_in_flight with your fleet's, and set --dilation to match it.",
        )


def _not_run(recording: Recording) -> Iterator[Finding]:
    reasons: dict[str, int] = {}
    for outcome in recording.outcomes.values():
        if outcome.outcome in ("rejected", "failed"):
            reasons[outcome.reason or "unknown"] = reasons.get(outcome.reason or "unknown", 0) + 1
    if reasons:
        told = ", ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items()))
        yield Finding(
            code="requests_not_run",
            text=f"Not every request was completed: {told}. What a request held "
            "until then is in the figures; what it would have held is not.",
            hint="See the reasons in requests.jsonl; raise the limit that they name.",
        )


def _lengths_differ(recording: Recording) -> Iterator[Finding]:
    asked = {r.request_id: (r.input_tokens, r.output_tokens) for r in recording.requests}
    wrong = [
        o.request_id
        for o in recording.outcomes.values()
        if o.outcome == "completed"
        and o.request_id in asked  # not so where the schedule's own tail was cut off
        and asked[o.request_id] != (o.input_tokens_run, o.output_tokens_run)
    ]
    if wrong:
        yield Finding(
            code="lengths_differ",
            text=f"{len(wrong)} completed requests ran other token counts than asked for "
            f"(first: {wrong[0]}).",
            hint="The engine did not honour exact lengths; its memory is of another workload.",
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


_RECORDING_RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (
    _interrupted,
    _swapped,
    _peak_below_sample,
    _peaks_not_exact,
    _tensors_not_counted,
    _refaults,
    _memory_pressure,
    _cgroup_peak_differs,
    _sampler_gaps,
    _late_sends,
    _saturated,
    _no_reference,
    _not_run,
    _lengths_differ,
    _planted,
)


def _withheld(classes: tuple[ClassSummary, ...]) -> Iterator[Finding]:
    for summary in classes:
        figures: Mapping[str, Percentiles] = {
            "co-resident memory": summary.cpu.co_resident,
            "attributed memory": summary.cpu.attributed,
            **_gpu_figures(summary),
            "TTFT": summary.ttft_s,
            "TPOT": summary.tpot_s,
            "end-to-end latency": summary.e2e_s,
        }
        missing: dict[str, list[str]] = {}
        for name, figure in figures.items():
            levels = [
                f"p{quantile.p * 100:.0f} (n={figure.n}, needs {fewest_for(quantile.p)})"
                for quantile in (figure.p50, figure.p95, figure.p99)
                if quantile.value is None
            ]
            if levels:
                missing.setdefault(", ".join(levels), []).append(name)
        if missing:
            told = "; ".join(f"{levels} of {', '.join(n)}" for levels, n in missing.items())
            yield Finding(
                code="percentile_withheld",
                text=f"Class {summary.name}: too few requests for {told}.",
                hint="Replay more of the trace (a larger --limit); the largest value seen is shown.",
            )


def _gpu_figures(summary: ClassSummary) -> Mapping[str, Percentiles]:
    if summary.gpu is None:
        return {}
    return {
        "co-resident GPU memory": summary.gpu.co_resident,
        "attributed GPU memory": summary.gpu.attributed,
    }


def _unexplained(attributions: tuple[Attribution, ...]) -> Iterator[Finding]:
    for attribution in attributions:
        ratio = attribution.unexplained_bytes / attribution.total_bytes
        if abs(ratio) > _UNEXPLAINED_RATIO:
            yield Finding(
                code="attribution_open",
                text=f"{ratio:+.1%} of the {attribution.place} peak ({attribution.unexplained_bytes:,} "
                "bytes) is explained by no source.",
                hint="Compare with the `runtime` and `allocator slack` parts; memory that a library "
                "mapped for itself after the warm-up looks like this.",
            )
