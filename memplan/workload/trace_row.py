"""One request as a trace tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "error", "cancelled", "rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One request as the trace tells it."""

    line: int
    timestamp_s: float
    """After the earliest kept row."""
    input_tokens: int
    output_tokens: int
    request_id: str | None = None
    session_id: str | None = None
    operation: str = "chat"
    class_label: str | None = None
    """The class that the trace itself names."""
    labels: Mapping[str, str] = field(default_factory=dict)
    hash_ids: tuple[int, ...] = ()
    """Chained prefix blocks of the trace's ``block_size``; equal ids mean equal tokens."""
    status: Status = "ok"
    cancel_after_s: float | None = None
    """When its user gave up, after its arrival; None: not that the trace says."""
    retry_of: str | None = None
    """The request id of the first of several that ask for the same."""
    attempt: int = 1
    images: int = 0
    cached_input_tokens: int | None = None
    """Of the prompt, as production had it; None where the trace does not say."""
    observed_ttft_s: float | None = None
    observed_e2e_s: float | None = None
    """What production took, from the arrival on."""
