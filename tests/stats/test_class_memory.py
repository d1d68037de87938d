"""By time, by request, in slices, over replays: against recordings worked out by hand."""

from dataclasses import replace

import pytest
from builders import IDLE_BYTES, completed, engine, flight, header, recording, request, segment

from memplan.records import Recording, RequestRecord, Segment, Slice
from memplan.stats.summarise import summarise
from memplan.stats.summary import ClassSummary, PlaceMemory
from memplan.units import MIB


def step(start_s: float, end_s: float, over_idle: int, *ids: str, start: int = 0) -> Segment:
    return segment(
        engine_start=start,
        start_s=start_s,
        end_s=end_s,
        peak={"host.hwm": IDLE_BYTES + over_idle * MIB},
        in_flight=tuple(flight(one) for one in ids),
        prefill_tokens=10,
    )


def run_of(*segments: Segment, ids: str = "ab") -> Recording:
    requests = tuple(request(one) for one in ids)
    return recording(
        requests=requests,
        outcomes={one.request_id: completed(one) for one in requests},
        segments=segments,
    )


def short(run: Recording) -> ClassSummary:
    return next(one for one in summarise(run).classes if one.name == "short")


def memory(run: Recording) -> PlaceMemory:
    return short(run).cpu


def over_idle(value: float | None) -> float:
    assert value is not None
    return (value - IDLE_BYTES) / MIB


def test_a_long_request_counts_by_its_time_and_once_by_request() -> None:
    # a alone for 9 s; then three requests for a second each.
    run = run_of(
        step(0, 9, 2, "a"),
        step(9, 10, 7, "b"),
        step(10, 11, 8, "c"),
        step(11, 12, 9, "d"),
        ids="abcd",
    )
    made = memory(run)
    assert over_idle(made.co_resident.p50.value) == 2
    assert over_idle(made.co_resident_by_request.p50.value) == 7
    assert made.co_resident.n == made.co_resident_by_request.n == 4


def test_a_requests_process_is_the_largest_while_it_was_in_flight() -> None:
    run = run_of(step(0, 1, 2, "a"), step(1, 2, 6, "a", "b"), step(2, 3, 9, "b"))
    by_request = memory(run).co_resident_by_request
    assert (over_idle(by_request.p50.value), over_idle(by_request.peak)) == (6, 9)


def test_a_step_in_slices_counts_slice_by_slice() -> None:
    whole = step(0, 1, 9, "a")
    slices = (
        Slice(end_s=0.6, peak_bytes=IDLE_BYTES + 1 * MIB),
        Slice(end_s=0.9, peak_bytes=IDLE_BYTES + 4 * MIB),
        Slice(end_s=1.0, peak_bytes=IDLE_BYTES + 9 * MIB),
    )
    assert over_idle(memory(run_of(whole)).co_resident.p50.value) == 9
    made = memory(run_of(replace(whole, slices=slices)))
    assert (over_idle(made.co_resident.p50.value), over_idle(made.co_resident.peak)) == (1, 9)
    assert over_idle(made.co_resident_by_request.p50.value) == 9


def test_a_clock_that_stepped_back_takes_no_weight_from_anything() -> None:
    forward = (step(0, 2, 3, "a"), step(2, 3, 5, "a"))
    back = step(3, 1, 8, "a")
    made = memory(run_of(*forward, back)).co_resident
    assert (over_idle(made.p50.value), over_idle(made.peak)) == (3, 8)


def test_a_slice_that_ends_before_it_begins_takes_no_weight_either() -> None:
    slices = (
        Slice(end_s=0.6, peak_bytes=IDLE_BYTES + 2 * MIB),
        Slice(end_s=0.2, peak_bytes=IDLE_BYTES + 8 * MIB),
        Slice(end_s=1.0, peak_bytes=IDLE_BYTES + 4 * MIB),
    )
    made = memory(run_of(replace(step(0, 1, 8, "a"), slices=slices))).co_resident
    assert over_idle(made.p50.value) == 2


def repeated_run(*over: int, last: RequestRecord | None = None) -> Recording:
    """A replay of one request for each of ``over``, 100 s apart, each on an engine of its own."""
    requests = tuple(
        request(f"a#{n}", wave=f"replay {n + 1}", arrival_s=5.0) for n in range(len(over))
    )
    outcomes = {
        one.request_id: completed(
            one, intended_s=100.0 * n + 5, sent_s=100.0 * n + 5, end_s=100.0 * n + 7
        )
        for n, one in enumerate(requests)
    }
    if last is not None:
        outcomes[last.request_id] = last
    return recording(
        header=header(repeats=len(over)),
        engines=tuple(engine(engine_start=n) for n in range(len(over))),
        requests=requests,
        outcomes=outcomes,
        segments=tuple(
            step(100.0 * n + 5, 100.0 * n + 7, more, f"a#{n}", start=n)
            for n, more in enumerate(over)
        ),
    )


def test_replays_are_told_and_their_requests_counted_once() -> None:
    made = memory(repeated_run(2, 4, 6))
    for one in (made.co_resident, made.co_resident_by_request, made.attributed):
        assert (one.n, one.replays) == (1, 3)
    median = made.co_resident.p50
    assert over_idle(median.value) == 4
    # Student's t, 2 degrees of freedom, of 2, 4 and 6 MiB.
    assert over_idle(median.replays_high) == pytest.approx(4 + 4.303 * 2 / 3**0.5, rel=1e-4)
    assert short(repeated_run(2, 4, 6)).requests == 3


def test_a_replay_that_was_cut_off_is_no_replay() -> None:
    unsent = RequestRecord(request_id="a#2", outcome="not_sent")
    assert memory(repeated_run(2, 4, 6, last=unsent)).co_resident.replays == 2


def test_the_time_between_replays_is_no_busy_time() -> None:
    assert summarise(repeated_run(2, 4, 6)).completed_per_s == pytest.approx(3 / 6)
