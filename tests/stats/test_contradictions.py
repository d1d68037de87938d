"""A segment is contradicted by what was surely read inside it, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import engine, recording, segment

from memplan.records import EngineFacts, Recording, Sample, Segment, Witness
from memplan.stats.contradictions import above_peaks, below_own_ends
from memplan.units import MIB

BOUND = MIB
PEAK = 200 * MIB
END = {"host.rss": 100 * MIB}


def step(start_s: float, end_s: float, peak: int = PEAK, **changes: Any) -> Segment:
    made = segment(start_s=start_s, end_s=end_s, peak={"host.hwm": peak}, gauges=END)
    return replace(made, **changes)


def run(*segments: Segment, **changes: Any) -> Recording:
    return recording(segments=segments, engines=(engine(ready_s=-1.0),), **changes)


def witnessed(*readings: tuple[float, int]) -> Witness:
    return Witness(t_s=[t for t, _ in readings], rss_bytes=[rss for _, rss in readings])


def excesses(run: Recording) -> list[tuple[float, int]]:
    return [(one.segment.start_s, one.excess_bytes) for one in above_peaks(run)]


LOW_THEN_HIGH = (step(0.0, 0.1, PEAK), step(0.1, 0.2, 2 * PEAK), step(0.2, 0.3, PEAK))


@pytest.mark.parametrize(
    ("t_s", "rss", "found"),
    [
        (0.05, PEAK + BOUND + 1, [(0.0, BOUND + 1)]),
        (0.05, PEAK + BOUND, []),  # within the kernel's drift
        (0.15, 2 * PEAK, []),
        (0.0995, 2 * PEAK, []),  # within 1 ms of the end of a low one: it may be the high one's
        (0.2005, 2 * PEAK, []),
        (0.202, 2 * PEAK, [(0.2, PEAK)]),
        (0.4, 9 * PEAK, []),  # after all segments
    ],
)
def test_a_witness_is_held_against_the_segment_it_was_read_in(
    t_s: float, rss: int, found: list[tuple[float, int]]
) -> None:
    assert excesses(run(*LOW_THEN_HIGH, witness=witnessed((t_s, rss)))) == found


@pytest.mark.parametrize(("t_s", "count"), [(0.06, 0), (0.25, 1), (0.14, 0), (0.16, 1)])
def test_what_was_read_while_a_segment_was_being_closed_belongs_to_neither_side(
    t_s: float, count: int
) -> None:
    """Its close took from 50 ms before its end to 50 ms after it at most."""
    slow = replace(LOW_THEN_HIGH[0], close_s=0.05)
    seen = witnessed((t_s, 3 * PEAK))
    assert len(above_peaks(run(slow, *LOW_THEN_HIGH[1:], witness=seen))) == count
    assert len(above_peaks(run(*LOW_THEN_HIGH, witness=seen))) == 1


def test_a_sample_near_a_slow_close_may_have_been_read_between_mark_and_reset() -> None:
    samples = tuple(Sample(t_s=t, values={"host.rss": 3 * PEAK}) for t in (0.12, 0.18))
    slow = replace(LOW_THEN_HIGH[0], close_s=0.05)
    for segments, count in (((slow, *LOW_THEN_HIGH[1:]), 0), (LOW_THEN_HIGH, 1)):
        assert len(above_peaks(run(*segments, samples=samples))) == count


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ((0.02, 0.09), [(0.0, PEAK)]),  # surely read in the first
        ((0.05, 0.15), []),  # perhaps in the first, perhaps in the second
        ((0.09, 0.0995), []),  # within 1 ms of the second
        ((0.21, 0.29), [(0.2, PEAK)]),
        ((0.25, 0.35), []),  # after all segments, perhaps
        ((0.05,), []),  # the first one: nobody knows since when
    ],
)
def test_a_sample_is_held_against_all_that_it_may_have_been_read_in(
    times: tuple[float, ...], found: list[tuple[float, int]]
) -> None:
    *before, last = times
    samples = (
        *(Sample(t_s=t, values={"host.rss": 1}) for t in before),
        Sample(t_s=last, values={"host.rss": 2 * PEAK}),
    )
    assert excesses(run(*LOW_THEN_HIGH, samples=samples)) == found


def test_each_segment_is_told_once_with_its_largest_excess() -> None:
    seen = witnessed((0.02, 2 * PEAK), (0.04, 3 * PEAK), (0.25, 2 * PEAK))
    samples = tuple(Sample(t_s=t, values={"host.rss": PEAK + 9 * MIB}) for t in (0.05, 0.06))
    found = excesses(run(*LOW_THEN_HIGH, witness=seen, samples=samples))
    assert sorted(found) == [(0.0, 2 * PEAK), (0.2, PEAK)]


def test_a_mark_that_was_never_reset_has_no_segments_to_be_robbed() -> None:
    kept: EngineFacts = engine(ready_s=-1.0, settings={"segment_peaks": "sampled at segment ends"})
    run_ = run(*LOW_THEN_HIGH, witness=witnessed((0.05, 3 * PEAK)))
    assert above_peaks(replace(run_, engines=(kept,))) == []
    assert below_own_ends(replace(run(step(0, 1), step(1, 2, MIB)), engines=(kept,))) == []


def test_readings_of_another_engine_start_say_nothing_about_this_ones_segments() -> None:
    first, second = engine(ready_s=0.0), engine(engine_start=1, ready_s=1.0)
    segments = (step(0.0, 2.0), step(0.5, 2.5, 3 * PEAK, engine_start=1))
    run_ = recording(segments=segments, engines=(first, second))
    assert above_peaks(replace(run_, witness=witnessed((1.5, 2 * PEAK)))) == []
    assert len(above_peaks(replace(run_, witness=witnessed((0.9, 2 * PEAK))))) == 1
    assert above_peaks(replace(run_, witness=witnessed((-0.5, 2 * PEAK)))) == []


@pytest.mark.parametrize(
    ("before", "peak", "after", "fires"),
    [
        (PEAK, PEAK - BOUND - 1, MIB, True),  # it began with more than its peak
        (PEAK, PEAK - BOUND, MIB, False),
        (MIB, PEAK - BOUND - 1, PEAK, True),  # it ended with more
        (MIB, PEAK - BOUND, PEAK, False),
    ],
)
def test_a_peak_is_no_lower_than_what_was_resident_at_the_segments_ends(
    before: int, peak: int, after: int, fires: bool
) -> None:
    segments = (
        step(0.0, 0.1, PEAK, gauges={"host.rss": before}),
        step(0.1, 0.2, peak, gauges={"host.rss": after}),
    )
    found = below_own_ends(run(*segments))
    assert [one.segment.start_s for one in found] == ([0.1] if fires else [])
    assert [one.excess_bytes for one in found] == ([PEAK - peak] if fires else [])


def test_what_was_resident_when_a_close_was_interrupted_may_be_gone_before_the_reset() -> None:
    for close_s, count in ((0.0011, 0), (0.001, 1)):
        before = step(0.0, 0.1, gauges={"host.rss": PEAK}, close_s=close_s)
        assert len(below_own_ends(run(before, step(0.1, 0.2, PEAK // 2)))) == count


def test_a_child_that_ended_took_its_memory_with_it() -> None:
    def segments(processes: int) -> tuple[Segment, Segment]:
        both = {"host.rss": PEAK, "host.processes": 2}
        fewer = {"host.rss": MIB, "host.processes": processes}
        return step(0.0, 0.1, gauges=both), step(0.1, 0.2, PEAK // 2, gauges=fewer)

    assert below_own_ends(run(*segments(1))) == []
    assert len(below_own_ends(run(*segments(2)))) == 1


def test_segments_of_two_engine_starts_are_not_neighbours() -> None:
    again = step(0.1, 0.2, MIB, engine_start=1, gauges={"host.rss": MIB})
    run_ = recording(
        segments=(step(0.0, 0.1), again), engines=(engine(), engine(engine_start=1, ready_s=0.1))
    )
    assert below_own_ends(run_) == []
