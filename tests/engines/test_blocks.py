"""The books of the KV pool. What blocks hold is checked in test_scheduler_policies, against memory that
knows its tokens; here are the books alone."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.engines.blocks import BlockBook, NoBlocksError, Sharing, chain
from memplan.engines.sequence import Move, Sequence

WIDTH = 4
tokens_of_a_block = st.lists(st.integers(0, 60_000), min_size=WIDTH, max_size=WIDTH)


def book(blocks: int = 8, sharing: Sharing = "kept", slots: int = 0) -> BlockBook:
    return BlockBook(blocks=blocks, block_tokens=WIDTH, sharing=sharing, slots=slots)


def sequence(*prompt: int, name: str = "a", adapter: str = "") -> Sequence:
    return Sequence(request_id=name, prompt=list(prompt), output_tokens=4, adapter=adapter)


def compute(one: BlockBook, who: Sequence) -> Sequence:
    """Adopts what is there, takes the rest and computes the whole prompt."""
    one.adopt(who)
    who.blocks += one.take(one.blocks_of(len(who.prompt)) - len(who.blocks))
    who.computed = len(who.prompt)
    one.publish(who)
    return who


@given(st.lists(tokens_of_a_block, min_size=1, max_size=4))
def test_the_same_tokens_have_the_same_key(blocks: list[list[int]]) -> None:
    keys = []
    for _ in range(2):
        key = b""
        for tokens in blocks:
            key = chain(key, array("i", tokens))
        keys.append(key)
    assert keys[0] == keys[1]


@given(
    st.lists(tokens_of_a_block, min_size=1, max_size=3),
    st.integers(0, 11),
    st.integers(1, 5),
)
def test_a_token_that_differs_changes_the_key_of_its_block_and_of_all_after(
    blocks: list[list[int]], place: int, more: int
) -> None:
    place %= len(blocks) * WIDTH
    changed = [list(tokens) for tokens in blocks]
    changed[place // WIDTH][place % WIDTH] += more
    key, other = b"", b""
    for index, (ours, theirs) in enumerate(zip(blocks, changed, strict=True)):
        key, other = chain(key, array("i", ours)), chain(other, array("i", theirs))
        assert (key == other) == (index < place // WIDTH)


@given(st.integers(0, 8), st.lists(st.integers(0, 5), max_size=6))
def test_blocks_are_conserved(limit: int, counts: list[int]) -> None:
    one = book(sharing="off")
    one.limit_to(limit)
    taken: list[list[int]] = []
    for count in counts:
        if count > one.room:
            with pytest.raises(NoBlocksError):
                one.take(count)
            continue
        taken.append(one.take(count))
        assert one.held == sum(map(len, taken)) <= limit
    blocks = [block for part in taken for block in part]
    assert len(set(blocks)) == len(blocks)
    for part in taken:
        one.drop(part)
    assert (one.held, one.kept, one.room) == (0, 0, limit)
    assert set(one.take_freed()) == set(blocks)
    assert one.take_freed() == ()


def test_a_second_one_holds_the_blocks_of_the_first_and_copies_what_goes_on_alike() -> None:
    one = book()
    first = compute(one, sequence(*range(10)))
    second = sequence(*range(6), 77, 78, 79, name="b")
    one.adopt(second)
    assert second.blocks[0] == first.blocks[0]
    assert second.computed == second.shared_tokens == 6
    assert one.take_moves() == (Move("copy", first.blocks[1], second.blocks[1]),)
    assert (one.held, one.shared) == (4, 1)
    assert one.shared_away(first) == one.shared_away(second) == 0.5


def test_the_last_token_is_never_shared_because_its_logits_are_needed() -> None:
    one = book()
    compute(one, sequence(*range(8)))
    second = sequence(*range(8), name="b")
    assert one.held_already(second) == 1
    one.adopt(second)
    assert second.computed == 7
    assert one.shared == 1


def test_what_is_held_already_is_what_is_adopted_without_taking_a_block() -> None:
    one = book()
    compute(one, sequence(*range(9)))
    second = sequence(*range(12), name="b")
    already, room = one.held_already(second), one.room
    one.adopt(second)
    assert already == 2
    assert room - one.room == len(second.blocks) - already


def test_who_runs_with_another_adapter_shares_nothing() -> None:
    one = book()
    compute(one, sequence(*range(9)))
    other = sequence(*range(9), name="b", adapter="tuned")
    one.adopt(other)
    assert (other.blocks, other.computed, one.held_already(other)) == ([], 0, 0)


@pytest.mark.parametrize(("sharing", "kept"), [("running", 0), ("kept", 2)])
def test_full_blocks_stay_after_their_last_holder_only_when_kept(
    sharing: Sharing, kept: int
) -> None:
    one = book(sharing=sharing)
    one.give_up(compute(one, sequence(*range(10))))
    assert (one.held, one.kept, len(one.take_freed())) == (0, kept, 3 - kept)
    second = sequence(*range(10), name="b")
    one.adopt(second)
    assert len(second.blocks) == kept


def test_off_shares_nothing() -> None:
    one = book(sharing="off")
    compute(one, sequence(*range(9)))
    second = sequence(*range(9), name="b")
    one.adopt(second)
    assert (second.blocks, one.kept, one.is_plain) == ([], 0, True)


def test_the_tail_of_what_is_kept_is_evicted_before_its_head() -> None:
    one = book(blocks=4)
    one.give_up(compute(one, sequence(*range(16))))
    one.take(2)
    second = sequence(*range(16), name="b")
    assert one.kept == 2
    one.adopt(second)
    assert second.computed == 8


def test_kept_blocks_count_within_the_limit_and_make_way() -> None:
    one = book()
    one.give_up(compute(one, sequence(*range(16))))
    one.limit_to(5)
    assert (one.kept, one.room) == (4, 5)
    one.take(3)
    assert (one.held, one.kept) == (3, 2)
    one.limit_to(4)
    assert (one.held, one.kept) == (3, 1)
    one.limit_to(2)
    assert (one.held, one.kept, one.room) == (3, 0, -1)


def test_beyond_the_limit_there_is_what_the_pool_has() -> None:
    one = book(sharing="off")
    one.limit_to(1)
    with pytest.raises(NoBlocksError):
        one.take(2)
    assert len(one.take(8, beyond_limit=True)) == 8
    with pytest.raises(NoBlocksError):
        one.take(1, beyond_limit=True)


def test_a_block_is_given_back_after_the_moves_that_read_or_write_it() -> None:
    one = book(slots=4)
    one.give_up(compute(one, sequence(*range(8))))
    assert one.evict_kept() == 2
    assert one.take_freed() == ()
    out = one.take_moves()
    assert [move.kind for move in out] == ["out", "out"]
    assert set(one.take_freed()) == {move.source for move in out}
    back = sequence(*range(9), name="b")
    one.adopt(back)
    pulled = list(back.blocks)
    one.give_up(back, forget=True)
    assert one.take_freed() == ()
    assert [move.target for move in one.take_moves()] == pulled
    assert set(one.take_freed()) == set(pulled)


def test_what_was_evicted_is_pulled_back_from_the_tier() -> None:
    one = book(slots=4)
    one.give_up(compute(one, sequence(*range(8))))
    one.evict_kept()
    out = one.take_moves()
    assert one.offloaded == 2
    second = sequence(*range(9), name="b")
    one.adopt(second)
    slots = {move.source: move.target for move in out}
    back = one.take_moves()
    assert [slots[block] for block in sorted(slots)] == [move.source for move in back]
    assert [move.target for move in back] == second.blocks
    assert (second.computed, second.pulled_blocks, one.offloaded) == (8, 2, 0)


def test_in_a_full_tier_what_was_unused_the_longest_makes_way() -> None:
    one = book(slots=1)
    for start in (0, 100):
        one.give_up(compute(one, sequence(*range(start, start + 4), name=str(start))))
    one.evict_kept()
    assert one.offloaded == 1
    newest, oldest = sequence(*range(100, 105)), sequence(*range(5))
    one.adopt(newest)
    one.adopt(oldest)
    assert (newest.computed, oldest.computed) == (4, 0)


def test_a_sequence_that_is_swapped_out_and_in_has_all_its_blocks_and_no_slot() -> None:
    one = book(sharing="off", slots=3)
    who = compute(one, sequence(*range(10)))
    assert one.swap_out(who)
    assert (who.blocks, len(who.slots), one.held, one.offloaded) == ([], 3, 0, 3)
    other = compute(one, sequence(1, 2, name="b"))
    assert not one.swap_out(other) and other.blocks
    one.swap_in(who)
    assert (len(who.blocks), who.slots, one.offloaded, who.pulled_blocks) == (3, [], 0, 3)


def test_gauges_name_what_a_plain_pool_has_and_a_shared_one_too() -> None:
    plain = book(sharing="off")
    plain.take(2)
    assert plain.gauges(10) == {"engine.kv_blocks": 20}
    one = book(slots=2)
    one.give_up(compute(one, sequence(*range(8))))
    one.evict_kept(1)
    assert one.gauges(10) == {
        "engine.kv_blocks": 0,
        "engine.kv_leaving": 10,
        "engine.kv_shared": 0,
        "engine.kv_kept": 10,
        "engine.kv_offloaded": 10,
    }
    assert one.resident == 2
