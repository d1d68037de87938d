"""Runs the scheduler's steps in the runner, a segment around each, and tells what became of whom."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import math
import time
from array import array
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from memplan.engines.allocator.trimming import Trimmer
from memplan.engines.garbage import Garbage
from memplan.engines.lazy_parts import LazyParts
from memplan.engines.memory_budget import MemoryBudget
from memplan.engines.meter import SegmentMeter
from memplan.engines.pressure import Pressure
from memplan.engines.raw_segments import Told
from memplan.engines.runner import Runner
from memplan.engines.scheduler import BUDGET, Scheduler
from memplan.engines.sequence import Move, Row, Sequence
from memplan.records import RequestRecord

Endings = list[dict[str, Any]]

_OUT_OF_MEMORY_WORDS = ("allocate memory", "out of memory")


class Stepper:
    """One step after the other; each returns the endings that it brought."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        meter: SegmentMeter,
        *,
        trimmer: Trimmer,
        pressure: Pressure | None,
        budget: MemoryBudget | None,
        lazy: LazyParts,
        garbage: Garbage,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._meter = meter
        self._trimmer = trimmer
        self._pressure = pressure
        self._budget = budget
        self._lazy = lazy
        self._garbage = garbage
        self._times: dict[str, dict[str, Any]] = {}
        self._block_bytes = scheduler.block_tokens * runner.kv_bytes_per_token

    def submit(self, sequence: Sequence) -> Endings:
        now_s = self._meter.now_s()
        if self._pressure is not None and self._pressure.refuses:
            return [self._refused(sequence, "memory_pressure")]
        reason = self._lazy.refusal(sequence)
        if reason is not None:
            return [self._refused(sequence, reason)]
        refusal = self._scheduler.submit(sequence, now_s)
        if refusal is not None:
            return [self._refused(sequence, refusal.reason)]
        self._times[sequence.request_id] = {"tokenizer_load_s": self._lazy.bring_tokenizer()}
        return []

    def cancel(self, request_id: str) -> Endings:
        """Between two steps; nothing of one that has ended."""
        sequence = self._scheduler.find(request_id)
        if sequence is None:
            return []
        self._scheduler.remove(sequence)
        _, freed = self._scheduler.retire()
        self._release(freed, self._noted(()))
        return [
            self._told(
                sequence,
                outcome="cancelled",
                end_s=self._meter.now_s(),
                input_tokens_run=min(sequence.computed, len(sequence.prompt)),
                output_tokens_run=len(sequence.output),
            )
        ]

    def enter(self) -> float:
        """Lets in who may enter; seconds until somebody else may, if nothing runs; else 0."""
        now_s = self._meter.now_s()
        if self._pressure is not None:
            self._pressure.look(self._scheduler, now_s)
        self._settle()
        for sequence in self._scheduler.admit(now_s):
            self._times[sequence.request_id].setdefault("admitted_s", now_s)
        return 0.0 if self._scheduler.running else self._scheduler.opens_in_s(now_s)

    def step(self, flush: Callable[..., object]) -> float:
        """Runs one step of who is in; ``flush`` takes the endings that it brought. Returns 0, or for how
        many seconds there is nothing to do because nobody's next token is due."""
        scheduler = self._scheduler
        now_s = self._meter.now_s()
        rows = scheduler.next_rows(now_s)
        self._settle()
        if not rows and scheduler.running:
            return scheduler.due_in_s(now_s)
        tokens = self._computed(rows)
        if tokens is None:
            flush(self._given_up(rows))
            return 0.0
        scheduler.commit(rows, tokens)
        if log_probabilities := self._runner.log_probabilities():
            wanting = (row.sequence for row in rows if row.wants_token)
            for sequence, sure in zip(wanting, log_probabilities, strict=False):
                sequence.log_probability += sure
        told = self._noted(rows)
        end_s = self._meter.close("step", told=told, engine=self.gauges())
        for row in rows:
            if row.wants_token:
                self._times[row.sequence.request_id].setdefault("first_token_s", end_s)
        self._hold_to_budget()
        finished, freed = scheduler.retire()
        flush(*(self._ending(sequence, end_s) for sequence in finished))
        self._release(freed, told)
        return 0.0

    def close_idle(self) -> None:
        """Ends a segment in which nothing ran; requests whose next token is not due are in flight."""
        self._meter.close("idle", told=self._noted(()), engine=self.gauges())

    def gauges(self) -> Mapping[str, int]:
        """Of the KV blocks, of what was loaded on demand, of collecting garbage, and of what is given
        up for want of memory."""
        found = self._scheduler.book.gauges(self._block_bytes)
        found |= self._garbage.take()
        found |= self._lazy.gauges()
        if self._pressure is not None:
            found |= self._pressure.gauges()
        return found

    # --- steps -----------------------------------------------------------------------------

    def _settle(self) -> None:
        """Moves what has to be moved, and then gives back what that left empty: before the step, whose
        peak must not have it."""
        moves = self._scheduler.take_moves()
        if moves:
            self._move(moves)
        freed = self._scheduler.book.take_freed()
        if freed:
            self._release(freed, self._noted(()))

    def _release(self, freed: tuple[int, ...], told: Callable[[], Told]) -> None:
        if freed:
            # In a segment of its own: the next step's peak must not start at memory already freed.
            self._runner.release(freed)
            self._trimmer.after_release()
            self._meter.close("release", told=lambda: (told()[0], 0, 0, 0), engine=self.gauges())

    def _computed(self, rows: tuple[Row, ...]) -> list[int] | None:
        """None: an allocation failed. Nothing is booked then, so the tokens that were written already
        are written again; what the failed step held is free once this has returned."""
        try:
            self._bring_adapters(rows)
            return self._runner.run(rows)
        except (MemoryError, OSError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            return None

    def _move(self, moves: tuple[Move, ...]) -> None:
        """What the moves take is told of the requests that needed blocks to come back."""
        began_s = time.monotonic()
        self._runner.move(moves)
        took_s = time.monotonic() - began_s
        pulled = [one for one in self._scheduler.running if one.pulled_blocks]
        for sequence in pulled:
            times = self._times[sequence.request_id]
            new = sequence.pulled_blocks - times.get("pulled_blocks", 0)
            if new:
                times["pulled_blocks"] = sequence.pulled_blocks
                times["pull_back_s"] = times.get("pull_back_s", 0.0) + took_s

    def _bring_adapters(self, rows: tuple[Row, ...]) -> None:
        took_s = self._lazy.bring_adapters(rows, self._scheduler.running)
        for row in rows:
            if row.sequence.adapter in took_s:
                times = self._times[row.sequence.request_id]
                loaded_s = times.get("adapter_load_s", 0.0) + took_s[row.sequence.adapter]
                times["adapter_load_s"] = loaded_s

    def _given_up(self, rows: tuple[Row, ...]) -> dict[str, Any]:
        """An allocation failed: of the requests in the step, the one that asked for most ends."""
        told = self._noted(rows, is_booked=False)
        largest = max(rows, key=lambda row: (row.count, row.start + row.count)).sequence
        end_s = self._meter.close(
            "step",
            told=lambda: (told()[0], 0, 0, told()[3]),  # no token was booked
            engine=self.gauges(),
        )
        self._scheduler.remove(largest)
        _, freed = self._scheduler.retire()
        self._release(freed, told)
        return self._told(largest, outcome="failed", reason="allocation_failed", end_s=end_s)

    def _hold_to_budget(self) -> None:
        budget = self._budget
        if budget is None:
            return
        if budget.saw(self._meter.last_peak_bytes, self._scheduler.book.resident):
            self._scheduler.limit_blocks(BUDGET, budget.blocks, refuses=True)

    def _noted(self, rows: tuple[Row, ...], *, is_booked: bool = True) -> Callable[[], Told]:
        """Who is in flight, and with what, after the step of these rows: noted between two steps, and
        worked out when it is asked for, together with many others."""
        scheduler = self._scheduler
        if is_booked and scheduler.is_plain and len(rows) == len(scheduler.running):
            return partial(self._worked_out_of_rows, rows, scheduler.waiting_count)
        is_shared = bool(scheduler.book.shared)
        noted = [
            (
                one,
                one.computed,
                one.known_tokens,
                len(one.blocks),
                scheduler.book.shared_away(one) if is_shared else 0.0,
            )
            for one in scheduler.running
        ]
        return partial(self._worked_out, rows, noted, scheduler.waiting_count)

    def _worked_out_of_rows(self, rows: tuple[Row, ...], waiting: int) -> Told:
        """Where everybody in flight had a row, which says how far it has come, and reserves all that it
        can need, so that the blocks it holds by then say nothing more."""
        noted = [(row.sequence, row.start + row.count, 0, 0, 0.0) for row in rows]
        return self._worked_out(rows, noted, waiting)

    def _worked_out(
        self,
        rows: tuple[Row, ...],
        noted: list[tuple[Sequence, int, int, int, float]],
        waiting: int,
    ) -> Told:
        per_token = self._runner.kv_bytes_per_token
        scheduled = {row.sequence.request_id: row.count for row in rows}
        flights = []
        for one, computed, known_tokens, blocks, shared_away in noted:
            others_bytes = int(shared_away * self._block_bytes)
            reserved_tokens = self._scheduler.reserved_tokens(
                one, blocks=blocks, known_tokens=known_tokens
            )
            used_bytes = computed * per_token - others_bytes
            reserved_bytes = reserved_tokens * per_token - others_bytes
            tokens = scheduled.get(one.request_id, 0)
            flights.append((one.request_id, used_bytes, reserved_bytes, tokens))
        decoded = sum(row.is_decode for row in rows)
        return tuple(flights), sum(row.count for row in rows) - decoded, decoded, waiting

    def _ending(self, sequence: Sequence, end_s: float) -> dict[str, Any]:
        digest = hashlib.sha256(array("q", sequence.output).tobytes()).hexdigest()[:16]
        return self._told(
            sequence,
            outcome="completed",
            end_s=end_s,
            input_tokens_run=len(sequence.prompt),
            output_tokens_run=len(sequence.output),
            output_digest=digest,
            confidence=self._confidence(sequence),
            is_shortened=sequence.is_shortened,
        )

    def _confidence(self, sequence: Sequence) -> float | None:
        """None unless it is asked for."""
        if not self._runner.log_probabilities() or not sequence.output:
            return None
        return math.exp(sequence.log_probability / len(sequence.output))

    def _told(self, sequence: Sequence, **fields: Any) -> dict[str, Any]:
        times = self._times.pop(sequence.request_id)
        pulled_blocks = times.pop("pulled_blocks", 0)
        record = RequestRecord(
            request_id=sequence.request_id,
            waited_s=sequence.waited_s,
            preemptions=sequence.preemptions,
            shared_tokens=sequence.shared_tokens,
            pulled_back_bytes=pulled_blocks * self._block_bytes,
            adapter=sequence.adapter or None,
            **times,
            **fields,
        )
        return {"type": "ended", "record": dataclasses.asdict(record)}

    def _refused(self, sequence: Sequence, reason: str) -> dict[str, Any]:
        record = RequestRecord(
            request_id=sequence.request_id,
            outcome="rejected",
            reason=reason,
            adapter=sequence.adapter or None,
            end_s=self._meter.now_s(),
        )
        return {"type": "ended", "record": dataclasses.asdict(record)}


def _is_out_of_memory(error: Exception) -> bool:
    is_told_so = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return (
        is_told_so
        or isinstance(error, MemoryError)
        or any(words in str(error).lower() for words in _OUT_OF_MEMORY_WORDS)
    )
