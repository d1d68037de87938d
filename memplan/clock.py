"""Where time comes from: the machine's monotonic clock, or a scripted one for exact tests."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds on one axis; the zero is of no meaning."""

    def now_s(self) -> float: ...

    def wall_s(self) -> float | None:
        """The wall clock, to hold against this one; None where time is not real."""
        ...


class MonotonicClock:
    """CLOCK_MONOTONIC, which every process of a machine shares."""

    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


class VirtualClock:
    """A clock that moves only when it is told to; a scripted engine's waits move it."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float | None:
        return None

    def advance_to(self, at_s: float) -> None:
        self._now_s = max(self._now_s, at_s)
