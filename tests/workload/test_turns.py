"""Which request a turn follows, and when it is due."""

import pytest

from memplan.errors import InputError
from memplan.records import Request
from memplan.workload.due import Due
from memplan.workload.reference import parse_reference
from memplan.workload.trace_row import TraceRow
from memplan.workload.turns import in_turns


def row(at_s: float, session: str | None, took_s: float | None = 2.0) -> TraceRow:
    return TraceRow(
        line=1, timestamp_s=at_s, input_tokens=100, output_tokens=10, session_id=session,
        observed_e2e_s=took_s,
    )  # fmt: skip


def request(number: int, at_s: float) -> Request:
    return Request(
        request_id=f"r{number}", wave="trace", arrival_s=at_s, class_name="a", input_tokens=100,
        output_tokens=10,
    )  # fmt: skip


def turned(rows: list[TraceRow], reference: str = "", dilation: float = 1.0) -> list[Request]:
    requests = [request(at, one.timestamp_s * dilation) for at, one in enumerate(rows)]
    known = parse_reference(reference) if reference else None
    return list(in_turns(requests, rows, known, dilation=dilation))


def test_a_turn_follows_the_last_that_had_ended_and_its_time_to_think_is_dilated() -> None:
    rows = [
        row(0, "s"),
        row(0.5, "other"),
        row(1, "s", 6),
        row(4.5, "s"),
        row(9, "s"),
        row(9.5, None),
    ]
    found = turned(rows, dilation=3.0)
    # The second of the session came while the first was served; the third's context is the first's,
    # because the second ended after it came.
    assert [one.follows for one in found] == [None, None, None, "r0", "r2", None]
    assert [one.think_s for one in found] == [0, 0, 0, 7.5, 6.0, 0]


def test_what_the_trace_does_not_say_the_reference_does() -> None:
    rows = [row(0, "s", None), row(4, "s", None)]
    with pytest.raises(InputError, match="2 of 2 rows say nothing of when they ended"):
        turned(rows)
    found = turned(rows, "prefill=100,tpot=100ms")
    assert (found[1].follows, found[1].think_s) == ("r0", pytest.approx(2.0))


def test_a_trace_without_turns_is_refused() -> None:
    with pytest.raises(InputError, match="names no session"):
        turned([row(0, None), row(9, None)])


def test_followers_are_due_after_an_end_and_in_order_with_the_others() -> None:
    rows = [row(0, "s"), row(3, "s"), row(4, None), row(3, "s")]
    requests = turned(rows)
    due = Due(requests, began_s=100.0)
    assert due.times_s == [100.0, 104.0]
    assert due.pop()[0].request_id == "r0"
    due.ended("r0", 102.5)
    assert [(one.request_id, at_s) for one, at_s in (due.pop() for _ in range(3))] == [
        ("r1", 103.5), ("r3", 103.5), ("r2", 104.0),
    ]  # fmt: skip
    assert not due
    due.ended("r9", 1.0)  # nobody follows it
