"""Why each class peaked where it did: the worst segment with a request of it in flight.

Parts, holders and suggestions are of that one segment. What a suggestion would save is either bytes
that were measured in it or arithmetic on them, and each says which.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.records import SegmentKind
from memplan.stats.summary import Attribution


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRequest:
    """One request in flight in the segment."""

    request_id: str
    class_name: str
    input_tokens: int
    output_tokens: int
    """Asked, not run so far."""
    kv_used_bytes: int
    kv_reserved_bytes: int
    transient_bytes: float
    """Its share, by tokens run in the segment, of what the segment held for a moment."""
    owned_bytes: float
    """Its KV (reserved, where the pool is resident from the start) and that share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """One change that a user can make, with the arithmetic from this segment's figures."""

    code: str
    change: str
    """The setting to write, or what to do where no setting does it."""
    effect: str
    saves_bytes: float | None
    """Off this segment's peak, by itself; None where no figure of the run says it."""
    is_measured: bool
    """The bytes saved were measured in the segment; otherwise they were extrapolated from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One class: its worst segment, the earliest of equals."""

    class_name: str
    engine_start: int
    kind: SegmentKind
    start_s: float
    end_s: float
    prefill_tokens: int
    decode_tokens: int
    waiting: int
    transient_bytes: int
    attribution: Attribution
    """Of this segment's peak, which is its ``total_bytes``."""
    held: tuple[HeldRequest, ...]
    """All in flight, of every class, the largest owner first."""
    suggestions: tuple[Suggestion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExplanation:
    place: str
    """``gpu`` as soon as an engine ran on one, else ``cpu``; peaks are bytes there."""
    classes: tuple[Explanation, ...]
    """In the order of the class rules."""
    never_in_flight: tuple[str, ...]
    """Classes of which no request was in flight in any segment with a known peak."""
