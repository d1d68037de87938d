"""The steps of a real replay, each run twice, for ``overhead.py``.

A step writes the KV of the same tokens to the same blocks however often it is run, so it can be run
again once the books are put back: with what measures on, and with it off. Requests come when the trace
says, on a clock that goes on by what the silent one of the two took.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memplan.engines.sequence import Sequence as Request

if TYPE_CHECKING:
    from overhead_engine import Bench, Window

TraceRow = tuple[float, int, int]
"""When it comes after the first one, prompt tokens, output tokens."""


ENDING = 4
"""Requests of the longest kind whose KV can be kept: those that may end with one step."""


class ReplaySteps:
    """Requests of a trace, a wave of ``at_once`` after the other."""

    def __init__(self, bench: Bench, rows: Sequence[TraceRow], at_once: int) -> None:
        self._bench = bench
        self._scheduler = bench.worker._scheduler
        self._book = self._scheduler.book
        self._pool = bench.worker._runner._pool
        self._rows = rows
        self._at_once = at_once
        self._coming: list[TraceRow] = []
        self._at = 0
        self._now_s = 0.0
        self._computed: set[int] = set()
        # What requests that end with one step have in their blocks, which are given back. Touched now:
        # what is resident must not move with what this keeps.
        most = ENDING * max(self._book.blocks_of(prompt + output) for _, prompt, output in rows)
        self._kept_kv = self._pool._blocks[:most].clone().fill_(0)
        if not self._book.is_plain or self._scheduler._policy.reserve != "whole":
            raise SystemExit("only steps of requests with blocks of their own can be put back")

    def pair(self, kinds: Sequence[frozenset[str]], draw: random.Random) -> tuple[Window, Window]:
        """The next step with each kind of what measures, the second of which is silent, in any order."""
        bench = self._bench
        self._let_come()
        bench.stepper.enter()
        books = Books(self)
        if (tokens := books.prefill_tokens + books.decode_tokens) not in self._computed:
            # A length that was never computed before takes longer, once, and not for what measures.
            self._computed.add(tokens)
            bench.timed(kinds[1])
            books.put_back()
        windows: dict[int, Window] = {}
        for index in draw.sample([0, 1], 2):
            if windows:
                books.put_back()
            window = bench.timed(kinds[index])
            windows[index] = dataclasses.replace(
                window,
                prefill_tokens=books.prefill_tokens,
                decode_tokens=books.decode_tokens,
                ended=books.running - len(self._scheduler.running),
                is_first=not windows,
            )
        self._now_s += windows[1].wall_s
        return windows[0], windows[1]

    # --- steps -----------------------------------------------------------------------------

    def _let_come(self) -> None:
        if not self._coming and not self._scheduler.has_work:
            wave = [self._rows[(self._at + i) % len(self._rows)] for i in range(self._at_once)]
            self._at += self._at_once
            began_s = min(due_s for due_s, *_ in wave)
            self._coming = [(due_s - began_s, prompt, out) for due_s, prompt, out in wave]
            self._now_s = 0.0
        if self._coming and not self._scheduler.has_work:
            self._now_s = max(self._now_s, self._coming[0][0])
        while self._coming and self._coming[0][0] <= self._now_s:
            _, prompt_tokens, output_tokens = self._coming.pop(0)
            self._bench.submit(prompt_tokens=prompt_tokens, output_tokens=output_tokens)


class Books:
    """All that the next step changes, to be put back."""

    def __init__(self, steps: ReplaySteps) -> None:
        self._steps = steps
        scheduler, book, stepper = steps._scheduler, steps._book, steps._bench.stepper
        self._running: list[Request] = list(scheduler.running)
        self._free, self._holders = list(book._free), list(book._holders)
        self._sequences = [(s, s.computed, s.output[:], list(s.blocks)) for s in self._running]
        self._times = {name: dict(times) for name, times in stepper._times.items()}
        self.running = len(self._running)
        decoding = [s for s in self._running if s.is_decoding]
        self.decode_tokens = len(decoding)
        unread = sum(s.known_tokens - s.computed for s in self._running if not s.is_decoding)
        self.prefill_tokens = min(unread, scheduler.max_batch_tokens - len(decoding))
        most = scheduler.max_batch_tokens
        self._ending = [
            list(s.blocks)
            for s in self._running
            if len(s.output) + 1 == s.output_tokens and s.known_tokens - s.computed <= most
        ]
        kept = iter(steps._kept_kv)
        for block in (block for blocks in self._ending for block in blocks):
            next(kept).copy_(steps._pool._blocks[block])

    def put_back(self) -> None:
        steps = self._steps
        scheduler, book, stepper = steps._scheduler, steps._book, steps._bench.stepper
        held = {block for _, _, _, blocks in self._sequences for block in blocks}
        taken = {block for one in scheduler.running for block in one.blocks} - held
        steps._pool.release(tuple(taken))  # the step touches them for the first time again
        scheduler.running[:] = self._running
        book._free[:], book._holders[:] = self._free, self._holders
        for sequence, computed, output, blocks in self._sequences:
            sequence.computed = computed
            sequence.output[:], sequence.blocks[:] = output, blocks
        stepper._times = {name: dict(times) for name, times in self._times.items()}
        kept = iter(steps._kept_kv)
        for block in (block for blocks in self._ending for block in blocks):
            steps._pool._blocks[block].copy_(next(kept))
