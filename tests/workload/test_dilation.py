"""The dilation at which an engine keeps the pace, against queues worked out by hand."""

import pytest

from memplan.life import Life
from memplan.records import Segment
from memplan.workload.dilation import (
    TARGET_RATIO,
    Speed,
    fitted_dilation,
    foretold,
    foretold_distance,
    speed_of,
)


def life(start_s: float) -> Life:
    """1,000 prompt tokens in 0.1 s, then 10 in 0.9 s."""
    return Life(
        start_s=start_s, prefill_s=0.1, end_s=start_s + 1.0, input_tokens=1000, output_tokens=10
    )


def test_two_that_come_at_once_are_read_one_after_the_other() -> None:
    # A tick is 0.09 s, of which a decode step of two rows takes a third: 1,000 tokens take 0.75 s.
    speed = Speed(prefill_tokens_per_s=2000.0, decode_step_s=0.02, decode_row_s=0.01)
    found = foretold([life(0.0), life(0.0)], speed, dilation=1.0, length_scale=1.0)
    assert found is not None
    running, holding = found
    # Answers take 0.3 s: the first ends at 0.75 + 0.3 and the second at 1.5 + 0.3, where 1.0 was due.
    assert [one.end_s for one in running] == pytest.approx([1.05, 1.8])
    assert [one.start_s for one in running] == [0.0, 0.0]
    # A prompt is held from the middle of its own reading on.
    assert [one.start_s for one in holding] == pytest.approx([0.375, 1.125])


def test_an_engine_in_time_is_apart_by_what_it_holds_later() -> None:
    speed = Speed(prefill_tokens_per_s=1e4, decode_step_s=1e-6)
    # Alone, its 1,000 tokens take 0.1 s of its 1 s: for 0.05 s they are missing, 0.5 of 10 are of 10.
    found = foretold_distance([life(0.0)], speed, dilation=1.0, length_scale=1.0)
    assert found == pytest.approx(0.05, rel=0.05)
    slower = foretold_distance([life(0.0)], speed, dilation=4.0, length_scale=1.0)
    assert slower == pytest.approx(found / 4, rel=0.1)


def test_an_engine_that_cannot_decode_at_each_tick_never_keeps_up() -> None:
    speed = Speed(prefill_tokens_per_s=1e9, decode_step_s=0.08)
    found = foretold_distance([life(0.0)], speed, dilation=1.0, length_scale=1.0)
    assert found == float("inf")


@pytest.mark.parametrize("length_scale", [1.0, 0.25])
def test_the_smallest_dilation_is_found_at_which_they_stay_long_enough(length_scale: float) -> None:
    speed = Speed(prefill_tokens_per_s=500.0, decode_step_s=0.05)
    lives = [life(at * 0.4) for at in range(50)]

    def apart(dilation: float) -> float:
        return foretold_distance(lives, speed, dilation=dilation, length_scale=length_scale)

    dilation = fitted_dilation(lives, speed, length_scale=length_scale)
    assert dilation is not None
    assert apart(dilation * 1.01) <= TARGET_RATIO < apart(dilation / 1.12)


def test_a_reference_without_time_between_tokens_can_never_be_kept() -> None:
    at_once = Life(start_s=0.0, prefill_s=1.0, end_s=1.0, input_tokens=10, output_tokens=10)
    speed = Speed(prefill_tokens_per_s=1e9, decode_step_s=0.001)
    assert fitted_dilation([at_once], speed, length_scale=1.0) is None


def step(start_s: float, end_s: float, prefill: int, decode: int) -> Segment:
    return Segment(
        engine_start=0,
        kind="step",
        start_s=start_s,
        end_s=end_s,
        peak={},
        gauges={},
        prefill_tokens=prefill,
        decode_tokens=decode,
    )


def test_speed_is_that_of_steps_of_one_kind() -> None:
    mixed = step(3.0, 9.0, 100, 1)
    reading = [step(0.0, 2.0, 400, 0), step(2.0, 3.0, 200, 0), mixed]
    found = speed_of([*reading, step(9.0, 9.1, 0, 1), step(10.0, 10.4, 0, 16)])
    assert found is not None
    assert found.prefill_tokens_per_s == pytest.approx(200.0)
    assert (found.step_s(1), found.step_s(16)) == pytest.approx((0.1, 0.4))
    alone = speed_of([*reading, step(9.0, 9.1, 0, 4)])
    assert alone is not None
    assert alone.decode_row_s == 0
    assert speed_of([mixed]) is None
