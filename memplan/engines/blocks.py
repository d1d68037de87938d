"""The books of the KV pool: who holds which block, which blocks hold the same tokens, what moves.

Pure: numbers of blocks and of slots in the offload tier, never their bytes. A block whose tokens are
all computed has a key, which names those tokens and everything before them; two sequences that begin
alike hold the same blocks. A block that is written never changes while somebody else holds it: who
shares a part of one gets a copy.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b
from typing import Literal

from memplan.engines.sequence import Move, Sequence

Sharing = Literal["off", "running", "kept"]
"""kept: blocks stay when their last holder ends, until their room is needed."""


class NoBlocksError(Exception):
    """Every block is held by somebody."""


def chain(before: bytes, tokens: array[int]) -> bytes:
    """The key of a full block: of its own tokens and, through ``before``, of all that precede them."""
    return blake2b(before + tokens.tobytes(), digest_size=16).digest()


class BlockBook:
    """``blocks`` in the pool, ``slots`` in the offload tier; ``limit`` of them may be in use at once."""

    def __init__(
        self, *, blocks: int, block_tokens: int, sharing: Sharing = "off", slots: int = 0
    ) -> None:
        self.block_tokens = block_tokens
        self.limit = blocks
        self._blocks = blocks
        self._sharing = sharing
        # Low numbers first, and the last one freed first: the touched part of the pool stays small.
        self._free = list(range(blocks - 1, -1, -1))
        self._holders = [0] * blocks
        self._shared = 0
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._tokens_of: dict[int, tuple[bytes, array[int]]] = {}
        """Of a block with a key: the key before it, and its own tokens."""
        self._after: dict[bytes, int] = {}
        """A block that follows this key, to copy the head of."""
        self._kept: OrderedDict[int, None] = OrderedDict()
        """With a key and without a holder, the longest unused first."""
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()
        """Keys that are in the tier and in nobody's hands, the longest unused first."""
        self._free_slots = list(range(slots - 1, -1, -1))
        self._slots = slots
        self.is_plain = sharing == "off" and not slots
        """Nothing is shared, kept or offloaded, ever."""
        self._moves: list[Move] = []
        self._freed: set[int] = set()

    # --- what there is -----------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Blocks that running sequences hold, each counted once."""
        return self._blocks - len(self._free) - len(self._kept)

    @property
    def shared(self) -> int:
        """Of them, those with more than one holder."""
        return self._shared

    @property
    def kept(self) -> int:
        return len(self._kept)

    @property
    def offloaded(self) -> int:
        return self._slots - len(self._free_slots)

    @property
    def leaving(self) -> int:
        """Blocks that hold nothing any more, until ``take_freed``."""
        return len(self._freed)

    @property
    def resident(self) -> int:
        """Blocks that may have been written, and whose memory was not given back."""
        return self.held + self.kept + self.leaving

    def gauges(self, block_bytes: int) -> dict[str, int]:
        """Bytes of blocks: those that running requests hold, whole, written or not; of them those that
        several hold; those kept for who may come; those in the offload tier; and those that hold
        nothing any more, and are resident until they are given back."""
        held = {"engine.kv_blocks": self.held * block_bytes}
        if self._freed:
            held["engine.kv_leaving"] = self.leaving * block_bytes
        if self.is_plain:
            return held
        return {
            **held,
            "engine.kv_shared": self.shared * block_bytes,
            "engine.kv_kept": self.kept * block_bytes,
            "engine.kv_offloaded": self.offloaded * block_bytes,
        }

    @property
    def room(self) -> int:
        """Blocks that ``take`` could give now; kept ones make way."""
        return min(self.limit - self.held, len(self._free) + len(self._kept))

    def blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def shared_away(self, sequence: Sequence) -> float:
        """Of the blocks that it holds, what other holders answer for: a block of n holders is 1/n of
        each."""
        if not self._shared:
            return 0.0
        return sum(1 - 1 / self._holders[block] for block in sequence.blocks)

    def held_already(self, sequence: Sequence) -> int:
        """How many of the blocks that it would adopt others hold now, so that they take no room."""
        count = 0
        for key in self._shareable(sequence):
            block = self._block_of.get(key)
            if block is None or not self._holders[block]:
                break
            count += 1
        return count

    def limit_to(self, blocks: int) -> None:
        """From now on at most so many are in use. Kept ones beyond that make way at once, held ones
        stay until they are dropped."""
        self.limit = blocks
        self._keep_within_limit()

    # --- taking and giving back --------------------------------------------------------------

    def take(self, count: int, *, beyond_limit: bool = False) -> list[int]:
        """Raises NoBlocksError, and takes none, when there is no room for all."""
        free = len(self._free) + len(self._kept)
        if count > (free if beyond_limit else self.room):
            raise NoBlocksError
        taken = []
        for _ in range(count):
            if self._kept and (not self._free or self.held + len(self._kept) >= self.limit):
                self._evict()
            block = self._free.pop()
            self._freed.discard(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def drop(self, blocks: list[int], *, forget: bool = False) -> None:
        """One holder less for each. ``forget``: what nobody else holds is not kept either."""
        freed = []
        # The last first, and so evicted first: a block is of use only while all before it are there.
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 1:
                self._shared -= 1
            if self._holders[block]:
                continue
            if self._sharing == "kept" and block in self._key_of and not forget:
                self._kept[block] = None
            else:
                self._forget(block)
                freed.append(block)
        self._give_back(freed)
        self._keep_within_limit()

    def give_up(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Drops all that it holds, in the pool and in the tier."""
        self.drop(sequence.blocks, forget=forget)
        self._drop_slots(sequence)
        sequence.blocks = []
        sequence.published = 0

    def evict_kept(self, most: int | None = None) -> int:
        """Makes kept blocks free, into the tier where it has room; returns how many."""
        count = len(self._kept) if most is None else min(most, len(self._kept))
        for _ in range(count):
            self._evict()
        return count

    def take_moves(self) -> tuple[Move, ...]:
        moves, self._moves = tuple(self._moves), []
        return moves

    def take_freed(self) -> tuple[int, ...]:
        """Blocks that hold nothing any more, and were not taken again. Those that a pending move still
        reads or writes come at the next call."""
        pending = {move.source for move in self._moves if move.kind != "in"}
        pending |= {move.target for move in self._moves if move.kind != "out"}
        freed = self._freed - pending
        self._freed -= freed
        return tuple(sorted(freed))

    # --- sharing -----------------------------------------------------------------------------

    def adopt(self, sequence: Sequence) -> None:
        """Gives it the blocks that hold the head of its tokens already: all but the last token's at
        most, whose logits are needed. Pulls them back from the tier where they are there."""
        if self._sharing == "off":
            return
        before = sequence.root
        for key in self._shareable(sequence):
            block = self._held_block(key, sequence)
            if block is None:
                break
            sequence.blocks.append(block)
            before = key
        sequence.published = len(sequence.blocks)
        sequence.computed = len(sequence.blocks) * self.block_tokens
        self._copy_head(sequence, before, sequence.known_tokens - 1)
        if not sequence.preemptions:  # else some of it is its own
            sequence.shared_tokens = sequence.computed

    def publish(self, sequence: Sequence) -> None:
        """Makes its newly full blocks known to others."""
        if self._sharing == "off":
            return
        full = sequence.computed // self.block_tokens
        if full == sequence.published:
            return
        keys = self._keys(sequence)
        for index in range(sequence.published, full):
            if keys[index] not in self._block_of:  # else others hold the same tokens
                before = keys[index - 1] if index else sequence.root
                tokens = self._tokens_at(sequence, index)
                self._name(sequence.blocks[index], keys[index], before, tokens)
        sequence.published = full

    # --- the offload tier --------------------------------------------------------------------

    def swap_out(self, sequence: Sequence) -> bool:
        """Moves its blocks to the tier. False, and nothing is done, when the tier has no room."""
        if len(sequence.blocks) > len(self._free_slots) + len(self._slot_of):
            return False
        sequence.slots = [self._slot() for _ in sequence.blocks]
        self._moves += [
            Move("out", block, slot)
            for block, slot in zip(sequence.blocks, sequence.slots, strict=True)
        ]
        self.drop(sequence.blocks, forget=True)
        sequence.blocks = []
        sequence.published = 0
        return True

    def swap_in(self, sequence: Sequence, *, beyond_limit: bool = False) -> None:
        """Its blocks back: those that are in the pool already are shared, the others pulled. Raises
        NoBlocksError when there is no room for them."""
        for key in self._shareable(sequence):
            block = self._block_of.get(key)
            if block is None:
                break
            self._hold(block)
            sequence.blocks.append(block)
        sequence.published = len(sequence.blocks)
        slots = sequence.slots[len(sequence.blocks) :]
        blocks = self.take(len(slots), beyond_limit=beyond_limit)
        self._moves += [Move("in", slot, block) for slot, block in zip(slots, blocks, strict=True)]
        sequence.blocks += blocks
        sequence.pulled_blocks += len(slots)
        self._drop_slots(sequence)

    # --- steps -------------------------------------------------------------------------------

    def _drop_slots(self, sequence: Sequence) -> None:
        self._free_slots += sequence.slots
        sequence.slots = []

    def _keep_within_limit(self) -> None:
        beyond = self.held + len(self._kept) - self.limit
        if self._kept and beyond > 0:
            self.evict_kept(beyond)

    def _shareable(self, sequence: Sequence) -> list[bytes]:
        """Keys of the blocks that it may hold together with others: of all but its last token, whose
        logits are needed; of what it had computed, when it comes back from the tier."""
        tokens = sequence.computed if sequence.slots else sequence.known_tokens - 1
        return self._keys(sequence)[: tokens // self.block_tokens]

    def _keys(self, sequence: Sequence) -> list[bytes]:
        """Of all full blocks of its known tokens."""
        if self._sharing == "off":
            return []
        for index in range(len(sequence.keys), sequence.known_tokens // self.block_tokens):
            before = sequence.keys[-1] if index else sequence.root
            sequence.keys.append(chain(before, self._tokens_at(sequence, index)))
        return sequence.keys

    def _tokens_at(self, sequence: Sequence, index: int) -> array[int]:
        return sequence.tokens(index * self.block_tokens, (index + 1) * self.block_tokens)

    def _held_block(self, key: bytes, sequence: Sequence) -> int | None:
        """The block of this key with one holder more, wherever it is; None when it is nowhere."""
        block = self._block_of.get(key)
        if block is not None:
            self._hold(block)
            return block
        slot = self._slot_of.pop(key, None)
        if slot is None:
            return None
        if self.room < 1:
            self._slot_of[key] = slot
            return None
        (block,) = self.take(1)
        self._moves.append(Move("in", slot, block))
        self._free_slots.append(slot)
        index = len(sequence.blocks)
        before = sequence.keys[index - 1] if index else sequence.root
        self._name(block, key, before, self._tokens_at(sequence, index))
        sequence.pulled_blocks += 1
        return block

    def _hold(self, block: int) -> None:
        self._kept.pop(block, None)
        self._holders[block] += 1
        if self._holders[block] == 2:
            self._shared += 1

    def _copy_head(self, sequence: Sequence, before: bytes, most: int) -> None:
        """Where another block goes on with the same tokens and then differs: a copy of it."""
        source = self._after.get(before)
        if source is None or self.room < 1 or (source in self._kept and self.room < 2):
            return
        start = sequence.computed
        wanted = sequence.tokens(start, min(most, start + self.block_tokens))
        _, tokens = self._tokens_of[source]
        same = 0
        while same < len(wanted) and wanted[same] == tokens[same]:
            same += 1
        if not same:
            return
        self._hold(source)  # so that taking a block cannot evict it
        sequence.blocks += (copy := self.take(1))
        self._moves.append(Move("copy", source, copy[0]))
        self.drop([source])
        sequence.computed += same

    def _name(self, block: int, key: bytes, before: bytes, tokens: array[int]) -> None:
        self._key_of[block] = key
        self._block_of[key] = block
        self._tokens_of[block] = (before, tokens)
        self._after[before] = block

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is None:
            return
        del self._block_of[key]
        before, _ = self._tokens_of.pop(block)
        if self._after.get(before) == block:
            del self._after[before]

    def _evict(self) -> None:
        """Frees the kept block that was unused the longest."""
        block, _ = self._kept.popitem(last=False)
        key = self._key_of[block]
        if key in self._slot_of:  # it was there before, and somebody computed it again
            self._slot_of.move_to_end(key)
        elif self._free_slots or self._slot_of:
            slot = self._slot()
            self._moves.append(Move("out", block, slot))
            self._slot_of[key] = slot
        self._forget(block)
        self._give_back([block])

    def _slot(self) -> int:
        """A free slot; the block in the tier that was unused the longest makes way."""
        if self._free_slots:
            return self._free_slots.pop()
        return self._slot_of.popitem(last=False)[1]

    def _give_back(self, blocks: list[int]) -> None:
        self._freed.update(blocks)
        self._free.extend(sorted(blocks, reverse=True))
