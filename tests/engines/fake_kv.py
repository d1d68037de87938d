"""KV memory that knows what is in it: every token that is written names all tokens before it.

So a block that was given away too early, moved too late, wiped, or written while somebody else held it
is found by whoever reads it next, whatever policy led there.
"""

from __future__ import annotations

from hashlib import blake2b

from memplan.engines.blocks import BlockBook
from memplan.engines.sequence import Move, Row, Sequence

VOCAB = 5
"""Few, so that prompts share heads by chance too."""


def next_token(tokens: list[int]) -> int:
    """A model: the next token follows from all before it."""
    return blake2b(bytes(tokens), digest_size=1).digest()[0] % VOCAB


def answer(prompt: list[int], output_tokens: int) -> list[int]:
    """What the model answers when it runs alone, and nothing is ever moved."""
    tokens = list(prompt)
    for _ in range(output_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeKv:
    """Contents of the pool's blocks and the tier's slots: for each token, the tokens up to it."""

    def __init__(self, book: BlockBook, *, blocks: int, slots: int) -> None:
        self._book = book
        self._width = book.block_tokens
        self._blocks: list[list[bytes | None]] = [self._empty() for _ in range(blocks)]
        self._slots: list[list[bytes | None]] = [self._empty() for _ in range(slots)]

    def log_probabilities(self) -> list[float]:
        return []

    def move(self, moves: tuple[Move, ...]) -> None:
        for move in moves:
            match move.kind:
                case "copy":
                    self._blocks[move.target] = list(self._blocks[move.source])
                case "out":
                    self._slots[move.target] = list(self._blocks[move.source])
                case "in":
                    self._blocks[move.target] = list(self._slots[move.source])

    def release(self, blocks: tuple[int, ...]) -> None:
        for block in blocks:
            assert not self._book._holders[block], "somebody holds it"
            self._blocks[block] = self._empty()

    def run(self, rows: tuple[Row, ...]) -> list[int]:
        for row in rows:
            tokens = self._known(row.sequence)
            for position in range(row.start):
                assert self._at(row.sequence, position) == bytes(tokens[: position + 1])
            for position in range(row.start, row.start + row.count):
                block = row.sequence.blocks[position // self._width]
                assert self._book._holders[block] == 1, "written while somebody else holds it"
                self._blocks[block][position % self._width] = bytes(tokens[: position + 1])
        return [next_token(self._known(row.sequence)) for row in rows if row.wants_token]

    def check_names(self) -> None:
        """What is shared under a key holds that key's tokens."""
        for block, (_, tokens) in self._book._tokens_of.items():
            written = self._blocks[block]
            last = written[-1]
            assert last is not None
            assert all(part is not None for part in written)
            assert list(last[-self._width :]) == tokens.tolist()

    def _at(self, sequence: Sequence, position: int) -> bytes | None:
        return self._blocks[sequence.blocks[position // self._width]][position % self._width]

    def _known(self, sequence: Sequence) -> list[int]:
        return [*sequence.prompt, *sequence.output]

    def _empty(self) -> list[bytes | None]:
        return [None] * self._width
