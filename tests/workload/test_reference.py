"""What the trace's own fleet took, as declared or observed, and the windows that say most."""

import pytest

from memplan.errors import InputError
from memplan.in_flight import Life
from memplan.workload.reference import lives_of, parse_reference, service_of
from memplan.workload.trace_row import TraceRow
from memplan.workload.windows import windows_of


def row(**told: object) -> TraceRow:
    return TraceRow(
        **{"line": 1, "timestamp_s": 2.0, "input_tokens": 700, "output_tokens": 10, **told}
    )  # type: ignore[arg-type]


def test_a_declared_reference_serves_from_the_arrival_on() -> None:
    (life,) = lives_of([row()], parse_reference("prefill=7000, tpot=20ms"))
    assert (life.start_s, life.prefill_s, life.end_s) == pytest.approx((2.0, 0.1, 2.3))


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


def test_windows_hold_the_extremes_and_their_warm_ups_within_the_budget() -> None:
    lives = [life for at in range(0, 1000, 10) for life in burst(float(at), 1)] + burst(502.0, 30)
    chosen = [one for one, _ in windows_of(lives, 1000.0, 600.0, lambda _: 3.0)]
    assert sum(one.end_s - one.warm_up_s for one in chosen) <= 200
    assert [one.start_s for one in chosen] == sorted(one.start_s for one in chosen)
    (most,) = [one for one in chosen if one.text == "around the most of KV"]
    assert most.start_s <= 504.5 <= most.end_s
    for one in chosen:
        alive = [life.start_s for life in lives if life.start_s <= one.start_s < life.end_s]
        assert one.warm_up_s == min(alive, default=one.start_s)


def test_a_trace_that_fits_is_one_window() -> None:
    ((one, dilation),) = windows_of(burst(0.0, 2), 50.0, 100.0, lambda _: 2.0)
    assert dilation == 2.0
    assert (one.warm_up_s, one.start_s, one.end_s) == (0.0, 0.0, 50.0)


def test_too_little_time_is_said() -> None:
    with pytest.raises(InputError, match="too short"):
        windows_of(burst(0.0, 2), 1000.0, 2.0, lambda _: 1.0)
