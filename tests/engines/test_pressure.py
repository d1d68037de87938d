"""What is given up when memory runs short, in which order, and when it is taken back."""

from typing import Any

from memplan.engines.pressure import PERIOD_S, Degradation, Pressure
from memplan.engines.scheduler import Policy, Scheduler
from memplan.engines.sequence import Sequence


class Trial:
    """A scheduler, its pressure, and a charge that the test sets."""

    def __init__(self, *steps: Degradation, **policy: Any) -> None:
        self.charged_bytes = 0
        self.now_s = 0.0
        self.scheduler = Scheduler(
            pool_blocks=20,
            block_tokens=4,
            context_tokens=100,
            max_requests=4,
            max_batch_tokens=64,
            policy=Policy(**policy),
        )
        self.pressure = Pressure(
            steps, at_bytes=1000, charged_bytes=lambda: self.charged_bytes, max_requests=4
        )

    def look(self, charged_bytes: int, *, after_s: float = PERIOD_S) -> int:
        """The level after a look."""
        self.charged_bytes = charged_bytes
        self.now_s += after_s
        self.pressure.look(self.scheduler, self.now_s)
        return self.pressure.level

    def start(self, *shapes: tuple[int, int]) -> list[Sequence]:
        """Requests of these (prompt, output) tokens, their prompts read."""
        asked = [
            Sequence(request_id=str(number), prompt=[number] * prompt, output_tokens=output)
            for number, (prompt, output) in enumerate(shapes)
        ]
        for one in asked:
            self.scheduler.submit(one, self.now_s)
        self.scheduler.admit(self.now_s)
        self.step()
        return asked

    def step(self) -> None:
        rows = self.scheduler.next_rows(self.now_s)
        self.scheduler.take_moves()
        self.scheduler.commit(rows, [1 for row in rows if row.wants_token])
        self.scheduler.retire()


def test_below_the_threshold_nothing_is_given_up() -> None:
    trial = Trial("shrink_batch", "reject")
    assert trial.look(1000) == 0
    assert not trial.pressure.refuses
    assert trial.scheduler.max_batch_tokens == 64


def test_it_looks_once_in_a_period() -> None:
    trial = Trial("reject")
    assert trial.look(2000, after_s=PERIOD_S / 2) == 0
    assert trial.look(2000, after_s=PERIOD_S / 2) == 1


def test_the_batch_is_halved_until_it_is_an_eighth_and_then_the_next_step_is_taken() -> None:
    trial = Trial("shrink_batch", "reject")
    seen = []
    while not trial.pressure.refuses:
        trial.look(2000)
        seen.append((trial.scheduler.max_batch_tokens, trial.pressure.level))
    assert seen == [(32, 1), (16, 1), (8, 1), (8, 2)]


def test_a_batch_never_falls_below_a_token_for_each_request() -> None:
    trial = Trial("shrink_batch")
    trial.scheduler.max_batch_tokens = 5
    trial.look(2000)
    trial.look(2000)
    assert trial.scheduler.max_batch_tokens == 4


def test_steps_are_taken_back_one_by_one_in_the_other_order_and_only_well_below() -> None:
    trial = Trial("shrink_batch", "reject")
    for _ in range(5):
        trial.look(2000)
    assert trial.look(950) == 2
    assert trial.look(899) == 1
    assert not trial.pressure.refuses
    assert trial.scheduler.max_batch_tokens == 8
    assert trial.look(899) == 0
    assert trial.scheduler.max_batch_tokens == 64


def test_preempting_goes_on_until_one_is_left_who_runs_to_its_end() -> None:
    trial = Trial("preempt", "reject")
    asked = trial.start((8, 8), (8, 8), (8, 8))
    running = []
    for _ in range(3):
        trial.look(2000)
        running.append([one.request_id for one in trial.scheduler.running])
    assert running == [["0", "1"], ["0"], ["0"]]
    assert trial.pressure.refuses
    while trial.scheduler.running:
        trial.step()
    assert asked[0].is_finished and asked[0].preemptions == 0


def test_nobody_takes_the_place_of_who_made_way_while_the_others_have_what_they_need() -> None:
    trial = Trial("preempt", reserve="prompt")
    first, second, third = trial.start((8, 8), (8, 8), (8, 8))
    trial.look(2000)
    assert trial.scheduler.running == [first, second]
    assert trial.scheduler.admit(trial.now_s) == ()
    for _ in range(6):
        trial.step()
        trial.scheduler.admit(trial.now_s)
    assert (first.preemptions, second.preemptions) == (0, 0)
    assert trial.scheduler.waiting == [third]
    trial.look(100)
    assert trial.scheduler.admit(trial.now_s) == (third,)
    assert "memory_pressure" in third.waited_s


def test_what_a_preempted_one_leaves_is_not_kept() -> None:
    trial = Trial("preempt", sharing="kept")
    trial.start((8, 8), (8, 8))
    trial.look(2000)
    book = trial.scheduler.book
    assert (book.kept, book.leaving) == (0, 2)


def test_offload_moves_kept_blocks_to_the_tier() -> None:
    trial = Trial("offload", "reject", sharing="kept", slots=8)
    trial.start((9, 1))
    book = trial.scheduler.book
    assert (book.kept, book.offloaded) == (2, 0)
    assert trial.look(2000) == 1
    assert (book.kept, book.offloaded) == (0, 2)
    assert trial.look(2000) == 2  # nothing more is kept


def test_gauges_say_how_far_it_went_and_at_what_charge() -> None:
    trial = Trial("reject")
    assert trial.pressure.gauges() == {"engine.degradation": 0}
    trial.look(2000)
    assert trial.pressure.gauges() == {"engine.degradation": 1, "engine.working_set": 2000}


def test_without_steps_it_does_not_look() -> None:
    trial = Trial()
    assert trial.look(5000) == 0
    assert "engine.working_set" not in trial.pressure.gauges()
