"""What requests waited for, in words: only where there is something to say."""

from dataclasses import replace
from typing import Any

import pytest
from example_run import replay_recording, replay_summary

from memplan.records import Recording
from memplan.report.admission_section import admission_section
from memplan.report.charts import figure_of
from memplan.report.json_document import replay_document
from memplan.report.pieces import Cell, Facts, Section, Table
from memplan.report.series import KvTimeline
from memplan.stats.summarise import summarise
from memplan.stats.summary import KvMost, RunAdmission, RunSummary, Streaming
from memplan.units import MIB

PLAIN = replay_recording()
WITHOUT_REFUSALS = replace(
    PLAIN,
    requests=tuple(
        r for r in PLAIN.requests if PLAIN.outcomes[r.request_id].outcome == "completed"
    ),
    outcomes={i: one for i, one in PLAIN.outcomes.items() if one.outcome == "completed"},
)


def waiting(**changes: Any) -> Recording:
    """The nth of all requests waited n seconds for KV blocks."""
    outcomes = {
        one: replace(record, waited_s={"kv_pool": float(n), "step": 0.1}, **changes)
        for n, (one, record) in enumerate(WITHOUT_REFUSALS.outcomes.items(), 1)
    }
    return replace(WITHOUT_REFUSALS, outcomes=outcomes)


def sharing(offloaded_bytes: int = 0) -> Recording:
    """Every step: 6 MiB held, 2 of them by several, and 4 MiB kept."""
    blocks = {"engine.kv_blocks": 6 * MIB, "engine.kv_shared": 2 * MIB, "engine.kv_kept": 4 * MIB}
    return replace(
        WITHOUT_REFUSALS,
        segments=tuple(
            replace(s, gauges={**s.gauges, **blocks, "engine.kv_offloaded": offloaded_bytes})
            if s.kind == "step"
            else s
            for s in PLAIN.segments
        ),
    )


def section(run: Recording, summary: RunSummary | None = None) -> Section:
    return admission_section(summary or summarise(run), run, "run1-")


def table(found: Section, id: str) -> Table:
    return next(one for one in found.blocks if isinstance(one, Table) and one.id == id)


def texts(row: tuple[Cell, ...]) -> list[str]:
    return [cell.text for cell in row]


def test_a_run_in_which_nothing_was_in_the_way_has_no_such_section() -> None:
    assert section(WITHOUT_REFUSALS).blocks == ()
    steps = waiting()
    only_steps = {i: replace(one, waited_s={"step": 0.1}) for i, one in steps.outcomes.items()}
    assert section(replace(steps, outcomes=only_steps)).blocks == ()


def test_a_summary_made_without_it_has_no_section_and_null_in_json() -> None:
    summary = replay_summary(PLAIN)
    assert section(PLAIN, summary).blocks == ()
    document = replay_document(summary)
    assert document["admission"] is None
    assert document["classes"][0]["admission"] is None


def test_each_class_says_what_it_waited_for_the_longest_first() -> None:
    found = table(section(waiting()), "run1-waits")
    names = [texts(row)[:2] for row in found.rows]
    assert names[:2] == [["short", "KV blocks"], ["", "the step that ran"]]
    assert texts(found.rows[0])[2] == "22 (100 %)"
    assert texts(found.rows[1])[3:] == ["100 ms", "100 ms", "100 ms", "2.20 s"]


def test_what_too_few_requests_waited_for_has_no_p95() -> None:
    found = table(section(waiting()), "run1-waits")
    long = next(row for row in found.rows if row[0].text == "long")
    assert (long[4].text, long[4].detail) == ("withheld", "6 waited, needs 20")


def test_who_was_turned_away_and_who_made_way_is_counted() -> None:
    changed = section(waiting(preemptions=2, shared_tokens=10, pulled_back_bytes=MIB))
    row = table(changed, "run1-changes").rows[0]
    assert texts(row) == ["short", "–", "–", "22", "220", "22.0 MiB"]
    assert row[3].detail == "44 times"
    assert row[5].detail == "for 22 requests, 0.0 ms"


def test_blocks_are_drawn_by_whose_they_are() -> None:
    found = section(sharing())
    (chart,) = (one for one in found.blocks if isinstance(one, KvTimeline))
    assert {name: max(values) for name, values in chart.layers} == {
        "of one request": 4 * MIB,
        "of several requests": 2 * MIB,
        "kept": 4 * MIB,
    }
    assert len(figure_of(chart)["data"]) == 3
    with_tier = section(sharing(offloaded_bytes=9 * MIB)).blocks[-1]
    assert isinstance(with_tier, KvTimeline)
    drawn = figure_of(with_tier)["data"][-1]
    assert (drawn["name"], max(drawn["y"])) == ("in the offload tier", pytest.approx(9.0))


def test_the_most_of_each_and_what_streaming_cost_are_facts() -> None:
    summary = replace(
        summarise(WITHOUT_REFUSALS),
        admission=RunAdmission(
            kv=KvMost(held_bytes=5 * MIB, shared_bytes=MIB, kept_bytes=2 * MIB, offloaded_bytes=0),
            streaming=Streaming(steps=7, bytes_per_step=176.0 * MIB, s_per_step=0.11, ratio=0.8),
            degraded=None,
        ),
    )
    (facts,) = (one for one in section(PLAIN, summary).blocks if isinstance(one, Facts))
    told = {fact.name: fact.text for fact in facts.facts}
    assert (
        "5.00 MiB held by requests, 1.00 MiB of them by several" in told["most KV blocks at once"]
    )
    assert told["weights streamed"].startswith("176.0 MiB a step in 7 steps, which waited 110 ms")


def test_the_json_document_holds_every_reason() -> None:
    document = replay_document(summarise(waiting()))
    short = document["classes"][0]["admission"]
    assert [one["reason"] for one in short["waits"]] == ["kv_pool", "step"]
    assert short["waits"][0]["waited_s"]["n"] == 22
    assert document["admission"]["degraded"] is None
