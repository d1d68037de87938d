from dataclasses import replace

from example_run import profile_summary, replay_recording, replay_summary
from hypothesis import given
from hypothesis import strategies as st

from memplan.records import Recording, Sample, Segment
from memplan.report.series import (
    MOST_POINTS,
    batch_points_of,
    latency_points_of,
    length_points_of,
    parts_of,
    timeline_of,
)
from memplan.units import MIB

RECORDING = replay_recording()
SUMMARY = replay_summary(RECORDING)


def with_peaks(peaks: list[int]) -> Recording:
    segments = tuple(
        Segment(
            engine_start=0,
            kind="step",
            start_s=float(at),
            end_s=float(at + 1),
            peak={"host.hwm": peak},
            gauges={},
        )
        for at, peak in enumerate(peaks)
    )
    return replace(RECORDING, segments=segments, samples=())


@given(
    peaks=st.lists(st.integers(0, 2**40), min_size=1, max_size=30),
    repeats=st.integers(1, 200),
)
def test_thinning_loses_no_peak(peaks: list[int], repeats: int) -> None:
    timeline = timeline_of(with_peaks(peaks * repeats), SUMMARY, "cpu", "t")
    assert max(peak for peak in timeline.peak_bytes if peak is not None) == max(peaks)
    assert len(timeline.peak_bytes) == len(timeline.start_s) <= MOST_POINTS


def test_a_thinned_timeline_says_so_and_a_whole_one_does_not() -> None:
    thinned = timeline_of(with_peaks([1] * (MOST_POINTS + 1)), SUMMARY, "cpu", "t")
    whole = timeline_of(with_peaks([1] * MOST_POINTS), SUMMARY, "cpu", "t")
    assert "Thinned" in thinned.caption
    assert "Thinned" not in whole.caption


def test_requests_in_flight_are_counted_by_class() -> None:
    timeline = timeline_of(RECORDING, SUMMARY, "cpu", "t")
    counts = dict(timeline.in_flight)
    totals = [sum(step) for step in zip(*counts.values(), strict=True)]
    assert list(counts) == ["short", "medium", "long"]
    assert totals == [len(segment.in_flight) for segment in RECORDING.segments]


def test_setup_is_one_span_from_the_start_to_the_end_of_the_warm_up() -> None:
    assert timeline_of(RECORDING, SUMMARY, "cpu", "t").setup_end_s == ((0.0, 5.2),)


def test_gpu_memory_counts_what_the_driver_holds_and_missing_readings_stay_missing() -> None:
    idle = {"cuda.1.reserved": 100, "cuda.1.device_used": 130}
    engine = replace(RECORDING.engines[0], device="cuda:1", idle=idle)
    bare = RECORDING.segments[-1]
    on_gpu = replace(bare, peak={"cuda.1.reserved": 107, "host.hwm": 99})
    recording = replace(
        RECORDING,
        engines=(engine,),
        segments=(bare, on_gpu),
        samples=(Sample(t_s=1.0, values={"nvml.1.used": 150}),),
    )
    timeline = timeline_of(recording, SUMMARY, "gpu", "t")
    assert timeline.peak_bytes == (None, 137)
    assert timeline.sample_bytes == (150,)


def test_a_run_that_was_cut_off_before_its_first_segment_has_an_empty_timeline() -> None:
    timeline = timeline_of(replace(RECORDING, segments=(), samples=()), SUMMARY, "cpu", "t")
    assert timeline.start_s == ()
    assert timeline.end_s == 0.0


def test_the_parts_of_the_peak_add_up_to_it() -> None:
    assert SUMMARY.attribution is not None
    parts = parts_of(SUMMARY.attribution)
    assert sum(value for _, value in parts) == SUMMARY.attribution.total_bytes


def test_only_completed_requests_are_points() -> None:
    points, everything = latency_points_of(RECORDING, "cpu")
    assert len(points) == everything == 40
    assert max(point.owned_bytes for point in points) > 100 * MIB
    assert "long-99" not in {point.request_id for point in points}
    outcomes = {
        key: replace(record, outcome="failed") for key, record in RECORDING.outcomes.items()
    }
    assert latency_points_of(replace(RECORDING, outcomes=outcomes), "cpu") == ((), 0)


def test_the_ladder_parts_into_lengths_and_batches() -> None:
    rungs = profile_summary().rungs
    lengths, batches = length_points_of(rungs), batch_points_of(rungs)
    assert [point.x for point in lengths] == [128, 512, 512, 1024, 2048, 4096, 6144]
    assert [point.x for point in batches] == [2, 4, 8]
    assert lengths[0].measured_bytes == rungs[0].peak_bytes - rungs[0].idle_bytes
