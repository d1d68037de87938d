"""Which tokens of which requests run in the next step, who may enter, and who has to make way.

Pure bookkeeping over block numbers: it knows nothing of tensors or processes, and is told the time.
Under the reservation ``whole`` a request enters once all blocks that it can ever need are free, so
nothing that runs is ever preempted; under ``prompt`` it enters when its prompt fits, and when blocks
run out the youngest of the lowest priority makes way.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from memplan.engines.batching import Batching
from memplan.engines.blocks import BlockBook, NoBlocksError, Sharing
from memplan.engines.queues import Lane, LaneLimits
from memplan.engines.sequence import Move, Refusal, Row, Sequence

Reserve = Literal["whole", "prompt"]
Preempt = Literal["recompute", "swap"]
Overload = Literal["wait", "reject", "fall_back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the scheduler decides. The defaults are continuous batching with nothing shared or moved."""

    batching: Batching | None = None
    """None: continuous."""
    chunk_prompts: bool = True
    """False: a prompt is read in one step, whatever ``max_batch_tokens`` says."""
    reserve: Reserve = "whole"
    preempt: Preempt = "recompute"
    sharing: Sharing = "off"
    slots: int = 0
    """Blocks that fit into the offload tier."""
    lanes: tuple[LaneLimits, ...] = ()
    queue_limit: int | None = None
    """Requests that may wait, in all lanes together."""
    overload: Overload = "wait"
    """What becomes of one more."""
    fall_back_tokens: int = 16
    """Output tokens of a request that came when the queue was full, under ``fall_back``."""
    class_blocks: Mapping[str, int] = field(default_factory=dict)
    """Blocks that the running requests of a class can need at most, together."""


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
        policy: Policy | None = None,
    ) -> None:
        self._policy = policy = policy or Policy()
        self._batching = policy.batching or Batching(most=max_requests)
        self.block_tokens = block_tokens
        self.max_batch_tokens = max_batch_tokens
        self._context_tokens = context_tokens
        self._max_requests = max_requests
        self._standing_blocks = pool_blocks
        self._limit_reason = self._standing_reason = "kv_pool"
        self.book = BlockBook(
            blocks=pool_blocks,
            block_tokens=block_tokens,
            sharing=policy.sharing,
            slots=policy.slots,
        )
        self.lanes = [Lane(limits) for limits in (policy.lanes or (LaneLimits(),))]
        self.running: list[Sequence] = []
        """In the order of admission."""
        self._ended: list[Sequence] = []
        """Finished, with their blocks held until the whole batch has ended."""

    # --- what there is -----------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting_count)

    @property
    def waiting(self) -> list[Sequence]:
        """In the order of their lanes, and within one in the order in which they will enter."""
        return [sequence for lane in self.lanes for sequence in lane.waiting]

    @property
    def waiting_count(self) -> int:
        return sum(len(lane.waiting) for lane in self.lanes)

    @property
    def reserved_blocks(self) -> int:
        """Blocks held, and those that running requests have still to take before they end."""
        return self.book.held + sum(self._missing_blocks(one) for one in self.running)

    def blocks_of(self, tokens: int) -> int:
        return self.book.blocks_of(tokens)

    def reserved_tokens(self, sequence: Sequence) -> int:
        """Tokens of the blocks that it can need at its end, or under ``prompt`` holds now."""
        if self._policy.reserve == "prompt":
            return len(sequence.blocks) * self.block_tokens
        return self.blocks_of(sequence.total_tokens) * self.block_tokens

    def limit_blocks(self, blocks: int, reason: str, *, for_ever: bool = False) -> None:
        """From now on at most so many are in use; requests that this holds up wait for ``reason``.
        ``for_ever``: one that needs more is refused. Otherwise one request may always run, alone."""
        self.book.limit = max(0, min(self._standing_blocks, blocks))
        self._limit_reason = reason
        if for_ever:
            self._standing_blocks = self.book.limit
            self._standing_reason = reason
        if self.book.limit == self._standing_blocks:
            self._limit_reason = self._standing_reason

    def opens_in_s(self, now_s: float) -> float:
        """Seconds until a waiting request may enter by itself, where nothing runs."""
        opens = self._batching.opens_in_s(
            now_s, running=len(self.running), waiting=self.waiting
        )
        return opens or 0.0

    # --- coming in ---------------------------------------------------------------------------

    def submit(self, sequence: Sequence, now_s: float = 0.0) -> Refusal | None:
        """Queues it, or says why it can never run or may not wait."""
        reason = self._refusal(sequence)
        if reason is None and self._is_full:
            match self._policy.overload:
                case "reject":
                    reason = "queue_full"
                case "fall_back":
                    sequence.is_shortened = self._policy.fall_back_tokens < sequence.output_tokens
                    sequence.output_tokens = min(
                        sequence.output_tokens, self._policy.fall_back_tokens
                    )
        if reason is not None:
            return Refusal(request_id=sequence.request_id, reason=reason)
        self._lane_of(sequence).join(sequence, now_s)
        return None

    def admit(self, now_s: float = 0.0) -> tuple[Sequence, ...]:
        """Moves waiting sequences into the batch while slots and blocks allow: in order within a lane,
        and each lane up to what holds its first one up."""
        opens = self._batching.opens_in_s(now_s, running=len(self.running), waiting=self.waiting)
        admitted = []
        for lane in self.lanes:
            while lane.waiting:
                reason = self._hindrance(lane, lane.waiting[0]) if opens == 0 else "batch"
                if reason is not None:
                    lane.held_up(reason, now_s)
                    break
                sequence = lane.leave(now_s)
                if sequence.slots:
                    self.book.swap_in(sequence)
                else:
                    self.book.adopt(sequence)
                self.running.append(sequence)
                admitted.append(sequence)
        return tuple(admitted)

    # --- a step ------------------------------------------------------------------------------

    def next_rows(self, now_s: float = 0.0) -> tuple[Row, ...]:
        """Every decode first, then prompt chunks, oldest first, within the step's token budget.

        Takes the blocks that the rows' tokens will be written to; sequences for which there are none
        make way (``take_moves`` says which bytes go where before the step).
        """
        rows: list[Row] = []
        budget = self.max_batch_tokens
        for sequence in [*filter(_is_decoding, self.running)]:
            if budget and sequence in self.running and self._room_for(sequence, 1, now_s, rows):
                rows.append(_row(sequence, 1))
                budget -= 1
        for sequence in [one for one in self.running if not one.is_decoding]:
            left = sequence.known_tokens - sequence.computed
            count = min(left, budget) if self._policy.chunk_prompts else left
            if count <= 0 or (not self._policy.chunk_prompts and rows and count > budget):
                break
            if sequence in self.running and self._room_for(sequence, count, now_s, rows):
                rows.append(_row(sequence, count))
                budget = max(0, budget - count)
        return tuple(rows)

    def commit(self, rows: tuple[Row, ...], next_tokens: list[int]) -> None:
        """Books a step that ran; ``next_tokens`` has one id for each row that wants a token."""
        ids = iter(next_tokens)
        for row in rows:
            row.sequence.computed = row.start + row.count
            self.book.publish(row.sequence)
            if row.wants_token:
                row.sequence.output.append(next(ids))

    def retire(self) -> tuple[tuple[Sequence, ...], tuple[int, ...]]:
        """Takes finished sequences out; returns them and the blocks that hold nothing any more."""
        finished = tuple(s for s in self.running if s.is_finished)
        self.running = [s for s in self.running if not s.is_finished]
        self._ended += finished
        if not self._batching.holds_finished or not self.running:
            for sequence in self._ended:
                self.book.drop(sequence.blocks)
                sequence.blocks = []
            self._ended = []
        return finished, self.book.take_freed()

    def take_moves(self) -> tuple[Move, ...]:
        """What must be moved before the next step, in this order."""
        return self.book.take_moves()

    # --- making way --------------------------------------------------------------------------

    def preempt(self, sequence: Sequence, now_s: float) -> None:
        """Back to the front of its lane; what it had computed goes to the tier, or is given up."""
        self.running.remove(sequence)
        sequence.preemptions += 1
        if self._policy.preempt != "swap" or not self.book.swap_out(sequence):
            self.book.drop(sequence.blocks)
            sequence.blocks = []
            sequence.computed = 0
        self._lane_of(sequence).join(sequence, now_s, in_front=True)

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence that is running or waiting, whatever it has computed."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self._lane_of(sequence).waiting.remove(sequence)
        self.book.drop(sequence.blocks, forget=True)
        self.book.drop_slots(sequence)
        sequence.blocks = []

    def youngest(self, besides: abc.Container[Sequence] = ()) -> Sequence | None:
        """Who makes way first: of the lowest priority, the one that was admitted last."""
        candidates = [one for one in self.running if one not in besides]
        if not candidates:
            return None
        lowest = min(one.priority for one in candidates)
        return [one for one in candidates if one.priority == lowest][-1]

    # --- steps -------------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        limit = self._policy.queue_limit
        return limit is not None and self.waiting_count >= limit

    def _refusal(self, sequence: Sequence) -> str | None:
        """Why it can never run."""
        need = self.blocks_of(sequence.total_tokens)
        lane = self._lane_of(sequence).limits
        if len(sequence.prompt) + sequence.output_tokens > self._context_tokens:
            return "exceeds_context"
        if need > self._standing_blocks:
            return f"exceeds_{self._standing_reason}"
        if lane.max_kv_tokens is not None and need * self.block_tokens > lane.max_kv_tokens:
            return "exceeds_lane"
        if need > self._policy.class_blocks.get(sequence.class_name, need):
            return "exceeds_class_budget"
        return None

    def _lane_of(self, sequence: Sequence) -> Lane:
        return next((lane for lane in self.lanes if lane.takes(sequence)), self.lanes[-1])

    def _hindrance(self, lane: Lane, sequence: Sequence) -> str | None:
        """Why it cannot enter now."""
        mine = [one for one in self.running if self._lane_of(one) is lane]
        limits = lane.limits
        need = self._entry_blocks(sequence)
        if len(self.running) >= self._max_requests:
            return "requests"
        if limits.max_requests is not None and len(mine) >= limits.max_requests:
            return "lane"
        if limits.max_kv_tokens is not None:
            blocks = self._all_blocks([*mine, sequence])
            if blocks * self.block_tokens > limits.max_kv_tokens:
                return "lane"
        most = self._policy.class_blocks.get(sequence.class_name)
        if most is not None:
            peers = [one for one in self.running if one.class_name == sequence.class_name]
            if self._all_blocks([*peers, sequence]) > most:
                return "class_budget"
        promised = 0
        if self._policy.reserve == "whole":
            promised = sum(self._missing_blocks(one) for one in self.running)
        is_alone_allowed = not self.running and self.book.limit < self._standing_blocks
        if need + promised > self.book.room and not is_alone_allowed:
            return self._limit_reason
        return None

    def _entry_blocks(self, sequence: Sequence) -> int:
        """Blocks that must be free for it to enter."""
        if self._policy.reserve == "whole":
            return self.blocks_of(sequence.total_tokens) - self.book.held_already(sequence)
        # One more, so that it does not have to make way for itself at its first token.
        most = self.blocks_of(sequence.total_tokens)
        held = self.book.held_already(sequence)
        return min(self.blocks_of(sequence.known_tokens) + 1, most) - held

    def _missing_blocks(self, sequence: Sequence) -> int:
        return self.blocks_of(sequence.total_tokens) - len(sequence.blocks)

    def _all_blocks(self, sequences: list[Sequence]) -> int:
        return sum(self.blocks_of(one.total_tokens) for one in sequences)

    def _room_for(self, sequence: Sequence, count: int, now_s: float, rows: list[Row]) -> bool:
        """Takes the blocks of its next ``count`` tokens, from others if need be. False: it had to make
        way itself."""
        missing = self.blocks_of(sequence.computed + count) - len(sequence.blocks)
        while missing > 0:
            try:
                is_alone = self.running == [sequence]
                sequence.blocks += self.book.take(missing, beyond_limit=is_alone)
                break
            except NoBlocksError:
                victim = self.youngest([row.sequence for row in rows])
                assert victim is not None  # the sequence itself, at least
                self.preempt(victim, now_s)
                if victim is sequence:
                    return False
        return True


def _is_decoding(sequence: Sequence) -> bool:
    return sequence.is_decoding


def _row(sequence: Sequence, count: int) -> Row:
    return Row(
        sequence=sequence,
        start=sequence.computed,
        count=count,
        is_decode=sequence.is_decoding,
        wants_token=sequence.computed + count == sequence.known_tokens,
    )
