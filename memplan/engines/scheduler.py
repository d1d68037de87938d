"""Continuous batching: which tokens of which requests run in the next step, and who may enter.

Pure bookkeeping over block numbers: it knows nothing of tensors, processes or clocks. A request is
admitted, first come first served, once all blocks it can ever need are free, so nothing admitted
is ever preempted.
"""

from __future__ import annotations

from array import array
from collections import abc, deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Sequence:
    """A request inside the engine. ``computed`` counts tokens whose KV has been written."""

    request_id: str
    prompt: abc.Sequence[int]
    output_tokens: int
    output: array[int] = field(default_factory=lambda: array("i"))
    blocks: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens whose KV it will hold at its end: the last output token's KV is never written."""
        return len(self.prompt) + self.output_tokens - 1

    @property
    def is_finished(self) -> bool:
        return len(self.output) == self.output_tokens

    def token(self, position: int) -> int:
        prompt_tokens = len(self.prompt)
        if position < prompt_tokens:
            return self.prompt[position]
        return self.output[position - prompt_tokens]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``count`` tokens of one sequence, from position ``start``."""

    sequence: Sequence
    start: int
    count: int

    @property
    def is_decode(self) -> bool:
        return self.start >= len(self.sequence.prompt)

    @property
    def wants_token(self) -> bool:
        """Whether this row ends at the newest token, so that its logits choose the next one."""
        return self.start + self.count >= len(self.sequence.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    request_id: str
    reason: str


class Scheduler:
    """Admission and batching over a pool of ``pool_blocks`` blocks of ``block_tokens`` tokens."""

    def __init__(
        self,
        *,
        pool_blocks: int,
        block_tokens: int,
        context_tokens: int,
        max_requests: int,
        max_batch_tokens: int,
    ) -> None:
        self.block_tokens = block_tokens
        self._context_tokens = context_tokens
        self._max_requests = max_requests
        self._max_batch_tokens = max_batch_tokens
        self._pool_blocks = pool_blocks
        self._unreserved_blocks = pool_blocks
        # Low numbers first, and the last one freed first: the touched part of the pool stays small.
        self._free = list(range(pool_blocks - 1, -1, -1))
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def reserved_tokens(self, sequence: Sequence) -> int:
        return self.blocks_of(sequence.total_tokens) * self.block_tokens

    def submit(self, sequence: Sequence) -> Refusal | None:
        """Queues it, or says why it can never run."""
        if len(sequence.prompt) + sequence.output_tokens > self._context_tokens:
            return Refusal(request_id=sequence.request_id, reason="exceeds_context")
        if self.blocks_of(sequence.total_tokens) > self._pool_blocks:
            return Refusal(request_id=sequence.request_id, reason="exceeds_kv_pool")
        self.waiting.append(sequence)
        return None

    def admit(self) -> tuple[Sequence, ...]:
        """Moves waiting sequences into the batch, in order, while slots and blocks allow."""
        admitted = []
        while self.waiting and len(self.running) < self._max_requests:
            need = self.blocks_of(self.waiting[0].total_tokens)
            if need > self._unreserved_blocks:
                break
            sequence = self.waiting.popleft()
            self._unreserved_blocks -= need
            self.running.append(sequence)
            admitted.append(sequence)
        return tuple(admitted)

    def next_rows(self) -> tuple[Row, ...]:
        """Every decode first, then prompt chunks, oldest first, within the step's token budget.

        Takes the blocks that the rows' tokens will be written to.
        """
        decodes = [s for s in self.running if s.computed >= len(s.prompt)]
        prefills = [s for s in self.running if s.computed < len(s.prompt)]
        rows = [Row(sequence=s, start=s.computed, count=1) for s in decodes]
        budget = self._max_batch_tokens - len(rows)
        for sequence in prefills:
            count = min(len(sequence.prompt) - sequence.computed, budget)
            if count <= 0:
                break
            rows.append(Row(sequence=sequence, start=sequence.computed, count=count))
            budget -= count
        for row in rows:
            missing = self.blocks_of(row.start + row.count) - len(row.sequence.blocks)
            row.sequence.blocks.extend(self._free.pop() for _ in range(missing))
        return tuple(rows)

    def commit(self, rows: tuple[Row, ...], next_tokens: list[int]) -> None:
        """Books a step that ran; ``next_tokens`` has one id for each row that wants a token."""
        ids = iter(next_tokens)
        for row in rows:
            row.sequence.computed = row.start + row.count
            if row.wants_token:
                row.sequence.output.append(next(ids))

    def retire(self) -> tuple[tuple[Sequence, ...], tuple[int, ...]]:
        """Takes finished sequences out; returns them and the blocks that are free again."""
        finished = tuple(s for s in self.running if s.is_finished)
        self.running = [s for s in self.running if not s.is_finished]
        freed = []
        for sequence in finished:
            self._unreserved_blocks += self.blocks_of(sequence.total_tokens)
            freed.extend(sequence.blocks)
            sequence.blocks = []
        self._free.extend(sorted(freed, reverse=True))
        return finished, tuple(freed)
