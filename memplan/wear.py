"""When an engine start has served its time: how many requests ended in it, and how much it grew."""

from __future__ import annotations

from typing import Literal

from memplan.records import EngineFacts, Segment

Limit = Literal["requests", "bytes"]


class Wear:
    """Of one engine start after the other, against two limits; None: no limit."""

    def __init__(self, *, requests: int | None, grown_bytes: int | None) -> None:
        self._most_requests = requests
        self._most_bytes = grown_bytes
        self._ended = 0
        self._is_grown = False
        self._facts: EngineFacts | None = None

    def engine_started(self, facts: EngineFacts) -> None:
        self._ended, self._is_grown, self._facts = 0, False, facts

    def request_ended(self) -> None:
        self._ended += 1

    def segment_closed(self, segment: Segment) -> None:
        """What is resident at its end beyond idle, and beyond the KV that the engine holds on purpose.
        An engine that has grown once stays so, though it may shrink while it drains."""
        if self._most_bytes is None or self._facts is None:
            return
        if segment.kind not in ("idle", "step", "release") or "host.rss" not in segment.gauges:
            return
        grown = segment.gauges["host.rss"] - self._facts.idle.get("host.rss", 0)
        if self._facts.device == "cpu":
            kept = ("engine.kv_blocks", "engine.kv_kept")
            grown -= sum(segment.gauges.get(name, 0) for name in kept)
        self._is_grown |= grown >= self._most_bytes

    @property
    def reached(self) -> Limit | None:
        """The limit that it has reached. Each engine serves one request at least, or a limit below
        what an engine is by itself would never let a run end."""
        if self._most_requests is not None and self._ended >= self._most_requests:
            return "requests"
        return "bytes" if self._is_grown and self._ended else None
