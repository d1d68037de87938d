"""What the trace's own fleet took, as declared or observed, and the windows that say most."""

import json
import random
from pathlib import Path

import pytest

from memplan.errors import InputError
from memplan.in_flight import states_of
from memplan.life import Life
from memplan.specs import BUILTIN_CLASSES
from memplan.workload.dilation import Speed
from memplan.workload.reference import lives_of, parse_reference, service_of
from memplan.workload.reference_waves import Against, judged_requests
from memplan.workload.trace import read_trace
from memplan.workload.trace_row import TraceRow
from memplan.workload.windows import Feed, FeedOf, windows_of


def row(**told: object) -> TraceRow:
    return TraceRow(
        **{"line": 1, "timestamp_s": 2.0, "input_tokens": 700, "output_tokens": 10, **told}
    )  # type: ignore[arg-type]


def test_a_declared_reference_serves_from_the_arrival_on() -> None:
    (life,) = lives_of([row()], parse_reference("prefill=7000, tpot=20ms"))
    assert (life.start_s, life.prefill_s, life.end_s) == pytest.approx((2.0, 0.1, 2.3))


@pytest.mark.parametrize(
    ("cancel_after_s", "prefill_s", "end_s"),
    [(None, 1.0, 3.0), (60.0, 1.0, 3.0), (1.5, 1.0, 1.5), (0.4, 0.4, 0.4)],
)
def test_a_user_who_gives_up_ends_a_life(
    cancel_after_s: float | None, prefill_s: float, end_s: float
) -> None:
    asked = row(
        timestamp_s=10.0, input_tokens=7000, output_tokens=100, cancel_after_s=cancel_after_s
    )
    (life,) = lives_of([asked], parse_reference("prefill=7000,tpot=20ms"))
    assert (life.start_s, life.prefill_s) == (10.0, pytest.approx(prefill_s))
    assert life.end_s == pytest.approx(10.0 + end_s)


@pytest.mark.parametrize(
    ("told", "text", "expected"),
    [
        ({"observed_e2e_s": 4.0, "observed_ttft_s": 1.0}, "observed", (1.0, 4.0)),
        ({"observed_e2e_s": 4.0}, "observed", (0.0, 4.0)),
        # split as the declared rates split it: 0.1 of 0.3 s
        ({"observed_e2e_s": 6.0}, "observed,prefill=7000,tpot=20ms", (2.0, 6.0)),
        ({"observed_e2e_s": 6.0}, "prefill=7000,tpot=20ms", (0.1, 0.3)),
        ({}, "observed,prefill=7000,tpot=20ms", (0.1, 0.3)),
    ],
)
def test_a_rows_own_times_stand_before_declared_ones(
    told: dict[str, float], text: str, expected: tuple[float, float]
) -> None:
    assert service_of(row(**told), parse_reference(text)) == pytest.approx(expected)


def test_rows_without_a_time_are_counted_and_refused() -> None:
    with pytest.raises(InputError, match="1 of 2 rows say nothing"):
        lives_of([row(observed_e2e_s=1.0), row()], parse_reference("observed"))


@pytest.mark.parametrize(
    "text",
    ["", "prefill=7000", "tpot=20ms", "prefill=fast,tpot=1ms", "prefill=0,tpot=1ms", "speed=3"],
)
def test_a_reference_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--reference") as told:
        parse_reference(text)
    assert "prefill=14000" in told.value.hint


def burst(at_s: float, requests: int) -> list[Life]:
    return [
        Life(start_s=at_s, prefill_s=0.0, end_s=at_s + 5, input_tokens=100, output_tokens=1)
        for _ in range(requests)
    ]


def slowly(dilation: float, lead_s: float = 0.0) -> FeedOf:
    return lambda _: Feed(dilation=dilation, lead_s=lead_s)


def test_windows_hold_the_extremes_and_what_leads_to_them_within_the_budget() -> None:
    lives = [life for at in range(0, 1000, 10) for life in burst(float(at), 1)] + burst(502.0, 30)
    chosen = windows_of(lives, 1000.0, 600.0, slowly(3.0, lead_s=10.0))
    assert 500 < sum(feed.takes_s(one) for one, feed in chosen) <= 600
    windows = [one for one, _ in chosen]
    assert [one.start_s for one in windows] == sorted(one.start_s for one in windows)
    (most,) = [one for one in windows if one.text == "around the most of KV"]
    assert most.start_s <= 504.5 <= most.end_s


def test_a_trace_that_fits_is_one_window() -> None:
    ((one, feed),) = windows_of(burst(0.0, 2), 50.0, 100.0, slowly(2.0))
    assert feed.dilation == 2.0
    assert (one.start_s, one.end_s) == (0.0, 50.0)


def test_too_little_time_is_said() -> None:
    with pytest.raises(InputError, match="too short"):
        windows_of(burst(0.0, 2), 1000.0, 2.0, slowly(1.0))


def test_a_window_that_begins_with_nothing_waits_for_its_first_request(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    times_s = (0, 40, 100, 104, 200, 260)
    path.write_text(
        "".join(
            json.dumps({"timestamp": at * 1000, "input_length": 90, "output_length": 50,
                        "hash_ids": []}) + "\n"
            for at in times_s
        )
    )  # fmt: skip
    trace = read_trace(path)
    reference = parse_reference("prefill=9000,tpot=20ms")
    against = Against(reference=reference, is_paced=True, within_s=100.0)
    requests, windows = judged_requests(
        trace, BUILTIN_CLASSES, against, length_scale=1.0, dilation=1.0
    )
    for window in windows:
        assert window.start_s == 0
        sent = [one.arrival_s for one in requests if one.wave == window.wave]
        assert sent == [
            at - window.trace_start_s
            for at in times_s
            if window.trace_start_s <= at <= window.trace_end_s
        ]
    assert max(one.arrival_s for one in requests) > 1


@pytest.mark.parametrize("speed", [None, Speed(prefill_tokens_per_s=4000.0, decode_step_s=0.001)])
def test_what_was_in_service_when_a_window_begins_is_there(
    tmp_path: Path, speed: Speed | None
) -> None:
    """What is sent for a window holds in it what the whole trace holds there."""
    draw = random.Random(3)
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps({"timestamp": at * 250, "input_length": draw.randint(50, 900),
                        "output_length": draw.randint(20, 400), "hash_ids": []}) + "\n"
            for at in range(4000)
        )
    )  # fmt: skip
    trace = read_trace(path)
    reference = parse_reference("prefill=9000,tpot=20ms")
    against = Against(reference=reference, is_paced=True, within_s=300.0, speed=speed)
    requests, windows = judged_requests(
        trace, BUILTIN_CLASSES, against, length_scale=1.0, dilation=2.0
    )
    assert len(windows) == 5
    assert len({one.request_id for one in requests}) == len(requests)
    whole = lives_of(trace.rows, reference)
    for window in windows:
        sent = [one for one in requests if one.wave == window.wave]
        assert window.start_s >= 0
        lives = [
            Life(
                start_s=one.arrival_s,
                prefill_s=one.service_prefill_s or 0.0,
                end_s=one.arrival_s + (one.service_e2e_s or 0.0),
                input_tokens=one.input_tokens,
                output_tokens=one.output_tokens,
            )
            for one in sent
        ]
        found = states_of(lives, window.start_s, window.end_s, 200)
        wanted = states_of(whole, window.trace_start_s, window.trace_end_s, 200)
        assert found.running.tolist() == wanted.running.tolist()
        assert found.kv_tokens == pytest.approx(wanted.kv_tokens, rel=0.01, abs=len(sent))
        assert max(one.end_s for one in lives) <= window.end_s + 1e-6
        # Loaded ones are read before it begins, and are not sent from their arrival on.
        read_s = sum(one.input_tokens for one in sent if one.arrival_s == 0) / 4000
        assert speed is None or window.start_s >= min(1.0, read_s)
