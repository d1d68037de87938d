"""One step after the other: in which order bytes are moved, given back and computed, and what is left of
a step that failed."""

from __future__ import annotations

import errno
import gc
import weakref
from typing import Any

import pytest

from engines.fake_kv import FakeKv, answer
from memplan.engines.allocator.trimming import Trimmer
from memplan.engines.garbage import Garbage
from memplan.engines.lazy_parts import LazyParts
from memplan.engines.memory_budget import MemoryBudget
from memplan.engines.pressure import PERIOD_S, Degradation, Pressure
from memplan.engines.scheduler import Policy, Scheduler
from memplan.engines.sequence import Move, Row, Sequence
from memplan.engines.stepper import Stepper

BLOCKS, WIDTH = 12, 4


class Activations:
    """What a step allocates."""


class Bench:
    """A stepper over memory that knows its tokens, with a runner and a meter that note what they did."""

    kv_bytes_per_token = 10

    def __init__(
        self,
        *steps: Degradation,
        budget: MemoryBudget | None = None,
        max_batch_tokens: int = 16,
        **policy: Any,
    ) -> None:
        self.did: list[str] = []
        self.segments: list[tuple[str, Any]] = []
        self.endings: dict[str, dict[str, Any]] = {}
        self.asked: dict[str, tuple[list[int], int]] = {}
        self.fails: list[Exception] = []
        self.activations: weakref.ref[Activations] | None = None
        self.alive_at_close: list[bool] = []
        self.time_s = 0.0
        self.charged_bytes = 0
        self.last_peak_bytes = 0
        self.scheduler = Scheduler(
            pool_blocks=BLOCKS,
            block_tokens=WIDTH,
            context_tokens=60,
            max_requests=4,
            max_batch_tokens=max_batch_tokens,
            policy=Policy(**policy),
        )
        slots = policy.get("slots", 0)
        self.kv = FakeKv(self.scheduler.book, blocks=BLOCKS, slots=slots)
        runner: Any = self
        pressure = Pressure(
            steps, at_bytes=1000, charged_bytes=lambda: self.charged_bytes, max_requests=4
        )
        self.stepper = Stepper(
            self.scheduler,
            runner,
            runner,
            trimmer=Trimmer("never", self.now_s),
            pressure=pressure if steps else None,
            budget=budget,
            lazy=LazyParts(),
            garbage=Garbage("python"),
        )

    # --- the runner and the meter ----------------------------------------------------------

    def run(self, rows: tuple[Row, ...]) -> list[int]:
        activations = Activations()
        self.activations = weakref.ref(activations)
        self.did.append("run")
        tokens = self.kv.run(rows)
        if self.fails:
            raise self.fails.pop(0)
        return tokens

    def log_probabilities(self) -> list[float]:
        return []

    def move(self, moves: tuple[Move, ...]) -> None:
        self.did.append("move")
        self.kv.move(moves)

    def release(self, blocks: tuple[int, ...]) -> None:
        self.did.append("release")
        self.kv.release(blocks)

    def now_s(self) -> float:
        self.time_s += 0.001
        return self.time_s

    def close(self, kind: str, **fields: Any) -> float:
        self.did.append(f"close {kind}")
        self.segments.append((kind, fields))
        alive = self.activations is not None and self.activations() is not None
        self.alive_at_close.append(alive)
        return self.now_s()

    # --- the worker ------------------------------------------------------------------------

    def ask(self, prompt: list[int], output: int) -> None:
        name = str(len(self.asked))
        self.asked[name] = (prompt, output)
        self.flush(
            *self.stepper.submit(Sequence(request_id=name, prompt=prompt, output_tokens=output))
        )

    def flush(self, *endings: dict[str, Any]) -> None:
        self.endings |= {one["record"]["request_id"]: one["record"] for one in endings}

    def step(self) -> None:
        self.stepper.enter()
        if self.scheduler.running:
            self.stepper.step(self.flush)

    def serve(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def outputs(self) -> dict[str, str]:
        return {name: record["outcome"] for name, record in self.endings.items()}

    def cancel(self, name: str) -> None:
        self.flush(*self.stepper.cancel(name))


def refused_memory() -> Exception:
    return OSError(errno.ENOMEM, "Cannot allocate memory")


def test_a_step_runs_between_its_segments_and_gives_back_in_one_of_its_own() -> None:
    bench = Bench()
    bench.ask([1] * 5, 1)
    bench.step()
    assert bench.did == ["run", "close step", "release", "close release"]


def test_blocks_are_moved_before_they_are_given_back_and_both_before_the_step() -> None:
    bench = Bench(reserve="prompt", preempt="swap", slots=12)
    for number in (1, 2):
        bench.ask([number] * 20, 12)
    while "move" not in bench.did:
        bench.step()
    at = bench.did.index("move")
    assert bench.did[at : at + 4] == ["move", "release", "close release", "run"]
    bench.serve()
    assert bench.outputs() == {"0": "completed", "1": "completed"}
    moved = bench.endings["1"]
    assert moved["preemptions"] == 1
    assert moved["pulled_back_bytes"] > 0
    assert bench.endings["0"]["pulled_back_bytes"] == 0


@pytest.mark.parametrize(
    "error",
    [
        refused_memory(),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 9 MiB."),
    ],
)
def test_a_failed_allocation_ends_the_request_that_asked_for_most(error: Exception) -> None:
    bench = Bench(sharing="kept", max_batch_tokens=40)
    for length in (5, 9, 7):
        bench.ask([1] * length, 3)
    bench.fails = [error]
    bench.serve()
    assert bench.outputs() == {"0": "completed", "1": "failed", "2": "completed"}
    assert bench.endings["1"]["reason"] == "allocation_failed"
    assert bench.endings["1"]["admitted_s"] is not None
    assert bench.scheduler.book.held == 0


def test_after_a_failed_step_the_answers_are_those_of_running_alone() -> None:
    bench = Bench(sharing="kept", max_batch_tokens=40)
    kept: list[Sequence] = []
    for length in (5, 9, 7):
        bench.ask([1] * length, 3)
    bench.stepper.enter()
    kept += bench.scheduler.running
    bench.stepper.step(bench.flush)
    bench.fails = [refused_memory()]
    bench.serve()
    for sequence in kept:
        if bench.endings[sequence.request_id]["outcome"] == "completed":
            prompt, output = bench.asked[sequence.request_id]
            assert list(sequence.output) == answer(prompt, output)
    assert sorted(bench.outputs().values()) == ["completed", "completed", "failed"]


def test_what_a_failed_step_held_is_free_before_its_segment_is_closed() -> None:
    bench = Bench()
    bench.ask([1] * 5, 3)
    bench.fails = [refused_memory()]
    gc.disable()
    try:
        bench.step()
    finally:
        gc.enable()
    assert [kind for kind, _ in bench.segments] == ["step", "release"]
    assert bench.alive_at_close == [False, False]
    (_, fields), _ = bench.segments
    assert [flight[0] for flight in fields["told"]()[0]] == ["0"]


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"reserve": "prompt"},
        {"reserve": "expected", "expected_output_tokens": 3},
        {"reserve": "prompt", "sharing": "kept"},
        {"max_batch_tokens": 5},
    ],
    ids=str,
)
def test_what_is_told_of_a_step_later_is_what_was_so_at_its_end(policy: dict[str, Any]) -> None:
    bench = Bench(**policy)
    scheduler, at_once = bench.scheduler, []

    def close(kind: str, **fields: Any) -> float:
        held = {
            one.request_id: one.computed * 10 - int(scheduler.book.shared_away(one) * 10 * WIDTH)
            for one in scheduler.running
        }
        if kind == "step":
            at_once.append((fields["told"], fields["told"](), held, scheduler.waiting_count))
        return bench.now_s()

    bench.close = close  # type: ignore[method-assign]
    for length, output in ((9, 6), (5, 9), (9, 2), (14, 3), (3, 12)):
        bench.ask([7] * length, output)
        bench.step()
    bench.serve()
    assert len(at_once) >= 12
    for told, before, held, waiting in at_once:
        flights, _, _, waited = told()
        assert told() == before
        assert ({name: used for name, used, _, _ in flights}, waited) == (held, waiting)
        assert all(reserved >= used for _, used, reserved, _ in flights)


def test_who_has_given_up_is_told_with_what_ran_and_leaves_nothing() -> None:
    bench = Bench()
    for length in (5, 9):
        bench.ask([1] * length, 4)
    bench.step()
    bench.step()
    bench.did.clear()
    bench.cancel("0")
    assert bench.did == ["release", "close release"]
    (_, fields) = bench.segments[-1]
    assert [flight[0] for flight in fields["told"]()[0]] == ["1"]
    ended = bench.endings["0"]
    assert (ended["outcome"], ended["reason"]) == ("cancelled", None)
    assert (ended["input_tokens_run"], ended["output_tokens_run"]) == (5, 2)
    bench.serve()
    assert bench.outputs() == {"0": "cancelled", "1": "completed"}
    assert bench.scheduler.book.held == 0


def test_who_waits_and_gives_up_has_run_nothing() -> None:
    bench = Bench()
    for _ in range(5):  # one more than may run
        bench.ask([1] * 5, 4)
    bench.step()
    bench.did.clear()
    bench.cancel("4")
    assert bench.did == []
    assert bench.endings["4"]["outcome"] == "cancelled"
    assert (bench.endings["4"]["input_tokens_run"], bench.endings["4"]["admitted_s"]) == (0, None)
    bench.serve()
    bench.cancel("0")
    assert bench.endings["0"]["outcome"] == "completed", "it had ended before"


def test_another_fault_is_not_taken_for_one_of_memory() -> None:
    bench = Bench()
    bench.ask([1] * 5, 3)
    bench.fails = [RuntimeError("mat1 and mat2 shapes cannot be multiplied")]
    with pytest.raises(RuntimeError, match="shapes"):
        bench.step()


def test_what_is_evicted_while_nothing_runs_is_moved_and_given_back_at_once() -> None:
    bench = Bench("offload", sharing="kept", slots=12)
    bench.ask([1] * 9, 1)
    bench.serve()
    assert bench.scheduler.book.kept == 2
    bench.did.clear()
    bench.charged_bytes = 2000
    bench.time_s += PERIOD_S
    bench.step()
    assert bench.did == ["move", "release", "close release"]
    assert bench.scheduler.book.resident == 0
    assert bench.stepper.gauges()["engine.kv_offloaded"] == 2 * WIDTH * 10


def test_under_pressure_who_comes_is_rejected_in_the_end() -> None:
    bench = Bench("reject")
    bench.charged_bytes = 2000
    bench.time_s += PERIOD_S
    bench.step()
    bench.ask([1] * 5, 1)
    assert bench.endings["0"]["reason"] == "memory_pressure"


def budget(step_bytes: int = 100) -> MemoryBudget:
    """500 B for KV of 40 B a block."""
    return MemoryBudget(
        budget_bytes=1100, idle_bytes=500, step_bytes=step_bytes, block_bytes=WIDTH * 10
    )


def test_a_larger_step_than_was_measured_leaves_less_for_kv() -> None:
    bench = Bench(budget=budget())
    bench.ask([1] * 8, 2)
    bench.last_peak_bytes = 500 + 200 + 2 * 40
    bench.step()
    assert bench.scheduler.book.limit == 400 // 40
    bench.serve()
    bench.ask([1] * 41, 1)
    assert bench.endings["1"]["reason"] == "exceeds_memory_budget"


def test_kept_blocks_are_not_taken_for_a_larger_step() -> None:
    bench = Bench(budget=budget(), sharing="kept")
    bench.ask([1] * 16, 1)
    bench.serve()
    assert bench.scheduler.book.kept == 4
    bench.ask([2] * 4, 1)
    bench.last_peak_bytes = 500 + 100 + 5 * 40
    bench.serve()
    assert bench.scheduler.book.limit == BLOCKS
