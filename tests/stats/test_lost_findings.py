"""Sources lost on the way, and clocks that moved: each fires on its doubt and not beside it."""

from dataclasses import replace

import pytest
from builders import completed, end, engine, recording, request, samples, segment

from memplan.records import Finding, Recording, RequestRecord, Sample, Segment
from memplan.stats.findings import clocks, lost
from memplan.stats.summarise import summarise
from memplan.units import MIB


def found_in(run: Recording) -> dict[str, Finding]:
    return {found.code: found for rule in (*lost.RULES, *clocks.RULES) for found in rule(run)}


def by_ends(number: int, *, life: bool, engine_start: int = 0) -> Segment:
    """One of many segments of a second each."""
    gauges = {"host.rss": 100 * MIB} | ({"host.hwm_life": 120 * MIB} if life else {})
    return segment(
        start_s=float(number), end_s=number + 1.0, gauges=gauges, engine_start=engine_start
    )


def measured_by_ends(*life: bool) -> Recording:
    return recording(segments=tuple(by_ends(n, life=one) for n, one in enumerate(life)))


def counted(gauge: str, *values: int) -> Recording:
    """Samples 0.1 s apart, while the builder's one request is in flight until 0.2 s."""
    return recording(
        samples=tuple(Sample(t_s=n * 0.1, values={gauge: v}) for n, v in enumerate(values))
    )


def sampled_at(*times_s: float) -> Recording:
    return recording(samples=tuple(Sample(t_s=t, values={"host.rss": 1}) for t in times_s))


def outcome(**changes: object) -> Recording:
    return recording(outcomes={"a": completed(request(), **changes)})


def by_the_wall(wall_s: float | None, *, ended_s: float = 1000.0) -> Recording:
    return recording(end=end(ended_s=ended_s, wall_s=wall_s))


def test_nothing_is_lost_in_a_clean_run() -> None:
    assert found_in(recording()) == {}


@pytest.mark.parametrize(
    ("code", "doubtful", "harmless"),
    [
        ("reset_lost", measured_by_ends(False, True), measured_by_ends(False, False)),
        # From its start on: that run says peaks_not_exact.
        ("reset_lost", measured_by_ends(False, True), measured_by_ends(True, True)),
        (
            "process_hidden",
            counted("host.processes_hidden", 0, 1, 0),
            counted("host.processes_hidden", 0, 0),
        ),
        ("process_vanished", counted("host.processes_gone", 0, 1), counted("host.processes_gone", 1, 1)),
        # The request ended at 0.2 s.
        (
            "process_vanished",
            counted("host.processes_gone", 0, 0, 0, 1),
            counted("host.processes_gone", 0, 0, 0, 0, 1),
        ),
        # A new engine counts from zero.
        ("process_vanished", counted("host.processes_gone", 2, 3), counted("host.processes_gone", 3, 0)),
        (
            "samples_missing",
            recording(end=end(samples=3), samples=samples(1, 2)),
            recording(end=end(samples=2), samples=samples(1, 2)),
        ),
        ("samples_missing", recording(end=end(samples=1)), recording(end=None)),
        ("clock_stepped_back", sampled_at(0.1, 0.3, 0.2), sampled_at(0.1, 0.2, 0.2)),
        (
            "clock_stepped_back",
            recording(segments=(segment(start_s=1.0, end_s=0.9),)),
            recording(segments=(segment(start_s=1.0, end_s=1.0),)),
        ),
        ("clock_stepped_back", outcome(first_token_s=-0.1), outcome(first_token_s=0.0)),
        ("clock_stepped_back", outcome(end_s=0.05), outcome(admitted_s=None, first_token_s=None)),
        ("wall_clock_moved", by_the_wall(1002.1), by_the_wall(1001.9)),
        ("wall_clock_moved", by_the_wall(997.9), by_the_wall(998.1)),
        ("wall_clock_moved", by_the_wall(2.1, ended_s=1.0), by_the_wall(None)),
        ("wall_clock_moved", by_the_wall(2.1, ended_s=1.0), by_the_wall(2.0, ended_s=1.0)),
    ],
)  # fmt: skip
def test_a_rule_fires_on_its_doubt_and_not_beside_it(
    code: str, doubtful: Recording, harmless: Recording
) -> None:
    assert set(found_in(doubtful)) == {code}
    assert found_in(harmless) == {}


def test_the_second_from_which_peaks_are_readings_is_named_for_each_engine() -> None:
    segments = (
        by_ends(0, life=False),
        by_ends(1, life=True),
        by_ends(2, life=False),
        by_ends(3, life=True),
        by_ends(4, life=False, engine_start=1),
    )
    run = recording(engines=(engine(), engine(engine_start=1)), segments=segments)
    (lost_once,) = (found for rule in lost.RULES for found in rule(run))
    assert "From 1.0 s on" in lost_once.text


def test_a_child_that_ends_when_nothing_is_asked_of_the_engine_is_no_doubt() -> None:
    never_sent = RequestRecord(request_id="a", outcome="not_sent")
    for record, is_doubtful in ((never_sent, False), (completed(request(), end_s=None), True)):
        run = counted("host.processes_gone", 0, 0, 0, 0, 2)
        run = recording(samples=run.samples, outcomes={"a": record})
        assert ("process_vanished" in found_in(run)) == is_doubtful


def test_the_largest_step_back_and_what_it_touched_are_named() -> None:
    run = recording(
        samples=sampled_at(5.0, 4.0, 4.5, 4.4).samples,
        segments=(segment(start_s=1.0, end_s=0.5), segment()),
        outcomes={"a": completed(request(), end_s=-2.0)},
    )
    text = found_in(run)["clock_stepped_back"].text
    assert "by up to 2.100 s in 1 segments, 2 samples, 1 requests" in text


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_which_way_the_wall_clock_went_is_told(ahead_s: float) -> None:
    text = found_in(by_the_wall(5000.0 + ahead_s, ended_s=5000.0))["wall_clock_moved"].text
    assert ("3600.0 s more" in text and "slept" in text) == (ahead_s > 0)
    assert ("3600.0 s less" in text and "set back" in text) == (ahead_s < 0)


def test_a_negative_latency_is_left_out_and_never_clipped_to_zero() -> None:
    right, wrong = request("right"), request("wrong")
    run = recording(
        requests=(right, wrong),
        outcomes={
            "right": completed(right),
            # Before its first token, which is before it was meant to be sent.
            "wrong": completed(wrong, first_token_s=-0.3, end_s=-0.5),
        },
        segments=(),
    )
    (short, _) = summarise(run).classes
    for latency in (short.ttft_s, short.tpot_s, short.e2e_s):
        assert latency.n == 1
        assert latency.p50.value is not None and latency.p50.value > 0
    assert "1 requests" in found_in(run)["clock_stepped_back"].text


def test_a_lag_that_is_negative_is_left_out_too() -> None:
    fidelity = summarise(outcome(intended_s=0.1)).fidelity
    assert fidelity is not None
    assert fidelity.schedule_lag_s.n == 0


def test_a_segment_whose_end_lies_before_its_start_weighs_nothing() -> None:
    backwards = segment(start_s=9.0, end_s=1.0, waiting=1)
    busy = [segment(start_s=n * 1.0, end_s=n + 1.0) for n in range(2)]
    run = recording(segments=(*busy, backwards))
    assert "engine_saturated" not in {f.code for f in summarise(run).findings}
    queued = [replace(busy[0], waiting=1), busy[1], replace(backwards, waiting=0)]
    assert "engine_saturated" in {f.code for f in summarise(replace(run, segments=queued)).findings}
