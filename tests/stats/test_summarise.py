"""A recording small enough to summarise by hand."""

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

from memplan.records import InFlight, Recording, RequestRecord, Segment
from memplan.stats.summarise import summarise
from memplan.stats.summary import ClassSummary, RunSummary
from memplan.units import MIB

SHORT = request("s", arrival_s=0.0)
LONG = request("l", arrival_s=1.0, class_name="long", input_tokens=200, output_tokens=5)


def peaked(
    start_s: float, end_s: float, over_idle: int, *flights: InFlight, start: int = 0
) -> Segment:
    """A step whose peak is ``over_idle`` MiB over idle, 1 MiB of it for a moment only."""
    return segment(
        engine_start=start,
        start_s=start_s,
        end_s=end_s,
        peak={"host.hwm": IDLE_BYTES + over_idle * MIB},
        gauges={"host.rss": IDLE_BYTES + (over_idle - 1) * MIB},
        in_flight=flights,
        prefill_tokens=sum(f.tokens for f in flights),
    )


def mixed() -> Recording:
    """Short alone for 3 s, both for 1 s, long alone for 6 s."""
    return recording(
        requests=(SHORT, LONG),
        outcomes={
            "s": completed(SHORT, first_token_s=0.5, end_s=4.0),
            "l": completed(LONG, sent_s=1.2, first_token_s=2.0, end_s=10.0),
        },
        segments=(
            peaked(0.0, 3.0, 2, flight("s")),
            peaked(3.0, 4.0, 9, flight("s"), flight("l", kv_used_bytes=4 * MIB, tokens=30)),
            peaked(4.0, 10.0, 5, flight("l", tokens=1)),
            segment("idle", start_s=10.0, end_s=11.0, peak={"host.hwm": IDLE_BYTES}),
        ),
        end=end(ended_s=11.0, client_cpu_s=0.3, client_peak_bytes=50 * MIB),
    )


def class_of(summary: RunSummary, name: str) -> ClassSummary:
    return next(one for one in summary.classes if one.name == name)


def test_co_resident_memory_is_weighted_by_the_time_a_class_was_in_flight() -> None:
    summary = summarise(mixed())
    short, long = (class_of(summary, name).cpu.co_resident for name in ("short", "long"))
    assert (short.p50.value, short.peak) == (IDLE_BYTES + 2 * MIB, IDLE_BYTES + 9 * MIB)
    assert (long.p50.value, long.peak) == (IDLE_BYTES + 5 * MIB, IDLE_BYTES + 9 * MIB)
    assert (short.n, long.n) == (1, 1)
    assert short.p95.value is None  # one request is no tail


def test_attributed_memory_is_a_requests_own_kv_and_its_share_of_a_steps_transient() -> None:
    summary = summarise(mixed())
    short, long = (class_of(summary, name).cpu.attributed for name in ("short", "long"))
    assert short.p50.value == 10_000 + MIB  # alone: the whole transient
    assert long.p50.value == 4 * MIB + MIB * 30 / 40
    assert (short.n, long.n) == (1, 1)


def test_latency_is_counted_from_the_intended_time() -> None:
    long = class_of(summarise(mixed()), "long")
    assert long.ttft_s.p50.value == pytest.approx(1.0)
    assert long.e2e_s.p50.value == pytest.approx(9.0)
    assert long.tpot_s.p50.value == pytest.approx(8.0 / 4)


def test_a_request_of_one_token_has_no_time_between_tokens() -> None:
    one = replace(SHORT, output_tokens=1)
    run = replace(mixed(), outcomes={**mixed().outcomes, "s": completed(one)})
    short = class_of(summarise(run), "short")
    assert (short.tpot_s.n, short.ttft_s.n) == (0, 1)


def test_the_runs_own_figures() -> None:
    summary = summarise(mixed())
    assert (summary.kind, summary.variant, summary.duration_s) == ("replay", "base", 11.0)
    assert (summary.idle_bytes, summary.peak_bytes) == (IDLE_BYTES, IDLE_BYTES + 9 * MIB)
    assert summary.load_peak_bytes == 95 * MIB
    assert (summary.gpu_idle_bytes, summary.gpu_peak_bytes) == (None, None)
    assert summary.completed_per_s == pytest.approx(2 / 10)
    assert summary.output_tokens_per_s == pytest.approx(7 / 10)
    assert (summary.solo, summary.rungs) == ((), ())
    assert summary.overhead.client_cpu_s == 0.3
    assert summary.overhead.client_peak_bytes == 50 * MIB
    assert class_of(summary, "long").gpu is None


def test_the_peak_is_a_samples_where_no_segment_saw_it() -> None:
    run = replace(mixed(), samples=samples(IDLE_BYTES, IDLE_BYTES + 20 * MIB))
    assert summarise(run).peak_bytes == IDLE_BYTES + 20 * MIB


def test_the_peak_is_the_mark_of_a_whole_life_where_it_could_not_be_reset() -> None:
    life = segment("idle", gauges={"host.rss": IDLE_BYTES, "host.hwm_life": IDLE_BYTES + 30 * MIB})
    run = replace(mixed(), segments=(*mixed().segments, life))
    assert summarise(run).peak_bytes == IDLE_BYTES + 30 * MIB


def test_loading_and_warm_up_are_no_part_of_what_a_class_cost() -> None:
    loading = segment("load", peak={"host.hwm": 2**40}, in_flight=(flight("s"),))
    summary = summarise(replace(mixed(), segments=(loading, *mixed().segments)))
    assert class_of(summary, "short").cpu.co_resident.peak == IDLE_BYTES + 9 * MIB
    assert summary.attribution is not None
    assert summary.attribution.total_bytes == IDLE_BYTES + 9 * MIB
    assert summary.peak_bytes == 2**40


def test_fidelity_tells_the_lag_and_the_most_in_flight_as_the_client_saw_it() -> None:
    run = replace(mixed(), header=header(workload=workload(dilation=2.0, length_scale=0.5)))
    fidelity = summarise(run).fidelity
    assert fidelity is not None
    assert (fidelity.peak_in_flight, fidelity.dilation, fidelity.length_scale) == (2, 2.0, 0.5)
    assert fidelity.schedule_lag_s.peak == pytest.approx(0.2)


def test_a_request_that_begins_as_another_ends_is_not_beside_it() -> None:
    run = mixed()
    outcomes = {"s": completed(SHORT, end_s=1.0), "l": completed(LONG, sent_s=1.0, end_s=2.0)}
    fidelity = summarise(replace(run, outcomes=outcomes)).fidelity
    assert fidelity is not None and fidelity.peak_in_flight == 1


def test_what_became_of_requests_is_counted_by_class() -> None:
    kinds = ("completed", "failed", "rejected", "unfinished", "not_sent")
    requests = tuple(request(kind) for kind in kinds)
    outcomes = {
        kind: RequestRecord(request_id=kind, outcome=kind, reason=f"why {kind}")  # type: ignore[arg-type]
        for kind in kinds
    }
    short = class_of(summarise(recording(requests=requests, outcomes=outcomes)), "short")
    counts = (
        short.requests,
        short.completed,
        short.failed,
        short.rejected,
        short.unfinished,
        short.not_sent,
    )
    assert counts == (5, 1, 1, 1, 1, 1)
    assert dict(short.reasons) == {"why failed": 1, "why rejected": 1}


def test_a_class_of_the_file_that_no_request_had_is_shown_empty() -> None:
    summary = summarise(recording())
    assert [one.name for one in summary.classes] == [spec.name for spec in CLASSES]
    long = class_of(summary, "long")
    assert (long.requests, long.cpu.co_resident.n, long.cpu.co_resident.peak) == (0, 0, None)


def test_a_class_that_no_rule_names_is_shown_too() -> None:
    only = request(class_name="unknown")
    summary = summarise(recording(requests=(only,), outcomes={"a": completed(only)}))
    assert class_of(summary, "unknown").rule == "no rule matched"


def test_of_two_engine_starts_the_worse_one_is_attributed() -> None:
    first, second = engine(), engine(engine_start=1, idle={"host.rss": IDLE_BYTES - MIB})
    run = recording(
        engines=(first, second),
        segments=(
            segment("load", gauges={"host.rss": 1, "host.heap_free": 9 * MIB}),
            peaked(0.0, 1.0, 4, flight()),
            segment("load", engine_start=1, gauges={"host.rss": 1, "host.heap_free": 2 * MIB}),
            peaked(1.0, 2.0, 6, flight(), start=1),
            peaked(2.0, 3.0, 5, flight(), start=1),
        ),
    )
    summary = summarise(run)
    assert summary.attribution is not None
    assert (summary.attribution.total_bytes, summary.attribution.at_s) == (
        IDLE_BYTES + 6 * MIB,
        2.0,
    )
    assert summary.attribution.allocator_slack_bytes == 2 * MIB
    assert summary.idle_bytes == IDLE_BYTES - MIB


def test_the_heaps_account_after_the_peak_is_not_the_peaks() -> None:
    after = segment("idle", start_s=4.0, end_s=5.0, gauges={"host.rss": 1, "host.heap_free": 7})
    before = segment("idle", end_s=1.0, gauges={"host.rss": 1, "host.heap_free": 3})
    worst = peaked(1.0, 4.0, 9, flight())
    summary = summarise(recording(segments=(before, worst, after)))
    assert summary.attribution is not None
    assert summary.attribution.allocator_slack_bytes == 3


def test_on_a_device_a_class_has_memory_in_both_places() -> None:
    facts = engine(
        device="cuda:0",
        kv_kind="reserved",
        loaded={"cuda.0.allocated": 500 * MIB},
        idle={
            "host.rss": IDLE_BYTES,
            "cuda.0.device_used": 900 * MIB,
            "cuda.0.reserved": 600 * MIB,
        },
    )
    step = segment(
        peak={
            "host.hwm": IDLE_BYTES + MIB,
            "cuda.0.allocated": 620 * MIB,
            "cuda.0.reserved": 700 * MIB,
        },
        gauges={"host.rss": IDLE_BYTES, "cuda.0.allocated": 600 * MIB},
        in_flight=(flight(),),
        prefill_tokens=10,
    )
    summary = summarise(recording(engines=(facts,), segments=(step,)))
    short = class_of(summary, "short")
    assert short.gpu is not None
    assert short.gpu.co_resident.p50.value == 1000 * MIB
    assert short.gpu.attributed.p50.value == 16_000 + 20 * MIB
    assert short.cpu.attributed.p50.value == MIB
    assert (summary.gpu_idle_bytes, summary.gpu_peak_bytes) == (900 * MIB, 1000 * MIB)
    assert summary.gpu_attribution is not None


def test_a_profile_has_rungs_and_no_classes() -> None:
    rung = request(wave="batch-1", class_name="ladder")
    solo = request("b", wave="solo:short:0")
    run = recording(
        header=header(kind="profile"),
        requests=(rung, solo),
        outcomes={"a": completed(rung), "b": completed(solo)},
        segments=(segment(in_flight=(flight("a"),)), segment(in_flight=(flight("b"),))),
    )
    summary = summarise(run)
    assert (summary.classes, summary.fidelity) == ((), None)
    assert [one.wave for one in summary.rungs] == ["batch-1"]
    assert [one.class_name for one in summary.solo] == ["short"]


def test_a_run_in_which_nothing_happened_is_summarised_as_unknown() -> None:
    run = recording(
        engines=(),
        outcomes={"a": RequestRecord(request_id="a", outcome="not_sent")},
        segments=(),
        end=None,
    )
    summary = summarise(run)
    unknown = (
        summary.idle_bytes,
        summary.peak_bytes,
        summary.load_peak_bytes,
        summary.attribution,
        summary.completed_per_s,
        summary.overhead.segment_median_s,
        summary.overhead.client_cpu_s,
    )
    assert unknown == (None,) * 7
    assert summary.duration_s == 0.0


def test_the_same_recording_gives_the_same_summary() -> None:
    assert summarise(mixed()) == summarise(mixed())
