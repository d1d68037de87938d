"""Each rule fires on what it is about, and stays silent on its nearest harmless neighbour."""

from dataclasses import replace

import pytest
from builders import (
    CLASSES,
    IDLE_BYTES,
    completed,
    end,
    engine,
    flight,
    header,
    recording,
    request,
    samples,
    segment,
    workload,
)

from memplan.records import (
    EngineFacts,
    Finding,
    PlantedSpike,
    Recording,
    RequestRecord,
    Sample,
    Segment,
    Witness,
)
from memplan.stats.findings import findings_of
from memplan.stats.host_parts import host_attribution
from memplan.stats.summarise import summarise
from memplan.stats.summary import Attribution, KvSlope
from memplan.units import MIB

ONLY = request()
PEAK_BYTES = IDLE_BYTES + 3 * MIB
SPIKE = PlantedSpike(spike_bytes=50 * MIB, began_s=1.0, resident_s=1.1, gone_s=1.2)
WAITING = segment(end_s=1.0, waiting=1)


def codes(run: Recording) -> set[str]:
    """Of the rules about a recording; a replay is never shown to match its fleet's concurrency."""
    return {finding.code for finding in findings_of(run, (), ())} - {"no_reference_concurrency"}


def sampled_at(*times_s: float) -> Recording:
    return recording(samples=tuple(Sample(t_s=t, values={"host.rss": 1}) for t in times_s))


def read_at_1_khz(at_s: float, rss_bytes: int) -> Witness:
    return Witness(t_s=[at_s], rss_bytes=[rss_bytes])


def opened_with(rss_bytes: int) -> Recording:
    before = segment("idle", start_s=-0.1, end_s=0.0, gauges={"host.rss": rss_bytes})
    return recording(segments=(before, segment()))


def outcome(**changes: object) -> Recording:
    return recording(outcomes={"a": completed(ONLY, **changes)})


def sent_late(lag_s: float, of: int = 1) -> Recording:
    """``of`` requests, the first of them late."""
    requests = tuple(request(f"r{n}") for n in range(of))
    lags = {r.request_id: completed(r, sent_s=0.0) for r in requests}
    late = {"sent_s": lag_s, "admitted_s": lag_s, "first_token_s": lag_s + 0.1}
    lags["r0"] = completed(requests[0], **late, end_s=lag_s + 0.2)
    return recording(requests=requests, outcomes=lags)


def waited(queued_s: float, kind: str = "replay") -> Recording:
    """One second of steps, ``queued_s`` of it with a queue."""
    return recording(
        header=header(kind=kind),
        segments=(
            segment(end_s=queued_s, waiting=3),
            segment(start_s=queued_s, end_s=1.0),
            segment("idle", start_s=1.0, end_s=9.0, waiting=1),
        ),
    )


def seen(around_bytes: int, peak_bytes: int) -> tuple[Segment, ...]:
    """Segments before, over and after the spike."""
    return (
        segment("idle", end_s=1.0, gauges={"host.rss": around_bytes}),
        segment("idle", start_s=1.0, end_s=1.3, peak={"host.hwm": peak_bytes}),
        segment("idle", start_s=1.3, end_s=2.0, gauges={"host.rss": around_bytes}),
    )


def spiked(peak_bytes: int, *seen_samples: Sample) -> Recording:
    return recording(
        planted=(SPIKE,), segments=seen(IDLE_BYTES, peak_bytes), samples=tuple(seen_samples)
    )


LIMITED = header(deployment={"settings": {"memory_limit_bytes": 200 * MIB}})


def counted(counter: str, *readings: int) -> Recording:
    """A counter's readings, 0.1 s apart, under a limit."""
    seen_samples = tuple(
        Sample(t_s=n * 0.1, values={counter: reading}) for n, reading in enumerate(readings)
    )
    return recording(header=LIMITED, samples=seen_samples)


def charged(shmem_bytes: int) -> Recording:
    """Any page cache, and tmpfs of this size that nothing maps."""
    values = {
        "cgroup.anon": 90 * MIB,
        "cgroup.shmem": shmem_bytes,
        "cgroup.kernel": MIB,
        "cgroup.file": 900 * MIB,
        "host.rss": 100 * MIB,
        "host.anon": 90 * MIB,
        "host.page_tables": MIB,
    }
    return recording(samples=(Sample(t_s=0.0, values=values),))


def witnessed(charged_bytes: int | None, *, cached_bytes: int = 0, **facts: object) -> Recording:
    """A real engine that peaked 103 MiB resident, 20 of them file pages, beside a charged peak."""
    facts = {"settings": {"cgroup": "v1, of the engine alone"}, **facts}
    values = {} if charged_bytes is None else {"cgroup.peak": charged_bytes}
    return recording(
        engines=(
            engine(
                engine="ballast",
                start={"host.rss": 30 * MIB, "engine.weight_files_cached": cached_bytes},
                **facts,
            ),
        ),
        segments=(segment(gauges={"host.rss": IDLE_BYTES + MIB, "host.file": 20 * MIB}),),
        samples=(Sample(t_s=0.2, values=values),),
    )


# The drift bound, and 64 pages of each of 2 CPUs that charges run ahead.
CHARGED_BYTES = 83 * MIB - MIB - MIB // 2
WHOLE_SPIKE = spiked(IDLE_BYTES + 50 * MIB)
LOST_SPIKE = spiked(IDLE_BYTES + 40 * MIB)


def test_nothing_is_doubtful_about_a_clean_run() -> None:
    assert codes(recording()) == set()
    assert findings_of(recording(header=header(kind="profile")), (), ()) == ()


@pytest.mark.parametrize(
    ("code", "doubtful", "harmless"),
    [
        (
            "interrupted",
            recording(end=end(reason="interrupted")),
            recording(end=end(reason="engine_died")),
        ),
        (
            "swap_used",
            recording(samples=(Sample(t_s=0.0, values={"host.swap": 4096}),)),
            recording(samples=(Sample(t_s=0.0, values={"host.swap": 0}),)),
        ),
        (
            "peak_below_sample",
            recording(samples=samples(0, 0, PEAK_BYTES + MIB + 1, period_s=0.03)),
            recording(samples=samples(0, 0, PEAK_BYTES + MIB, period_s=0.03)),  # within the drift
        ),
        (
            "peak_below_sample",
            recording(witness=read_at_1_khz(0.05, PEAK_BYTES + MIB + 1)),
            recording(witness=read_at_1_khz(0.0995, PEAK_BYTES + MIB + 1)),  # at the segment's edge
        ),
        ("foreign_reset", opened_with(PEAK_BYTES + MIB + 1), opened_with(PEAK_BYTES + MIB)),
        (
            "no_witness",
            recording(segments=(segment(end_s=9.0),), witness=read_at_1_khz(3.9, IDLE_BYTES)),
            recording(segments=(segment(end_s=9.0),), witness=read_at_1_khz(4.1, IDLE_BYTES)),
        ),
        (
            "peaks_not_exact",
            recording(engines=(engine(settings={"segment_peaks": "sampled at segment ends"}),)),
            recording(engines=(engine(settings={"segment_peaks": "exact"}),)),
        ),
        (
            "tensors_not_counted",
            recording(engines=(engine(settings={"live_tensors": "no C compiler"}),)),
            recording(engines=(engine(settings={"live_tensors": "counted"}),)),
        ),
        ("refaults", counted("cgroup.refaults", 100, 356), counted("cgroup.refaults", 100, 355)),
        (
            "refaults",
            counted("cgroup.refaults", 0, 256),
            replace(counted("cgroup.refaults", 0, 256), header=header()),  # no limit, no need shown
        ),
        # Over 0.1 s: 1 % is 1,000 µs.
        (
            "memory_pressure",
            counted("cgroup.psi_full_us", 5000, 6001),
            counted("cgroup.psi_full_us", 5000, 6000),
        ),
        (
            "memory_pressure",
            counted("machine.psi_full_us", 0, 1001),
            counted("machine.psi_some_us", 0, 90_000),
        ),
        # 32 MiB, and 3 × 2 CPUs × 64 pages that memory.stat may be behind.
        ("cgroup_peak_differs", charged(33 * MIB + MIB // 2 + 1), charged(33 * MIB + MIB // 2)),
        ("witnesses_disagree", witnessed(CHARGED_BYTES - 1), witnessed(CHARGED_BYTES)),
        ("no_charged_witness", witnessed(None), witnessed(CHARGED_BYTES)),
        (
            "no_charged_witness",
            witnessed(CHARGED_BYTES, settings={"cgroup": "none: no permission"}),
            recording(engines=(engine(settings={"cgroup": "none: no permission"}),)),  # scripted
        ),
        (
            "warm_page_cache",
            witnessed(100 * MIB, cached_bytes=2 * MIB + 1),
            witnessed(100 * MIB, cached_bytes=2 * MIB),
        ),
        ("warm_page_cache", witnessed(100 * MIB, cached_bytes=3 * MIB), witnessed(None)),
        ("sampler_gaps", sampled_at(0, 0.6, 1.2), sampled_at(0, 0.5, 1.0)),
        ("schedule_not_kept", sent_late(0.11), sent_late(0.1)),
        ("engine_saturated", waited(0.21), waited(0.2)),
        (
            "requests_not_run",
            outcome(outcome="failed", reason="engine_died"),
            outcome(outcome="unfinished"),
        ),
        ("lengths_differ", outcome(output_tokens_run=1), outcome()),
        ("lengths_differ", outcome(input_tokens_run=11), outcome(outcome="failed")),
        ("self_test", WHOLE_SPIKE, recording()),
        ("self_test_failed", LOST_SPIKE, WHOLE_SPIKE),
    ],
)
def test_a_rule_fires_on_its_doubt_and_not_beside_it(
    code: str, doubtful: Recording, harmless: Recording
) -> None:
    assert code in codes(doubtful)
    assert code not in codes(harmless)


def test_only_a_replay_has_a_fleet_to_be_compared_with() -> None:
    (found,) = findings_of(recording(), (), ())
    assert found.code == "no_reference_concurrency"
    assert findings_of(recording(header=header(kind="profile")), (), ()) == ()


def test_a_profiles_queue_is_part_of_its_ladder() -> None:
    assert "engine_saturated" not in codes(waited(0.9, kind="profile"))


def test_a_run_without_segments_has_no_peak_to_be_below_a_sample() -> None:
    assert codes(recording(segments=(), samples=samples(2**40))) == set()


def test_the_samplers_rest_while_an_engine_starts_is_no_gap() -> None:
    def run(ready_s: float) -> Recording:
        again = replace(recording().engines[0], engine_start=1, ready_s=ready_s)
        return replace(sampled_at(0, 30), engines=(again,))

    assert codes(run(29.9)) == set()
    assert codes(run(40.0)) == {"sampler_gaps"}


def test_a_counter_that_starts_anew_with_an_engine_has_not_grown() -> None:
    again = replace(recording().engines[0], engine_start=1, ready_s=0.05)
    run = counted("cgroup.refaults", 0, 9000)
    assert "refaults" in codes(run)
    assert "refaults" not in codes(replace(run, engines=(again,)))


def test_pressure_says_whose_it_is() -> None:
    texts = {
        counter: [
            f.text
            for f in findings_of(counted(counter, 0, 50_000), (), ())
            if f.code == "memory_pressure"
        ]
        for counter in ("cgroup.psi_full_us", "machine.psi_full_us")
    }
    assert "all of the engine's tasks" in texts["cgroup.psi_full_us"][0]
    assert "the machine's" in texts["machine.psi_full_us"][0]
    assert "50.0%" in texts["machine.psi_full_us"][0]


def test_one_late_send_in_two_hundred_is_no_doubt_about_the_schedule() -> None:
    assert codes(sent_late(5.0, of=200)) == set()
    assert codes(sent_late(5.0, of=1)) == {"schedule_not_kept"}


def test_a_segment_after_the_last_charged_sample_contradicts_nothing() -> None:
    run = witnessed(CHARGED_BYTES - 1)
    assert "witnesses_disagree" in codes(run)
    cut_off = replace(run, samples=(replace(run.samples[0], t_s=0.05),))
    assert "witnesses_disagree" not in codes(cut_off)


def test_file_pages_given_back_within_a_segment_were_in_its_peak() -> None:
    run = witnessed(CHARGED_BYTES, idle={"host.rss": IDLE_BYTES, "host.file": 20 * MIB})
    (only,) = run.segments
    without = replace(only, gauges={**only.gauges, "host.file": 0})
    assert "witnesses_disagree" not in codes(replace(run, segments=(without,)))
    assert "witnesses_disagree" in codes(replace(run, segments=(without, without)))


def test_forked_processes_are_not_held_against_the_charge() -> None:
    run = witnessed(CHARGED_BYTES - 1)
    (only,) = run.segments
    forked = replace(only, gauges={**only.gauges, "host.processes": 2})
    assert "witnesses_disagree" not in codes(replace(run, segments=(forked,)))


def test_a_missing_charged_witness_says_why() -> None:
    run = witnessed(None, settings={"cgroup": "none: no permission"})
    told = [f.text for f in findings_of(run, (), ()) if f.code == "no_charged_witness"]
    assert len(told) == 1
    assert "(no permission)" in told[0]


def test_requests_that_did_not_run_are_counted_by_reason() -> None:
    outcomes = {
        "a": RequestRecord(request_id="a", outcome="rejected", reason="exceeds_context"),
        "b": RequestRecord(request_id="b", outcome="rejected", reason="exceeds_context"),
        "c": RequestRecord(request_id="c", outcome="failed"),
    }
    found = findings_of(recording(outcomes=outcomes), (), ())
    told = next(finding.text for finding in found if finding.code == "requests_not_run")
    assert "2 × exceeds_context, 1 × unknown" in told


def test_an_outcome_whose_request_was_cut_off_the_schedule_is_not_compared() -> None:
    assert codes(recording(requests=())) == set()


def test_the_self_test_says_what_segments_and_what_samples_saw() -> None:
    during = Sample(t_s=1.15, values={"host.rss": IDLE_BYTES + 50 * MIB})
    outside = replace(during, t_s=1.21)
    for run, told in (
        (spiked(IDLE_BYTES + 50 * MIB, during), "segments saw 1 and the 10 Hz sampler saw 1."),
        (spiked(IDLE_BYTES + 50 * MIB, outside), "segments saw 1 and the 10 Hz sampler saw 0."),
        (LOST_SPIKE, "segments saw 0 and the 10 Hz sampler saw 0. Peaks of this run can be too"),
    ):
        assert any(told in finding.text for finding in findings_of(run, (), ()))


def test_the_self_test_says_what_the_witness_saw() -> None:
    for at_s, count in ((1.15, 1), (1.21, 0)):
        run = replace(WHOLE_SPIKE, witness=read_at_1_khz(at_s, IDLE_BYTES + 50 * MIB))
        texts = [f.text for f in findings_of(run, (), ()) if f.code == "self_test"]
        assert f"and the 1 kHz one {count}." in texts[0]


def test_contradicted_segments_are_counted_and_the_worst_is_told() -> None:
    pair = (segment(), segment(start_s=0.1, end_s=0.2))
    seen = Witness(t_s=[0.05, 0.15], rss_bytes=[PEAK_BYTES + 3 * MIB, PEAK_BYTES + 7 * MIB])
    found = findings_of(recording(segments=pair, witness=seen), (), ())
    text = next(f.text for f in found if f.code == "peak_below_sample")
    assert "In 2 of 2 segments" in text
    assert f"by {7 * MIB:,} bytes at most (at 0.200 s)" in text


def test_a_witness_that_never_read_is_no_witness() -> None:
    run = recording(segments=(segment(end_s=9.0),), witness=Witness(t_s=[], rss_bytes=[]))
    assert "no_witness" in codes(run)
    assert "no_witness" not in codes(replace(run, segments=()))


def test_a_spike_is_held_against_the_lower_reading_around_it() -> None:
    before, over, after = seen(IDLE_BYTES, IDLE_BYTES + 50 * MIB)
    freed = replace(before, gauges={"host.rss": IDLE_BYTES + 30 * MIB})
    run = recording(planted=(SPIKE,), segments=(freed, over, after))
    assert "self_test" in codes(run)


# --- rules about what was summarised -----------------------------------------------------------


def with_requests(count: int) -> Recording:
    requests = tuple(request(f"r{n:03}") for n in range(count))
    return recording(
        header=header(workload=workload(class_rules={CLASSES[0].name: CLASSES[0].rule})),
        requests=requests,
        outcomes={r.request_id: completed(r) for r in requests},
        segments=(
            segment(in_flight=tuple(flight(r.request_id) for r in requests), prefill_tokens=10),
        ),
    )


def withheld(run: Recording) -> list[str]:
    found = findings_of(run, summarise(run).classes, ())
    return [finding.text for finding in found if finding.code == "percentile_withheld"]


def test_a_withheld_percentile_says_what_it_needs() -> None:
    (text,) = withheld(with_requests(30))
    assert "Class short" in text
    assert "p99 (n=30, needs 368) of attributed memory, TTFT" in text
    assert "p99 (0 excursions beyond it, needs 10) of co-resident memory" in text
    assert "p95" not in text
    for figure in ("co-resident memory", "attributed memory", "TTFT", "TPOT", "end-to-end"):
        assert figure in text


def test_enough_requests_withhold_nothing_of_theirs() -> None:
    (text,) = withheld(with_requests(368))
    # All of them are in one step, which is no independent excursion of anything.
    assert "p99 (0 excursions beyond it, needs 10)" in text
    assert "attributed" not in text and "TTFT" not in text


def test_below_the_fallback_it_is_requests_that_are_missing() -> None:
    (text,) = withheld(with_requests(19))
    assert "p95 (n=19, needs 20), p99 (n=19, needs 20) of co-resident memory" in text


@pytest.mark.parametrize(("slope", "fires"), [(0.89, 1), (0.9, 0), (1.1, 0), (1.11, 1)])
def test_resident_memory_that_does_not_follow_kv_is_told(slope: float, fires: int) -> None:
    found = [
        finding
        for finding in findings_of(
            recording(), (), (), KvSlope(slope=slope, low=slope - 0.1, high=slope + 0.1, n=48)
        )
        if finding.code == "kv_slope_off"
    ]
    assert len(found) == fires
    assert all(f"fell by {slope:.2f} bytes" in finding.text for finding in found)


def test_too_little_kv_given_back_is_no_doubt() -> None:
    codes = [finding.code for finding in findings_of(recording(), (), (), None)]
    assert "kv_slope_off" not in codes


def open_by(ratio: float) -> Attribution:
    made = host_attribution([segment()], recording().engines[0], composed={"host.heap_free": 0})
    assert made is not None
    return replace(made, total_bytes=1000, unexplained_bytes=round(1000 * ratio))


@pytest.mark.parametrize(("ratio", "fires"), [(0.021, 1), (-0.021, 1), (0.02, 0), (-0.02, 0)])
def test_an_attribution_that_does_not_close_is_told(ratio: float, fires: int) -> None:
    found = [
        finding
        for finding in findings_of(recording(), (), (open_by(ratio),))
        if finding.code == "attribution_open"
    ]
    assert len(found) == fires
    assert all(f"{ratio:+.1%} of the cpu peak" in finding.text for finding in found)


def test_the_recordings_own_findings_come_first() -> None:
    own = Finding(code="torn_tail", text="t", hint="h")
    found = findings_of(recording(findings=(own,), end=end(reason="interrupted")), (), ())
    assert [finding.code for finding in found] == [
        "torn_tail",
        "interrupted",
        "no_reference_concurrency",
    ]


def test_every_finding_says_what_to_try_next() -> None:
    doubtful = (WHOLE_SPIKE, LOST_SPIKE, waited(0.9), sent_late(1.0), outcome(output_tokens_run=1))
    for run in doubtful:
        assert all(finding.text and finding.hint for finding in findings_of(run, (), ()))


def test_an_engine_is_not_needed_for_findings() -> None:
    none: tuple[EngineFacts, ...] = ()
    assert codes(recording(engines=none)) == set()
