"""One lane: its order, and the time that each of its requests waited for what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.engines.queues import STEP, Lane, LaneLimits
from memplan.engines.sequence import Sequence


def sequence(name: str, prompt_tokens: int = 1) -> Sequence:
    return Sequence(request_id=name, prompt=[0] * prompt_tokens, output_tokens=1)


@pytest.mark.parametrize(
    ("up_to", "tokens", "takes"), [(4, 4, True), (4, 5, False), (None, 9, True)]
)
def test_a_lane_takes_prompts_up_to_its_length(up_to: int | None, tokens: int, takes: bool) -> None:
    assert Lane(LaneLimits(up_to_tokens=up_to)).takes(sequence("a", tokens)) is takes


@pytest.mark.parametrize(
    ("most", "tokens", "fits"), [(8, 8, True), (8, 9, False), (None, 99, True)]
)
def test_kv_fits_up_to_the_lanes_limit(most: int | None, tokens: int, fits: bool) -> None:
    assert LaneLimits(max_kv_tokens=most).fits(tokens) is fits


def test_first_come_first_served_but_for_who_had_to_make_way() -> None:
    lane = Lane(LaneLimits())
    for name in "ab":
        lane.join(sequence(name), 0.0)
    lane.join(sequence("preempted"), 0.0, in_front=True)
    assert [lane.leave(1.0).request_id for _ in range(3)] == ["preempted", "a", "b"]


def test_what_held_the_first_one_up_held_up_those_behind_it() -> None:
    lane = Lane(LaneLimits())
    lane.join(first := sequence("a"), 0.0)
    lane.held_up("requests", 1.0)
    lane.join(second := sequence("b"), 3.0)
    lane.held_up("kv_pool", 4.0)
    assert lane.leave(6.0) is first
    lane.held_up("lane", 6.0)
    assert lane.leave(7.0) is second
    assert first.waited_s == {STEP: 1.0, "requests": 3.0, "kv_pool": 2.0}
    assert second.waited_s == {"requests": 1.0, "kv_pool": 2.0, "lane": 1.0}


def test_an_empty_lane_forgets_what_the_last_one_waited_for() -> None:
    lane = Lane(LaneLimits())
    lane.join(sequence("a"), 0.0)
    lane.held_up("kv_pool", 1.0)
    lane.leave(2.0)
    lane.join(late := sequence("b"), 10.0)
    lane.leave(11.0)
    assert late.waited_s == {STEP: 1.0}


def test_who_makes_way_waits_a_second_time_and_both_count() -> None:
    lane = Lane(LaneLimits())
    lane.join(one := sequence("a"), 0.0)
    lane.leave(1.0)
    lane.join(one, 5.0, in_front=True)
    lane.held_up("kv_pool", 5.0)
    lane.leave(8.0)
    assert one.waited_s == {STEP: 1.0, "kv_pool": 3.0}


@given(
    st.lists(
        st.tuples(st.sampled_from(("join", "leave", "kv_pool", "lane")), st.integers(0, 9)),
        max_size=40,
    )
)
def test_the_reasons_add_up_to_the_time_in_the_queue(happenings: list[tuple[str, int]]) -> None:
    lane, now_s = Lane(LaneLimits()), 0.0
    waited: dict[str, float] = {}
    for number, (name, passed_s) in enumerate(happenings):
        now_s += passed_s
        match name:
            case "join":
                lane.join(sequence(str(number)), now_s)
            case "leave" if lane.waiting:
                one = lane.leave(now_s)
                waited[one.request_id] = now_s - one.queued_s
                assert sum(one.waited_s.values()) == waited[one.request_id]
            case reason if reason != "leave":
                lane.held_up(reason, now_s)
    assert len(waited) + len(lane.waiting) == sum(name == "join" for name, _ in happenings)
