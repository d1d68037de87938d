"""When waiting requests may join: batching policies, as the engines of our field know them."""

from __future__ import annotations

from collections.abc import Sequence as Waiting
from dataclasses import dataclass
from typing import Literal

from memplan.engines.sequence import Sequence

Kind = Literal["continuous", "static", "dynamic", "micro"]
BATCH_WAIT_S: dict[Kind, float] = {"continuous": 0.0, "static": 1.0, "dynamic": 0.05, "micro": 0.01}
"""How long the first of a batch waits for the others, unless the deployment says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """continuous: at every step. static: ``most`` together into an empty engine, and their memory stays
    until all of them have ended, as a padded batch's does. dynamic: together into an empty engine, each
    leaving when it has ended. micro: in small groups of ``tokens`` prompt tokens, one group a step,
    whoever else runs.
    """

    kind: Kind = "continuous"
    most: int
    wait_s: float = 0.0
    """The first of a group waits no longer for the rest of it."""
    tokens: int = 0

    @property
    def holds_finished(self) -> bool:
        return self.kind == "static"

    @property
    def group_tokens(self) -> int | None:
        """A group is closed once it has so many prompt tokens; None: by nothing but its requests."""
        return self.tokens if self.kind == "micro" else None

    def opens_in_s(self, now_s: float, *, running: int, waiting: Waiting[Sequence]) -> float | None:
        """Seconds until who waits may enter, if nobody comes; 0: now; None: when others have ended."""
        if not waiting or self.kind == "continuous":
            return 0.0
        if self.kind != "micro" and running:
            return None
        if self.kind == "micro":
            is_full = sum(one.known_tokens for one in waiting) >= self.tokens
        else:
            is_full = len(waiting) >= self.most
        if is_full:
            return 0.0
        first_s = min(one.queued_s for one in waiting)
        return max(0.0, first_s + self.wait_s - now_s)
