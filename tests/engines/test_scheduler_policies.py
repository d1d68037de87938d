"""Laws that hold under every policy: whoever waits, shares, makes way or is moved, nothing is lost and
every answer is the one of running alone."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.fake_kv import VOCAB, FakeKv, answer
from memplan.engines.batching import Batching, Kind
from memplan.engines.queues import LaneLimits
from memplan.engines.scheduler import BUDGET, PRESSURE, Policy, Scheduler
from memplan.engines.sequence import Sequence

BLOCKS, WIDTH, CONTEXT, REQUESTS = 10, 3, 40, 4


@dataclass(slots=True)
class World:
    """A scheduler over memory that knows what is in it, driven as the stepper drives it."""

    policy: Policy
    pool_blocks: int = BLOCKS
    max_requests: int = REQUESTS
    max_batch_tokens: int = 7
    now_s: float = 0.0
    steps: int = 0
    asked: dict[str, tuple[list[int], int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    done: dict[str, Sequence] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    """Ended by a step that failed, or by their users."""
    scheduler: Scheduler = field(init=False)
    kv: FakeKv = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            pool_blocks=self.pool_blocks,
            block_tokens=WIDTH,
            context_tokens=CONTEXT,
            max_requests=self.max_requests,
            max_batch_tokens=self.max_batch_tokens,
            policy=self.policy,
        )
        self.kv = FakeKv(self.scheduler.book, blocks=self.pool_blocks, slots=self.policy.slots)

    def ask(self, prompt: list[int], output: int, *, priority: int = 0, kind: str = "") -> Sequence:
        name = str(len(self.asked))
        self.asked[name] = (prompt, output)
        made = Sequence(
            request_id=name,
            prompt=prompt,
            output_tokens=output,
            class_name=kind,
            priority=priority,
        )
        refusal = self.scheduler.submit(made, self.now_s)
        if refusal is not None:
            self.refused[refusal.request_id] = refusal.reason
        return made

    def settle(self) -> None:
        self.kv.move(self.scheduler.take_moves())
        self.kv.release(self.scheduler.book.take_freed())

    def step(self, *, fails: bool = False) -> list[tuple[str, int, int]]:
        """One round of the engine; the rows that ran."""
        self.settle()
        self.scheduler.admit(self.now_s)
        self.check()
        if not self.scheduler.running:
            self.now_s += max(0.01, self.scheduler.opens_in_s(self.now_s))
            return []
        rows = self.scheduler.next_rows(self.now_s)
        assert rows, "who runs moves on"
        assert all(row.sequence in self.scheduler.running for row in rows)
        self.check()
        self.settle()
        tokens = self.kv.run(rows)
        self.now_s += 0.01
        self.steps += 1
        if fails:
            victim = rows[0].sequence
            self.lost.append(victim.request_id)
            self.scheduler.remove(victim)
        else:
            self.scheduler.commit(rows, tokens)
            self.kv.check_names()
        ended, freed = self.scheduler.retire()
        self.kv.release(freed)
        self.done |= {one.request_id: one for one in ended}
        self.check()
        return [(row.sequence.request_id, row.start, row.count) for row in rows]

    def cancel(self, name: str) -> None:
        sequence = self.scheduler.find(name)
        if sequence is None:
            return
        self.lost.append(name)
        self.scheduler.remove(sequence)
        ended, freed = self.scheduler.retire()
        assert not ended
        self.kv.release(freed)

    def run(self) -> None:
        for _ in range(3000):
            if not self.scheduler.has_work:
                self.settle()
                return
            self.step()
        raise AssertionError("it never ends")

    def check(self) -> None:
        """The books balance."""
        book, scheduler = self.scheduler.book, self.scheduler
        holding = [*scheduler.running, *scheduler._ended]
        counts = [0] * self.pool_blocks
        for block in (block for one in holding for block in one.blocks):
            counts[block] += 1
        assert counts == book._holders
        held = {block for block, count in enumerate(counts) if count}
        assert sorted([*held, *book._kept, *book._free]) == list(range(self.pool_blocks))
        assert (book.held, book.shared) == (len(held), sum(count > 1 for count in counts))
        assert {book._block_of[key]: key for key in book._block_of} == book._key_of
        assert set(book._kept) <= set(book._key_of)
        waiting = [slot for one in scheduler.waiting for slot in one.slots]
        assert not any(one.slots for one in holding)
        in_tier = [*waiting, *book._slot_of.values(), *book._free_slots]
        assert sorted(in_tier) == list(range(self.policy.slots))
        assert book.kept + book.held <= max(book.limit, book.held)
        assert len(scheduler.running) <= self.max_requests


policies = st.builds(
    Policy,
    batching=st.builds(
        Batching,
        kind=st.sampled_from(("continuous", "static", "dynamic", "micro")),
        most=st.just(REQUESTS),
        wait_s=st.sampled_from((0.0, 0.05)),
        tokens=st.integers(1, 12),
    ),
    chunk_prompts=st.booleans(),
    reserve=st.sampled_from(("whole", "prompt")),
    preempt=st.sampled_from(("recompute", "swap")),
    sharing=st.sampled_from(("off", "running", "kept")),
    slots=st.sampled_from((0, 3, 30)),
    lanes=st.sampled_from(
        (
            (),
            (LaneLimits(up_to_tokens=6, max_requests=2), LaneLimits()),
            (LaneLimits(up_to_tokens=9, max_kv_tokens=18), LaneLimits(up_to_tokens=25)),
        )
    ),
    queue_limit=st.sampled_from((None, 2)),
    overload=st.sampled_from(("wait", "reject", "fall_back")),
    fall_back_tokens=st.just(2),
    class_blocks=st.sampled_from(({}, {"small": 4})),
)
heads = st.sampled_from(([], [1] * 7, [1] * 7 + [2] * 6, [3, 1, 4, 1]))
requests = st.tuples(
    st.builds(
        lambda head, rest: head + rest,
        heads,
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9),
    ),
    st.integers(1, 9),
    st.integers(0, 1),
    st.sampled_from(("small", "large")),
)
events = st.one_of(
    st.tuples(st.just("ask"), requests),
    st.tuples(st.just("step"), st.booleans()),
    st.tuples(st.just("fail"), st.none()),
    st.tuples(st.just("budget"), st.integers(0, BLOCKS)),
    st.tuples(st.just("pressure"), st.integers(0, BLOCKS)),
    st.tuples(st.just("relief"), st.none()),
    st.tuples(st.just("preempt"), st.none()),
    st.tuples(st.just("evict"), st.integers(0, BLOCKS)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
)


def happen(world: World, name: str, what: object) -> None:
    scheduler = world.scheduler
    match name, what:
        case "ask", (prompt, output, priority, kind):
            world.ask(prompt, output, priority=priority, kind=kind)
        case "step", _:
            world.step()
        case "fail", _:
            world.step(fails=True)
        case "budget", int(blocks):
            scheduler.limit_blocks(BUDGET, blocks, refuses=True)
        case "pressure", int(blocks):
            scheduler.limit_blocks(PRESSURE, blocks)
        case "relief", _:
            scheduler.lift_limit(PRESSURE)
        case "preempt", _:
            victim = scheduler.youngest()
            if victim is not None:
                scheduler.preempt(victim, world.now_s)
        case "evict", int(most):
            scheduler.book.evict_kept(most)
        case "cancel", int(number):
            world.cancel(str(number))


@given(policies, st.lists(events, max_size=40))
def test_every_answer_is_that_of_running_alone_whatever_happens(
    policy: Policy, happenings: list[tuple[str, object]]
) -> None:
    world = World(policy)
    for name, what in happenings:
        happen(world, name, what)
        world.check()
    world.run()
    assert set(world.done) | set(world.refused) | set(world.lost) == set(world.asked)
    for name, sequence in world.done.items():
        prompt, output = world.asked[name]
        expected = answer(prompt, min(output, 2) if sequence.is_shortened else output)
        assert list(sequence.output) == expected
    assert world.scheduler.book.held == 0


@given(policies, st.lists(events, max_size=40))
def test_what_is_waited_for_adds_up_to_the_time_in_the_queue(
    policy: Policy, happenings: list[tuple[str, object]]
) -> None:
    world = World(policy)
    joined: dict[str, float] = {}
    for name, what in happenings:
        count = len(world.asked)
        happen(world, name, what)
        joined |= {str(number): world.now_s for number in range(count, len(world.asked))}
    entered: dict[str, float] = {}
    while world.scheduler.has_work:
        world.step()
        for one in world.scheduler.running:
            entered.setdefault(one.request_id, 0.0)
    for name, sequence in world.done.items():
        assert sum(sequence.waited_s.values()) <= world.now_s - joined[name] + 1e-9
        assert all(waited_s >= 0 for waited_s in sequence.waited_s.values())


@given(
    policies.filter(lambda policy: policy.reserve == "whole"),
    st.lists(st.tuples(requests, st.integers(0, 3)), max_size=12),
)
def test_with_all_blocks_reserved_nobody_is_preempted(
    policy: Policy, arrivals: list[tuple[tuple[list[int], int, int, str], int]]
) -> None:
    world = World(policy)
    for (prompt, output, priority, kind), steps in arrivals:
        world.ask(prompt, output, priority=priority, kind=kind)
        for _ in range(steps):
            world.step()
            assert world.scheduler.reserved_blocks <= BLOCKS
    world.run()
    assert all(one.preemptions == 0 for one in world.done.values())


# --- making way --------------------------------------------------------------------------------


def crowded(**changes: object) -> World:
    """Two requests of 6 blocks at their end over 10 blocks, each let in with its prompt."""
    world = World(Policy(**{"reserve": "prompt", **changes}), max_batch_tokens=20)
    for number in (0, 1):
        world.ask([number] * 9, 9)
    return world


def test_under_prompt_two_enter_where_whole_lets_one_in() -> None:
    world = crowded()
    world.step()
    assert len(world.scheduler.running) == 2
    whole = crowded(reserve="whole")
    whole.step()
    assert [one.request_id for one in whole.scheduler.running] == ["0"]


def test_under_prompt_those_who_enter_together_have_room_for_all_their_prompts() -> None:
    world = World(Policy(reserve="prompt"), max_batch_tokens=4)
    for number in range(4):
        world.ask([number] * 9, 1)  # 3 blocks each, of 10
    world.step()
    assert [one.request_id for one in world.scheduler.running] == ["0", "1", "2"]
    world.run()
    assert all(one.preemptions == 0 for one in world.done.values())


def test_when_blocks_run_out_the_youngest_makes_way_and_starts_again() -> None:
    world = crowded()
    world.run()
    assert [world.done[name].preemptions for name in "01"] == [0, 1]
    assert world.done["1"].pulled_blocks == 0


def test_a_lower_priority_makes_way_first_even_where_it_is_older() -> None:
    world = World(Policy(reserve="prompt"), max_batch_tokens=20)
    world.ask([0] * 9, 9, priority=-1)
    world.ask([1] * 9, 9)
    world.run()
    assert [world.done[name].preemptions for name in "01"] == [1, 0]


def test_a_higher_priority_takes_the_blocks_of_a_row_of_the_same_step() -> None:
    world = World(Policy(reserve="prompt"), max_batch_tokens=20)
    world.ask([0] * 12, 9)
    world.step()
    world.step()
    world.ask([1] * 14, 1, priority=1)  # 5 blocks and one more: 5 of 10 are held
    world.scheduler.admit(world.now_s)
    world.scheduler.limit_blocks(BUDGET, 8)
    rows = world.scheduler.next_rows(world.now_s)
    assert [(row.sequence.request_id, row.count) for row in rows] == [("1", 14)]
    assert [one.request_id for one in world.scheduler.waiting] == ["0"]


def test_who_was_swapped_out_comes_back_alone_beyond_a_limit_that_fell() -> None:
    world = World(Policy(preempt="swap", slots=8))
    only = world.ask([0] * 9, 4)
    for _ in range(3):
        world.step()
    world.scheduler.preempt(only, world.now_s)
    world.scheduler.limit_blocks(PRESSURE, 1)
    world.run()
    assert only.pulled_blocks == 4
    assert list(only.output) == answer([0] * 9, 4)


def test_with_swap_the_blocks_come_back_and_nothing_is_computed_again() -> None:
    world = crowded(preempt="swap", slots=8)
    ran = []
    while world.scheduler.has_work:
        ran += world.step()
    assert world.done["1"].preemptions == 1
    assert world.done["1"].pulled_blocks > 0
    for name in "01":
        spans = [(start, count) for row, start, count in ran if row == name]
        assert sum(count for _, count in spans) == 9 + 9 - 1
    assert world.scheduler.book.offloaded == 0


def test_with_a_full_tier_it_is_computed_again() -> None:
    world = crowded(preempt="swap", slots=2)
    world.run()
    assert (world.done["1"].preemptions, world.done["1"].pulled_blocks) == (1, 0)


def test_what_others_hold_is_not_pulled_back() -> None:
    world = World(Policy(reserve="prompt", preempt="swap", slots=8, sharing="running"))
    world.ask([1] * 12, 9)
    for _ in range(4):
        world.step()
    world.ask([1] * 12, 9)
    world.step()
    second = world.scheduler.running[1]
    world.scheduler.preempt(second, world.now_s)
    assert len(second.slots) == 4  # the last one its own: it had to compute the prompt's last token
    assert world.scheduler.book.offloaded == 4
    world.step()
    assert (second.pulled_blocks, world.scheduler.book.offloaded) == (0, 0)
    assert second.blocks[:4] == world.scheduler.running[0].blocks[:4]
    world.run()
    assert len(world.done) == 2


def test_a_sequence_that_fails_in_the_queue_gives_its_slots_back() -> None:
    world = crowded(preempt="swap", slots=8)
    world.step()
    victim = world.scheduler.running[1]
    world.scheduler.preempt(victim, world.now_s)
    assert world.scheduler.book.offloaded == 3
    world.scheduler.remove(victim)
    assert world.scheduler.book.offloaded == 0


def test_what_it_finds_again_of_its_own_is_not_told_as_shared() -> None:
    world = crowded(sharing="kept")
    world.run()
    assert world.done["1"].preemptions > 0
    assert [world.done[name].shared_tokens for name in "01"] == [0, 0]
    again = world.ask([1] * 9, 2)
    world.run()
    assert again.shared_tokens == 8


def test_alone_it_goes_beyond_a_limit_that_fell_and_nobody_joins_it() -> None:
    world = World(Policy())
    world.ask([1] * 9, 6)
    world.ask([2] * 3, 2)
    world.scheduler.limit_blocks(BUDGET, 1, refuses=True)
    world.step()
    assert [one.request_id for one in world.scheduler.running] == ["0"]
    world.run()
    assert set(world.done) == {"0", "1"}
    assert world.done["1"].waited_s["memory_budget"] > 0
    world.ask([3] * 3, 2)
    assert world.refused == {"2": "exceeds_memory_budget"}


def test_a_limit_of_pressure_leaves_a_budget_in_force() -> None:
    world = World(Policy())
    world.scheduler.limit_blocks(BUDGET, 6, refuses=True)
    world.scheduler.limit_blocks(PRESSURE, 2)
    assert world.scheduler.book.limit == 2
    world.scheduler.lift_limit(PRESSURE)
    assert world.scheduler.book.limit == 6
    world.scheduler.lift_limit(BUDGET)
    assert world.scheduler.book.limit == BLOCKS


def test_a_failed_step_is_booked_for_nobody_and_the_others_answer_as_ever() -> None:
    world = World(Policy(sharing="kept"), pool_blocks=20, max_batch_tokens=30)
    for _ in range(3):
        world.ask([1] * 7, 4)
    world.step(fails=True)
    assert [one.computed for one in world.scheduler.running] == [0, 0]
    world.run()
    assert world.lost == ["0"]
    assert all(list(one.output) == answer([1] * 7, 4) for one in world.done.values())


# --- waiting -----------------------------------------------------------------------------------


def test_who_waits_is_told_for_what() -> None:
    world = World(Policy(class_blocks={"small": 4}, lanes=(LaneLimits(max_requests=3),)))
    world.ask([1] * 9, 2, kind="small")
    second = world.ask([1] * 3, 2, kind="small")
    world.run()
    assert second.waited_s.keys() <= {"step", "class_budget"}
    assert second.waited_s["class_budget"] > 0


@pytest.mark.parametrize(
    ("lanes", "shape", "reason"),
    [
        ((LaneLimits(max_requests=1),), (3, 9), "lane"),
        ((LaneLimits(max_kv_tokens=12),), (3, 7), "lane"),
        ((), (3, 25), "kv_pool"),
    ],
)
def test_what_holds_the_second_up(
    lanes: tuple[LaneLimits, ...], shape: tuple[int, int], reason: str
) -> None:
    world = World(Policy(lanes=lanes))
    first, second = (world.ask([1] * shape[0], shape[1]) for _ in range(2))
    world.run()
    assert not first.waited_s
    assert set(second.waited_s) == {reason}


def test_more_than_may_run_at_once_wait_for_their_turn() -> None:
    world = World(Policy())
    asked = [world.ask([1] * 2, 2) for _ in range(REQUESTS + 1)]
    world.run()
    assert set(asked[-1].waited_s) == {"requests"}


def test_a_short_prompt_does_not_wait_behind_a_long_one_of_another_lane() -> None:
    lanes = (LaneLimits(up_to_tokens=4), LaneLimits())
    world = World(Policy(lanes=lanes))
    world.ask([1] * 20, 4)  # 8 blocks of 10
    long = world.ask([1] * 12, 2)
    world.ask([2] * 3, 2)
    world.step()
    assert [one.request_id for one in world.scheduler.running] == ["2", "0"]
    assert world.scheduler.waiting == [long]
    one_lane = World(Policy())
    for prompt in ([1] * 20, [1] * 12, [2] * 3):
        one_lane.ask(prompt, 4)
    one_lane.step()
    assert [one.request_id for one in one_lane.scheduler.running] == ["0"]


def test_a_prompt_longer_than_every_lane_takes_is_refused() -> None:
    world = World(Policy(lanes=(LaneLimits(up_to_tokens=4), LaneLimits(up_to_tokens=8))))
    for length in (4, 8, 9):
        world.ask([1] * length, 1)
    assert world.refused == {"2": "exceeds_lane"}


def test_what_can_never_run_in_its_lane_or_class_is_refused() -> None:
    lanes = (LaneLimits(max_kv_tokens=12),)
    world = World(Policy(lanes=lanes, class_blocks={"small": 2}))
    world.ask([1] * 10, 4)
    world.ask([1] * 6, 2, kind="small")
    world.ask([1] * 6, 2)
    assert world.refused == {"0": "exceeds_lane", "1": "exceeds_class_budget"}


def test_a_full_queue_rejects_and_who_could_run_at_once_is_not_counted() -> None:
    world = World(Policy(queue_limit=1, overload="reject"))
    for _ in range(REQUESTS + 3):
        world.ask([1] * 2, 2)
    assert set(world.refused) == {str(REQUESTS + 1), str(REQUESTS + 2)}
    assert set(world.refused.values()) == {"queue_full"}
    world.run()
    assert len(world.done) == REQUESTS + 1


def test_a_full_queue_shortens_the_answer_and_says_so() -> None:
    policy = Policy(queue_limit=1, overload="fall_back", fall_back_tokens=2)
    world = World(policy)
    asked = [world.ask([1] * 2, output) for output in (5, 5, 5, 5, 5, 5, 1)]
    world.run()
    assert [len(one.output) for one in asked] == [5, 5, 5, 5, 5, 2, 1]
    assert [one.is_shortened for one in asked] == [False] * 5 + [True, False]


def test_a_full_queue_that_waits_takes_all() -> None:
    world = World(Policy(queue_limit=1))
    for _ in range(9):
        world.ask([1] * 2, 2)
    world.run()
    assert len(world.done) == 9


# --- batching ----------------------------------------------------------------------------------


def batched(kind: Kind, **changes: float) -> World:
    batching = Batching(kind=kind, **{"most": 2, "wait_s": 0.5, "tokens": 4, **changes})
    return World(Policy(batching=batching), max_requests=4 if kind == "micro" else 2)


def test_a_static_batch_holds_its_memory_until_all_have_ended() -> None:
    world = batched("static")
    world.ask([1] * 3, 1)
    world.ask([2] * 3, 5)
    late = world.ask([3] * 3, 1)
    world.step()
    assert set(world.done) == {"0"}
    assert world.scheduler.book.held == 2
    world.step()
    assert world.scheduler.waiting == [late]
    world.run()
    assert world.scheduler.book.held == 0
    assert late.waited_s["batch"] > 0


def test_in_a_dynamic_batch_each_gives_its_memory_back_when_it_has_ended() -> None:
    world = batched("dynamic")
    world.ask([1] * 3, 1)
    world.ask([2] * 3, 5)
    late = world.ask([3] * 3, 1)
    world.step()
    assert set(world.done) == {"0"}
    assert world.scheduler.book.held == 1
    world.step()
    assert world.scheduler.waiting == [late]


def test_a_batch_that_does_not_fill_starts_when_its_first_has_waited() -> None:
    world = batched("dynamic")
    world.ask([1] * 3, 1)
    assert world.step() == []
    assert world.now_s == pytest.approx(0.5)
    assert world.step() == [("0", 0, 3)]


def test_micro_batches_enter_beside_each_other_a_group_at_each_step() -> None:
    world = batched("micro")
    for _ in range(4):
        world.ask([1] * 2, 3)
    world.step()
    assert len(world.scheduler.running) == 2
    world.step()
    assert len(world.scheduler.running) == 4


def test_ended_requests_of_a_static_batch_make_way_before_running_ones() -> None:
    batching = Batching(kind="static", most=2)
    world = World(Policy(batching=batching, reserve="prompt"), max_batch_tokens=30)
    world.ask([1] * 14, 1)  # 5 blocks, ended after the first step
    world.ask([2] * 12, 12)  # 8 blocks at its end
    world.run()
    assert all(one.preemptions == 0 for one in world.done.values())


def test_whole_prompts_are_read_in_one_step_and_wait_for_a_step_that_has_room() -> None:
    world = World(Policy(chunk_prompts=False))
    world.ask([1] * 12, 1)  # more than the 7 of a step
    world.ask([2] * 4, 1)
    world.ask([3] * 4, 1)
    assert world.step() == [("0", 0, 12)]
    assert world.step() == [("1", 0, 4)]
    assert world.step() == [("2", 0, 4)]
