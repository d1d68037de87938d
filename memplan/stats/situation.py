"""What suggestions may look at: one segment, the run around it, and how a setting is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memplan.records import EngineFacts, Segment
from memplan.stats.explanation import HeldRequest
from memplan.stats.prompt_repeats import PromptRepeats
from memplan.stats.summary import Attribution
from memplan.units import bytes_text

NOT_MEASURED = "not measured; profile a variant with it to know"
_MOST_ADDENDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the suggestions for one class may look at."""

    class_name: str
    segment: Segment
    engine: EngineFacts
    attribution: Attribution
    held: tuple[HeldRequest, ...]
    """In the order of admission; at least one is of the class."""
    settings: Mapping[str, object]
    budget_bytes: float | None
    """What one request of the class may own."""
    most_reserved_bytes: int
    """The most KV that was reserved at once, over all segments of this engine start."""
    most_used_bytes: int
    """The most KV that held tokens at once, over the same."""
    longest_tokens: int
    """The most tokens whose KV one request of the run needs."""
    repeats: PromptRepeats

    def now(self, name: str) -> str:
        """`` (now 16)``; empty where the recording does not say."""
        value = self.count(name)
        return "" if value is None else f" (now {value})"

    def count(self, name: str) -> int | None:
        value = self.settings.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def sum_text(values: list[int]) -> str:
    """``1.00 MiB + 2.00 MiB = 3.00 MiB``, of those that are not zero."""
    known = [bytes_text(value) for value in values if value]
    total = bytes_text(sum(values))
    if len(known) == 1:
        return total
    return f"{' + '.join(known)} = {total}" if len(known) <= _MOST_ADDENDS else f"{total} in all"
