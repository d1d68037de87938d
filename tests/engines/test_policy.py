"""From settings to a scheduler: every key arrives."""

from typing import Any

import pytest

from memplan.engines.policy import open_scheduler, pool_blocks
from memplan.engines.scheduler import Scheduler
from memplan.engines.sequence import Sequence
from memplan.specs import Settings


def scheduler(
    *, class_bytes: dict[str, int] | None = None, slots: int = 0, **settings: Any
) -> Scheduler:
    plain = {"max_kv_tokens": 160, "max_requests": 4, "max_batch_tokens": 64}
    values = Settings.model_validate({**plain, **settings}).model_dump(mode="json")
    return open_scheduler(
        values, context_tokens=100, block_bytes=1000, class_bytes=class_bytes or {}, slots=slots
    )


def sequence(prompt: int, output: int = 1, **fields: Any) -> Sequence:
    return Sequence(request_id="a", prompt=[1] * prompt, output_tokens=output, **fields)


def reason_of(scheduler: Scheduler, sequence: Sequence) -> str | None:
    refusal = scheduler.submit(sequence)
    return refusal.reason if refusal else None


def test_without_settings_it_is_continuous_and_nothing_is_shared_or_moved() -> None:
    plain = scheduler()
    assert plain.book.is_plain
    assert plain.max_batch_tokens == 64
    assert plain.book.limit == pool_blocks(Settings(max_kv_tokens=160).model_dump()) == 10
    assert plain.submit(sequence(3)) is None
    assert len(plain.admit()) == 1


@pytest.mark.parametrize(
    ("kind", "wait", "expected_s"),
    [("static", None, 1.0), ("dynamic", None, 0.05), ("micro", None, 0.01), ("static", "3s", 3.0)],
)
def test_a_batch_waits_as_its_kind_does_unless_it_is_told(
    kind: str, wait: str | None, expected_s: float
) -> None:
    one = scheduler(batching=kind, **({"batch_wait": wait} if wait else {}))
    one.submit(sequence(3), 0.0)
    assert one.admit(0.0) == ()
    assert one.opens_in_s(0.0) == pytest.approx(expected_s)


def test_a_micro_batch_is_full_at_its_tokens_and_a_static_one_at_max_requests() -> None:
    micro = scheduler(batching="micro", batch_prompt_tokens=6)
    static = scheduler(batching="static")
    for count, one in ((2, micro), (4, static)):
        for _ in range(count - 1):
            one.submit(sequence(3))
        assert one.admit() == ()
        one.submit(sequence(3))
        assert len(one.admit()) == count


def test_a_class_budget_is_in_whole_blocks() -> None:
    one = scheduler(class_bytes={"small": 2999})
    assert reason_of(one, sequence(32, class_name="small")) is None
    assert reason_of(one, sequence(33, class_name="small")) == "exceeds_class_budget"
    assert reason_of(one, sequence(33, class_name="other")) is None


def test_a_class_budget_below_a_block_is_refused_with_both_sizes() -> None:
    with pytest.raises(RuntimeError, match=r"in_flight of small is 999 B, less than one block of"):
        scheduler(class_bytes={"small": 999})


def test_lanes_and_the_queue_are_those_of_the_settings() -> None:
    one = scheduler(
        lanes=[{"up_to_tokens": 4}, {"max_kv_tokens": 16}],
        queue_limit=1,
        overload="fall_back",
        fall_back_tokens=3,
        max_requests=1,
    )
    assert [lane.limits.up_to_tokens for lane in one.lanes] == [4, None]
    assert reason_of(one, sequence(17)) == "exceeds_lane"
    asked = [sequence(3, 9) for _ in range(3)]
    for each in asked:
        one.submit(each)
    assert [each.output_tokens for each in asked] == [9, 9, 3]


def test_reserve_preempt_and_sharing_are_those_of_the_settings() -> None:
    one = scheduler(
        kv_reserve="prompt", preempt="swap", offload="disk", prefix_sharing="kept", slots=4
    )
    only = sequence(16, 16)
    one.submit(only)
    one.admit()
    one.commit(one.next_rows(), [1])
    assert one.reserved_tokens(only, blocks=len(only.blocks), known_tokens=only.known_tokens) == 16
    one.preempt(only, 0.0)
    assert one.book.offloaded == len(only.slots) == 1


def test_a_prompt_goes_whole_where_it_is_not_to_be_cut() -> None:
    for chunk_prompts, count in ((True, 64), (False, 90)):
        one = scheduler(chunk_prompts=chunk_prompts)
        one.submit(sequence(90))
        one.admit()
        assert [row.count for row in one.next_rows()] == [count]
