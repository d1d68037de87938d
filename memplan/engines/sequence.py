"""What the scheduler books: a request inside the engine, its part of a step, and what must move."""

from __future__ import annotations

from array import array
from collections import abc
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class Pace(NamedTuple):
    """Not sooner than: when the tokens of an answer are due, on the clock of the run."""

    first_token_s: float
    token_s: float
    """From one token to the next."""
    tick_s: float
    """All that is due falls on a multiple of it, so that those that run decode in one step, as in an
    engine whose time per token is that of a step."""

    def due_s(self, token: int) -> float:
        """Of output token number ``token``, the first being 0."""
        return round((self.first_token_s + token * self.token_s) / self.tick_s) * self.tick_s


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the engine. ``computed`` counts tokens whose KV is in its blocks, or in its
    slots of the tier. Two are never equal."""

    request_id: str
    prompt: abc.Sequence[int]
    output_tokens: int
    class_name: str = ""
    priority: int = 0
    """Higher is preempted later."""
    adapter: str = ""
    """The LoRA adapter that computes it; empty for none. KV depends on it."""
    pace: Pace | None = None
    """None: as fast as it goes."""
    output: array[int] = field(default_factory=lambda: array("i"))
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    keys: list[bytes] = field(default_factory=list)
    """One for each full block of its known tokens, as far as they were needed; see ``blocks.chain``."""
    published: int = 0
    """So many of its blocks, the first ones, are known to others by their keys."""
    slots: list[int] = field(default_factory=list)
    """Where its blocks are in the offload tier, while it is preempted."""
    queued_s: float = 0.0
    waited_s: dict[str, float] = field(default_factory=dict)
    """Time in the queue, by what was in the way."""
    waited_before_s: dict[str, float] = field(default_factory=dict)
    """What its lane had waited when it was queued."""
    shared_tokens: int = 0
    """Prompt tokens that others had computed already."""
    log_probability: float = 0.0
    """Of its answer so far, where that is asked for."""
    preemptions: int = 0
    pulled_blocks: int = 0
    """Blocks that came back from the offload tier for it."""
    is_shortened: bool = False
    """The queue was full, and it is answered with fewer tokens than were asked for."""

    @property
    def root(self) -> bytes:
        """The key before that of its first block: who runs with another adapter shares none."""
        return self.adapter.encode()

    @property
    def known_tokens(self) -> int:
        """Tokens that are known: the prompt, and what was put out so far."""
        return len(self.prompt) + len(self.output)

    @property
    def total_tokens(self) -> int:
        """Tokens whose KV it will hold at its end: the last output token's KV is never written."""
        return len(self.prompt) + self.output_tokens - 1

    @property
    def is_finished(self) -> bool:
        return len(self.output) == self.output_tokens

    @property
    def is_decoding(self) -> bool:
        """Everything known but the newest output token is computed."""
        return bool(self.output) and self.computed == self.known_tokens - 1

    @property
    def due_s(self) -> float:
        """When its next token may be computed."""
        return self.pace.due_s(len(self.output)) if self.pace is not None else 0.0

    def token(self, position: int) -> int:
        prompt_tokens = len(self.prompt)
        if position < prompt_tokens:
            return self.prompt[position]
        return self.output[position - prompt_tokens]

    def tokens(self, start: int, stop: int) -> array[int]:
        """Known tokens of positions [start, stop)."""
        prompt_tokens = len(self.prompt)
        if stop <= prompt_tokens:
            return array("i", self.prompt[start:stop])
        head = array("i", self.prompt[start:prompt_tokens])
        return head + self.output[max(0, start - prompt_tokens) : stop - prompt_tokens]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``count`` tokens of one sequence, from position ``start``."""

    sequence: Sequence
    start: int
    count: int
    is_decode: bool = False
    """The newest output token alone; else a part of what must be read before the next one."""
    wants_token: bool = False
    """It ends at the newest token, so its logits choose the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    request_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """What the runner does with KV bytes before it computes a step; moves are done in their order."""

    kind: Literal["copy", "out", "in"]
    """Block to block; block to a slot of the offload tier; slot to block."""
    source: int
    target: int
