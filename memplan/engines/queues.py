"""Where requests wait: a queue for each lane, first come first served within it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from memplan.engines.sequence import Sequence

STEP = "step"
"""The reason of who came while a step ran, and enters at the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """A lane takes prompts of up to ``up_to_tokens`` that no lane before it took. None: no limit."""

    up_to_tokens: int | None = None
    max_requests: int | None = None
    max_kv_tokens: int | None = None
    """KV that its running requests can need at most, together."""

    def fits(self, kv_tokens: int) -> bool:
        return self.max_kv_tokens is None or kv_tokens <= self.max_kv_tokens


class Lane:
    """One queue, and what its waiting requests waited for."""

    def __init__(self, limits: LaneLimits) -> None:
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self._waited_s: dict[str, float] = {}
        self._reason = STEP
        self._looked_s = 0.0

    def takes(self, sequence: Sequence) -> bool:
        up_to = self.limits.up_to_tokens
        return up_to is None or len(sequence.prompt) <= up_to

    def join(self, sequence: Sequence, now_s: float, *, in_front: bool = False) -> None:
        self._look(now_s)
        if not self.waiting:
            self._reason = STEP
        sequence.queued_s = now_s
        sequence.waited_before_s = dict(self._waited_s)
        if in_front:
            self.waiting.appendleft(sequence)
        else:
            self.waiting.append(sequence)

    def held_up(self, reason: str, now_s: float) -> None:
        """The first one cannot enter, and those behind it wait for the same from now on."""
        self._look(now_s)
        self._reason = reason

    def leave(self, now_s: float) -> Sequence:
        """The first one enters."""
        self._look(now_s)
        sequence = self.waiting.popleft()
        for reason, waited_s in self._waited_s.items():
            own_s = waited_s - sequence.waited_before_s.get(reason, 0.0)
            if own_s > 0:
                sequence.waited_s[reason] = sequence.waited_s.get(reason, 0.0) + own_s
        return sequence

    def _look(self, now_s: float) -> None:
        if self.waiting:
            passed_s = now_s - self._looked_s
            self._waited_s[self._reason] = self._waited_s.get(self._reason, 0.0) + passed_s
        self._looked_s = now_s
