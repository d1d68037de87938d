"""The high-water marks of an engine process and of the processes it has started, taken together."""

from __future__ import annotations

import contextlib
import os
import time

from memplan.process_tree import family_of
from memplan.procfs import ProcessMemory

# Listing takes 10 µs a thread. A child found late is counted from its birth on: its mark is its own.
_LOOK_FOR_CHILDREN_S = 0.5


class Family:
    """This process and its descendants; the only owner of their marks.

    For several processes a peak is the sum of their peaks, which need not fall on the same instant:
    an upper bound, and ``host.processes`` says so by being above 1.
    """

    def __init__(self, *, resets: bool) -> None:
        self._own = ProcessMemory("self")
        self._children: dict[int, ProcessMemory] = {}
        self._looked_s = time.monotonic()
        self.is_exact = resets and self._reset()
        """False where marks cannot be reset, or can no longer be, or shall be left alone."""
        self._last_rss_bytes = self._own.read()["host.rss"]

    def take(self) -> tuple[int, dict[str, int]]:
        """The peak since the last call, and the gauges now. Where marks cannot be reset only the two
        ends are known; the mark then covers the life of the process, kept as ``host.hwm_life``."""
        self._look_for_children()
        marks, gauges = self._taken(self._own)
        for pid, memory in list(self._children.items()):
            try:
                mark, theirs = self._taken(memory)
            except ProcessLookupError:  # ended between two readings; its last peak is lost with it
                self._children.pop(pid).close()
                continue
            marks += mark
            gauges = {name: gauges[name] + theirs[name] for name in gauges}
        if self._children:
            gauges["host.processes"] = 1 + len(self._children)
        before, self._last_rss_bytes = self._last_rss_bytes, gauges["host.rss"]
        if self.is_exact:
            return marks, gauges
        gauges["host.hwm_life"] = marks
        return max(before, gauges["host.rss"]), gauges

    def _taken(self, memory: ProcessMemory) -> tuple[int, dict[str, int]]:
        try:
            gauges = dict(memory.take_peak() if self.is_exact else memory.read())
        except ProcessLookupError:
            raise
        except OSError:  # the right to reset was taken away while we ran
            self.is_exact = False
            gauges = dict(memory.read())
        return gauges.pop("host.hwm"), gauges

    def _reset(self) -> bool:
        try:
            self._own.reset_peak()
        except OSError:
            return False
        return True

    def _look_for_children(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_FOR_CHILDREN_S:
            return
        self._looked_s = now_s
        for pid in family_of(os.getpid())[1:]:
            if pid not in self._children:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    self._children[pid] = ProcessMemory(pid)
