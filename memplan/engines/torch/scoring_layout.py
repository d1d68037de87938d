"""Which tokens are scored and what is continued: passages of token ids in, windows and prompts out.

Pure, and the same for every variant: what a layout changes in a figure must not look like quality.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WINDOW_TOKENS = 1024
"""Of context at most. What is longer is cut, and each window begins with nothing before it."""
MOST_SCORED = 2048
MOST_PASSAGES = 64
MOST_CHARACTERS = 32 * MOST_SCORED
"""Of a passage: more tokens than can be scored, whatever the language."""
CHUNK_TOKENS = 64
"""Read in one step. All their logits live at once: 64 · 49,152 · 4 bytes are 12 MiB."""
ANSWERS = 8
ANSWER_TOKENS = 32
PROMPT_TOKENS = 512
"""Of a prompt that is continued, the last so many."""
PIECE_TOKENS = 64
"""Of a text that holds no prompts: so many from each of several places are continued."""
_SEED = 0

Ids = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringLayout:
    windows: tuple[tuple[int, ...], ...]
    """Every token but the first of each is scored."""
    prompts: tuple[tuple[int, ...], ...]

    @property
    def scored_tokens(self) -> int:
        return sum(len(window) - 1 for window in self.windows)

    @property
    def all_tokens(self) -> int:
        """What there is to do, for showing how far it is."""
        return sum(map(len, self.windows)) + ANSWER_TOKENS * bool(self.prompts)


def passages_to_read(passages: Sequence[str | Ids]) -> list[str | Ids]:
    """Those that a layout can use of a long list, drawn evenly, and of each the part that it can use."""
    chosen: Sequence[str | Ids] = passages
    if len(passages) > MOST_PASSAGES:
        places = sorted(random.Random(_SEED).sample(range(len(passages)), MOST_PASSAGES))
        chosen = [passages[place] for place in places]
    return [one[:MOST_CHARACTERS] for one in chosen]


def scoring_layout(
    passages: Sequence[Ids], *, begin: Ids, are_prompts: bool, context_tokens: int
) -> ScoringLayout:
    """``begin``: what the model wants in front of any text, such as one token, or nothing."""
    passages = [passage for passage in passages if passage]
    room = min(WINDOW_TOKENS, context_tokens) - len(begin)
    share = _fair_share([len(passage) for passage in passages])
    windows = (
        (*begin, *passage[at : min(at + room, share)])
        for passage in passages
        for at in range(0, min(len(passage), share), room)
    )
    most = min(PROMPT_TOKENS, context_tokens - ANSWER_TOKENS) - len(begin)
    found = _chosen(passages) if are_prompts else _pieces(passages)
    return ScoringLayout(
        windows=tuple(window for window in windows if len(window) > 1),
        prompts=tuple((*begin, *one[-most:]) for one in found) if most > 0 else (),
    )


def _fair_share(lengths: Sequence[int]) -> int:
    """The most tokens of a passage, so that all of them together are MOST_SCORED at most."""
    left = MOST_SCORED
    for number, length in enumerate(sorted(lengths)):
        if length * (len(lengths) - number) > left:
            return left // (len(lengths) - number)
        left -= length
    return MOST_SCORED


def _chosen(prompts: Sequence[Ids]) -> Iterator[Ids]:
    """Evenly from the first to the last."""
    count = min(ANSWERS, len(prompts))
    return (prompts[number * len(prompts) // count] for number in range(count))


def _pieces(passages: Sequence[Ids]) -> Iterator[Ids]:
    text = [token for passage in passages for token in passage]
    last = max(0, len(text) - PIECE_TOKENS)
    places = sorted({number * last // (ANSWERS - 1) for number in range(ANSWERS)})
    return (text[place : place + PIECE_TOKENS] for place in places)
