"""Which steps an engine took when memory was short: read from the level in its segments."""

from dataclasses import replace
from typing import Any

from builders import completed, header, recording, request, segment

from memplan.records import Recording, RequestRecord, Segment
from memplan.stats.degradations import Degraded, degraded_of
from memplan.stats.findings import findings_of

SETTINGS = {
    "degrade": ["shrink_batch", "preempt", "reject"],
    "memory_limit_bytes": 1000,
    "degrade_at": 0.9,
}


def levels(*found: int, start: int = 0, at_s: float = 0.0) -> tuple[Segment, ...]:
    """One second each; what was charged is 100 times the level."""
    return tuple(
        segment(
            engine_start=start,
            start_s=at_s + n,
            end_s=at_s + n + 1,
            gauges={"host.rss": 1, "engine.degradation": level, "engine.working_set": 100 * level},
        )
        for n, level in enumerate(found)
    )


def run_with(*segments: Segment, **changes: Any) -> Recording:
    return recording(header=header(deployment={"settings": SETTINGS}), segments=segments, **changes)


def degraded(run: Recording) -> Degraded:
    found = degraded_of(run, run.segments)
    assert found is not None
    return found


def test_each_step_counts_how_often_it_was_taken_and_how_long_it_lasted() -> None:
    found = degraded(run_with(*levels(0, 1, 2, 2, 1, 0, 2)))
    assert [(one.name, one.times, one.lasted_s) for one in found.steps] == [
        ("shrink_batch", 2, 5.0),
        ("preempt", 2, 3.0),
        ("reject", 0, 0.0),
    ]
    assert (found.lasted_s, found.served_s) == (5.0, 7.0)
    assert (found.at_bytes, found.most_bytes) == (900, 200)


def test_a_new_engine_begins_with_nothing_taken() -> None:
    found = degraded(run_with(*levels(1), *levels(1, start=1, at_s=5.0)))
    assert found.steps[0].times == 2


def test_who_was_refused_waited_and_made_way_because_of_it_is_told_from_who_did_otherwise() -> None:
    asked = tuple(request(name) for name in ("away", "back", "late", "other", "cut"))
    pressed = {"memory_pressure": 0.5}
    outcomes = {
        "away": RequestRecord(request_id="away", outcome="rejected", reason="memory_pressure"),
        "back": completed(asked[1], preemptions=1, waited_s=pressed),
        "late": completed(asked[2], waited_s=pressed),
        "other": completed(asked[3], preemptions=1, waited_s={"kv_pool": 1.0}),
        "cut": completed(asked[4], is_shortened=True, sent_s=1.5),
    }
    run = run_with(*levels(0, 2, 0), requests=asked, outcomes=outcomes)
    found = degraded(run)
    assert (found.rejected, found.waited, found.preempted, found.shortened) == (1, 2, 1, 1)
    before = {**outcomes, "cut": completed(asked[4], is_shortened=True, sent_s=0.5)}
    assert degraded(replace(run, outcomes=before)).shortened == 0


def test_an_engine_without_degradations_says_nothing() -> None:
    run = recording()
    assert degraded_of(run, run.segments) is None


def test_steps_that_the_header_does_not_name_have_their_number() -> None:
    run = replace(run_with(*levels(0, 2)), header=header())
    found = degraded(run)
    assert [one.name for one in found.steps] == ["step 1", "step 2"]
    assert found.at_bytes is None


def told(*reached: int) -> list[str]:
    found = findings_of(run_with(*levels(*reached)), (), ())
    return [one.text for one in found if one.code == "engine_degraded"]


def test_nothing_is_told_until_something_was_given_up() -> None:
    assert told(0, 0) == []


def test_the_finding_names_the_steps_and_for_how_long_they_were_taken() -> None:
    (text,) = told(0, 1)
    assert "For 1.0 of 2.0 s" in text
    assert "threshold of 900 bytes; the most it saw were 100" in text
    assert "Steps taken: shrink_batch 1 × (1.0 s)." in text
