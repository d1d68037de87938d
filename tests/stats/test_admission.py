"""What requests waited for, who made way and what was shared: counted from the engine's own words."""

from typing import Any

import pytest
from builders import completed, recording, request, segment

from memplan.records import Recording, RequestRecord, Segment
from memplan.stats.findings import findings_of
from memplan.stats.summarise import summarise
from memplan.stats.summary import ClassAdmission, RunAdmission
from memplan.units import MIB


def admitted(count: int, **changes: Any) -> Recording:
    """So many short requests; ``changes`` are of the first one's record."""
    asked = tuple(request(f"r{n}", arrival_s=float(n), output_tokens=8) for n in range(count))
    outcomes = {one.request_id: completed(one) for one in asked}
    outcomes["r0"] = completed(asked[0], **changes)
    return recording(requests=asked, outcomes=outcomes)


def short_of(run: Recording) -> ClassAdmission:
    found = next(one for one in summarise(run).classes if one.name == "short").admission
    assert found is not None
    return found


def run_of(*segments: Segment) -> RunAdmission:
    found = summarise(recording(segments=segments)).admission
    assert found is not None
    return found


def test_waits_are_by_reason_and_the_longest_in_all_comes_first() -> None:
    found = short_of(admitted(4, waited_s={"step": 0.5, "kv_pool": 2.0}))
    assert found.entered == 4
    assert [(one.reason, one.requests, one.total_s) for one in found.waits] == [
        ("kv_pool", 1, 2.0),
        ("step", 1, 0.5),
    ]
    assert found.waits[0].waited_s.p50.value == 2.0
    assert found.waits[0].waited_s.n == 1
    # Who did not wait waited 0 s: of 4 requests the median is that.
    assert (found.waited_s.n, found.waited_s.p50.value, found.waited_s.peak) == (4, 0.0, 2.5)


def test_a_p95_of_waits_needs_twenty_requests_that_waited() -> None:
    run = admitted(20)
    waited = {
        name: completed(run.requests[n], waited_s={"lane": 1.0 + n})
        for n, name in enumerate(run.outcomes)
    }
    found = short_of(recording(requests=run.requests, outcomes=waited)).waits[0]
    assert (found.waited_s.p50.value, found.waited_s.p95.value) == (10.0, 19.0)
    few = {**waited, "r0": run.outcomes["r0"]}
    assert (
        short_of(recording(requests=run.requests, outcomes=few)).waits[0].waited_s.p95.value is None
    )


def test_a_request_that_never_entered_has_no_wait_and_is_counted_by_its_reason() -> None:
    run = admitted(2)
    refused = RequestRecord(request_id="r0", outcome="rejected", reason="queue_full", end_s=0.0)
    found = short_of(recording(requests=run.requests, outcomes={**run.outcomes, "r0": refused}))
    assert (found.entered, found.waited_s.n) == (1, 1)
    assert found.rejected == {"queue_full": 1}
    assert found.prompt_tokens == 10


def test_what_was_shared_made_way_and_came_back_is_added_up() -> None:
    found = short_of(
        admitted(3, preemptions=2, shared_tokens=8, pulled_back_bytes=4 * MIB, pull_back_s=0.25)
    )
    assert (found.preempted, found.preemptions) == (1, 2)
    assert (found.shared_tokens, found.prompt_tokens) == (8, 30)
    assert (found.pulled_back, found.pulled_back_bytes, found.pull_back_s) == (1, 4 * MIB, 0.25)
    assert (found.waits, found.rejected, found.shortened) == ((), {}, 0)


def test_a_shortened_request_is_told_and_is_no_fault_of_the_engine() -> None:
    run = admitted(3, output_tokens_run=3, is_shortened=True)
    assert (short_of(run).shortened, short_of(run).shortened_tokens) == (1, 5)
    codes = {one.code: one.text for one in findings_of(run, (), ())}
    assert "1 of 3 requests" in codes["requests_shortened"]
    assert "lengths_differ" not in codes
    unasked = {one.code for one in findings_of(admitted(3, output_tokens_run=3), (), ())}
    assert "lengths_differ" in unasked and "requests_shortened" not in unasked


def test_the_most_blocks_are_each_at_their_own_time_and_those_of_setting_up_do_not_count() -> None:
    first = {"engine.kv_blocks": 5, "engine.kv_shared": 2, "engine.kv_kept": 0}
    second = {"engine.kv_blocks": 1, "engine.kv_shared": 0, "engine.kv_kept": 7}
    found = run_of(
        segment("warmup", gauges={"host.rss": 1, "engine.kv_blocks": 99}),
        segment(gauges={"host.rss": 1, **first, "engine.kv_offloaded": 0}),
        segment("idle", gauges={"host.rss": 1, **second, "engine.kv_offloaded": 3}),
    ).kv
    assert found is not None
    assert (found.held_bytes, found.shared_bytes, found.kept_bytes) == (5, 2, 7)
    assert found.offloaded_bytes == 3


def test_an_engine_that_neither_shares_nor_keeps_says_so_by_none_and_not_by_zero() -> None:
    found = run_of(segment()).kv
    assert found is not None
    assert (found.held_bytes, found.shared_bytes, found.kept_bytes) == (MIB, None, None)
    assert run_of(segment(gauges={"host.rss": 1})).kv is None
    assert summarise(recording(segments=())).admission is None


def test_streamed_weights_cost_what_steps_waited_for_them() -> None:
    streamed = {"host.rss": 1, "engine.weights_streamed": 100}
    found = run_of(
        segment(end_s=1.0, gauges={**streamed, "engine.weights_stream_us": 250_000}),
        segment(start_s=1.0, end_s=2.0, gauges={**streamed, "engine.weights_stream_us": 750_000}),
        segment("idle", start_s=2.0, end_s=9.0, gauges={**streamed, "engine.weights_streamed": 0}),
    ).streaming
    assert found is not None
    assert (found.steps, found.bytes_per_step) == (2, 100)
    assert (found.s_per_step, found.ratio) == (pytest.approx(0.5), pytest.approx(0.5))
    assert run_of(segment()).streaming is None
