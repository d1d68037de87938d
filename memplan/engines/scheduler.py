"""Which tokens of which requests run in the next step, who may enter, and who has to make way.

Pure bookkeeping over block numbers: it knows nothing of tensors or processes, and is told the time.
Under the reservation ``whole`` a request enters once all blocks that it can ever need are free, so
nothing that runs is preempted unless a limit falls; under ``prompt`` it enters when its prompt fits,
under ``expected`` when as many output tokens do as are expected, and when blocks run out the youngest of
the lowest priority makes way.
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

Reserve = Literal["whole", "prompt", "expected"]
Preempt = Literal["recompute", "swap"]
Overload = Literal["wait", "reject", "fall_back"]
POOL, BUDGET, PRESSURE = "kv_pool", "memory_budget", "memory_pressure"
"""What limits the blocks in use, in the words of what requests wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the scheduler decides. The defaults are continuous batching with nothing shared or moved."""

    batching: Batching | None = None
    """None: continuous."""
    chunk_prompts: bool = True
    """False: a prompt is read in one step, whatever ``max_batch_tokens`` says."""
    reserve: Reserve = "whole"
    expected_output_tokens: int = 0
    """That a request is admitted for under ``expected``, if it may put out so many."""
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
    adapters: int | None = None
    """LoRA adapters that running requests may have, together."""
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
        self._limits: dict[str, tuple[int, bool]] = {POOL: (pool_blocks, True)}
        """Blocks that may be in use, and whether who needs more is refused, by reason."""
        self.book = BlockBook(
            blocks=pool_blocks,
            block_tokens=block_tokens,
            sharing=policy.sharing,
            slots=policy.slots,
        )
        self.lanes = [Lane(limits) for limits in (policy.lanes or (LaneLimits(),))]
        self.is_plain = self.book.is_plain and policy.reserve == "whole"
        """Each request has blocks of its own, and all that it can need is reserved."""
        self.running: list[Sequence] = []
        """In the order of admission."""
        self._ended: list[Sequence] = []
        """Finished, with their blocks held until the whole batch has ended."""
        self._entered: list[Sequence] = []
        """Since the last ``admit``."""

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
        count = 0
        for lane in self.lanes:  # asked at every step, between computations: no generator's frames
            count += len(lane.waiting)
        return count

    @property
    def reserved_blocks(self) -> int:
        """Blocks held, and those that running requests have still to take before they end."""
        return self.book.held + sum(self._missing_blocks(one) for one in self.running)

    def blocks_of(self, tokens: int) -> int:
        return self.book.blocks_of(tokens)

    def reserved_tokens(self, sequence: Sequence, *, blocks: int, known_tokens: int) -> int:
        """Tokens of the blocks that it can need at its end, under ``expected`` is expected to, or under
        ``prompt`` holds, at a time when it holds so many ``blocks``."""
        if self._policy.reserve == "prompt":
            return blocks * self.block_tokens
        return max(blocks, self._promised_to(sequence, known_tokens)) * self.block_tokens

    def limit_blocks(self, reason: str, blocks: int, *, refuses: bool = False) -> None:
        """From now on at most so many are in use; requests that this holds up wait for ``reason``, and
        one may always run, alone. ``refuses``: who comes and needs more is refused."""
        self._limits[reason] = (max(0, blocks), refuses)
        self._apply_limits()

    def lift_limit(self, reason: str) -> None:
        self._limits.pop(reason, None)
        self._apply_limits()

    def opens_in_s(self, now_s: float) -> float:
        """Seconds until a waiting request may enter by itself, where nothing runs."""
        opens = self._batching.opens_in_s(now_s, running=len(self.running), waiting=self.waiting)
        return opens or 0.0

    # --- coming in ---------------------------------------------------------------------------

    def submit(self, sequence: Sequence, now_s: float = 0.0) -> Refusal | None:
        """Queues it, or says why it can never run or may not wait."""
        reason = self._refusal(sequence)
        if reason is None and self._is_full:
            self._let_in(now_s)  # who need not wait any more takes no place in the queue
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
        self._let_in(now_s)
        admitted, self._entered = tuple(self._entered), []
        return admitted

    # --- a step ------------------------------------------------------------------------------

    def next_rows(self, now_s: float = 0.0) -> tuple[Row, ...]:
        """Every decode first, then prompt chunks, by priority and the oldest first, within the step's
        token budget.

        Takes the blocks that the rows' tokens will be written to; sequences for which there are none
        make way (``take_moves`` says which bytes go where before the step). Of one with a pace the
        token that would bring its next one too soon is left for later: where nothing else is to be
        done there are no rows, until ``due_in_s``.
        """
        rows: list[Row] = []
        budget = self.max_batch_tokens
        for sequence in [one for one in self._by_priority() if one.is_decoding]:
            if budget and sequence in self.running and sequence.due_s <= now_s:
                budget -= self._schedule(sequence, 1, now_s, rows)
        for sequence in [one for one in self._by_priority() if not one.is_decoding]:
            if sequence not in self.running:
                continue
            left = sequence.known_tokens - sequence.computed
            if sequence.due_s > now_s:
                left -= 1
                if left < 1:
                    continue
            count = min(left, budget) if self._policy.chunk_prompts else left
            if count < 1 or (rows and count > budget):
                break
            budget -= self._schedule(sequence, count, now_s, rows)
        return tuple(rows)

    def due_in_s(self, now_s: float) -> float:
        """Seconds until the next token of those that run is due; 0 where one is, or nothing runs."""
        return max(0.0, min((one.due_s for one in self.running), default=now_s) - now_s)

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
            self._drop_ended()
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
            self.book.give_up(sequence)
            sequence.computed = 0
        self._lane_of(sequence).join(sequence, now_s, in_front=True)

    def find(self, request_id: str) -> Sequence | None:
        """Among those that run or wait."""
        known = (one for group in (self.running, self.waiting) for one in group)
        return next((one for one in known if one.request_id == request_id), None)

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence that is running or waiting, whatever it has computed."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self._lane_of(sequence).waiting.remove(sequence)
        self.book.give_up(sequence, forget=True)

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
        if len(sequence.prompt) + sequence.output_tokens > self._context_tokens:
            return "exceeds_context"
        for reason, (blocks, refuses) in self._limits.items():
            if refuses and need > blocks:
                return f"exceeds_{reason}"
        lane = next((lane for lane in self.lanes if lane.takes(sequence)), None)
        if lane is None or not lane.limits.fits(need * self.block_tokens):
            return "exceeds_lane"
        if need > self._policy.class_blocks.get(sequence.class_name, need):
            return "exceeds_class_budget"
        return None

    def _lane_of(self, sequence: Sequence) -> Lane:
        """Of one that was not refused."""
        return next(lane for lane in self.lanes if lane.takes(sequence))

    def _apply_limits(self) -> None:
        self.book.limit_to(min(blocks for blocks, _ in self._limits.values()))

    @property
    def _limit_reason(self) -> str:
        """The limit that holds now; of equal ones the first that was set."""
        return min(self._limits, key=lambda reason: self._limits[reason][0])

    def _let_in(self, now_s: float) -> None:
        opens = self._batching.opens_in_s(now_s, running=len(self.running), waiting=self.waiting)
        left_tokens = self._batching.group_tokens
        for lane in self.lanes:
            while lane.waiting:
                is_open = opens == 0 and (left_tokens is None or left_tokens > 0)
                reason = self._hindrance(lane, lane.waiting[0]) if is_open else "batch"
                if reason is not None:
                    lane.held_up(reason, now_s)
                    break
                sequence = lane.leave(now_s)
                if left_tokens is not None:
                    left_tokens -= sequence.known_tokens
                if sequence.slots:
                    self.book.swap_in(sequence, beyond_limit=not self.running)
                else:
                    self.book.adopt(sequence)
                self.running.append(sequence)
                self._entered.append(sequence)

    def _hindrance(self, lane: Lane, sequence: Sequence) -> str | None:
        """Why it cannot enter now."""
        if len(self.running) >= self._max_requests:
            return "requests"
        mine = [one for one in self.running if self._lane_of(one) is lane]
        if lane.limits.max_requests is not None and len(mine) >= lane.limits.max_requests:
            return "lane"
        if not lane.limits.fits(self._all_blocks([*mine, sequence]) * self.block_tokens):
            return "lane"
        most = self._policy.class_blocks.get(sequence.class_name)
        if most is not None:
            peers = [one for one in self.running if one.class_name == sequence.class_name]
            if self._all_blocks([*peers, sequence]) > most:
                return "class_budget"
        adapters = {one.adapter for one in [*self.running, sequence] if one.adapter}
        if self._policy.adapters is not None and len(adapters) > self._policy.adapters:
            return "adapters"
        need = self._entry_blocks(sequence) + self._promised_blocks()
        # Alone it may go beyond a limit that fell while it waited, or it would wait for ever.
        return self._limit_reason if self.running and need > self.book.room else None

    def _promised_blocks(self) -> int:
        """What those that run will still take, and nobody else may: ``_promised_to`` each. Under
        pressure of memory it is all in any case: what falls must not be filled up again."""
        if PRESSURE in self._limits:
            return sum(self._missing_blocks(one) for one in self.running)
        return sum(
            max(0, self._promised_to(one, one.known_tokens) - len(one.blocks))
            for one in self.running
        )

    def _promised_to(self, sequence: Sequence, known_tokens: int) -> int:
        """Blocks for all that it can need, for what it is expected to, or for its known tokens."""
        whole = self.blocks_of(sequence.total_tokens)
        if self._policy.reserve == "whole":
            return whole
        known = self.blocks_of(known_tokens)
        if self._policy.reserve == "prompt":
            return known
        tokens = len(sequence.prompt) + self._policy.expected_output_tokens - 1
        return min(whole, max(known, self.blocks_of(tokens)))

    def _entry_blocks(self, sequence: Sequence) -> int:
        """Blocks that must be free for it to enter."""
        need = self._promised_to(sequence, sequence.known_tokens)
        if self._policy.reserve == "prompt":
            # One more, so that it does not have to make way for itself at its first token.
            need = min(need + 1, self.blocks_of(sequence.total_tokens))
        return need - self.book.held_already(sequence)

    def _missing_blocks(self, sequence: Sequence) -> int:
        return self.blocks_of(sequence.total_tokens) - len(sequence.blocks)

    def _all_blocks(self, sequences: list[Sequence]) -> int:
        return sum(self.blocks_of(one.total_tokens) for one in sequences)

    def _by_priority(self) -> list[Sequence]:
        return sorted(self.running, key=lambda one: -one.priority)

    def _schedule(self, sequence: Sequence, count: int, now_s: float, rows: list[Row]) -> int:
        """A row for its next ``count`` tokens, whose blocks it takes from others if need be: from who
        has no row yet, or has a lower priority. Without blocks it makes way itself. Returns the tokens
        that this adds to the step."""
        added = 0
        missing = self.blocks_of(sequence.computed + count) - len(sequence.blocks)
        while missing > 0:
            try:
                is_alone = self.running == [sequence]
                sequence.blocks += self.book.take(missing, beyond_limit=is_alone)
                break
            except NoBlocksError:
                if self._ended:  # before anybody's work is thrown away
                    self._drop_ended()
                    continue
                sure = [row.sequence for row in rows if row.sequence.priority >= sequence.priority]
                victim = self.youngest(besides=sure)
                assert victim is not None  # the sequence itself, at least
                self.preempt(victim, now_s)
                if victim is sequence:
                    return added
                added -= sum(row.count for row in rows if row.sequence is victim)
                rows[:] = [row for row in rows if row.sequence is not victim]
        rows.append(_row(sequence, count))
        return added + count

    def _drop_ended(self) -> None:
        for sequence in self._ended:
            self.book.give_up(sequence)
        self._ended = []


def _row(sequence: Sequence, count: int) -> Row:
    return Row(
        sequence=sequence,
        start=sequence.computed,
        count=count,
        is_decode=sequence.is_decoding,
        wants_token=sequence.computed + count == sequence.known_tokens,
    )
