"""The high-water marks of an engine process and of the processes it has started, taken together.

An engine of ours keeps its own; those of a server are kept from outside, by the one who started it.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from memplan.process_tree import family_of
from memplan.procfs import ProcessMemory, peak_in

# Listing takes 10 µs a thread. A child found late is counted from its birth on: its mark is its own.
_LOOK_FOR_CHILDREN_S = 0.5


class Cut(NamedTuple):
    """The end of an interval, read and not yet understood: that can wait until the engine rests."""

    at_s: float
    """On CLOCK_MONOTONIC, between the reading of this process's mark and its reset."""
    peak_bytes: int
    text: bytes
    """The process's own status."""
    children: tuple[dict[str, int], ...]
    is_exact: bool


class Family:
    """This process, or another, and its descendants; the only owner of their marks.

    For several processes a peak is the sum of their peaks, which need not fall on the same instant:
    an upper bound, and ``host.processes`` says so by being above 1.
    """

    def __init__(self, *, resets: bool, pid: int | None = None) -> None:
        """Of another process ``pid``: then ``cut`` raises ProcessLookupError once that is gone."""
        self._pid = os.getpid() if pid is None else pid
        self._own = ProcessMemory("self" if pid is None else pid)
        self._children: dict[int, ProcessMemory] = {}
        self._looked_s = time.monotonic()
        self.is_exact = resets and self._reset()
        """False where marks cannot be reset, or can no longer be, or shall be left alone."""
        self.is_alone = True
        """Whether no process had been started by this one when that was last looked at."""
        self._last_rss_bytes = self._own.read()["host.rss"]

    @property
    def pids(self) -> tuple[int, ...]:
        """As known when they were last looked for."""
        return (self._pid, *self._children)

    def cut(self) -> Cut:
        """Ends the interval since the last call. Where marks cannot be reset only its two ends are
        known: the peak is the larger of them."""
        if time.monotonic() - self._looked_s >= _LOOK_FOR_CHILDREN_S:
            self.look_for_children()
        text, at_s = self._take(self._own)
        marks = peak_in(text)
        children = []
        for pid, memory in list(self._children.items()):
            try:
                children.append(memory.gauges_of(self._take(memory)[0]))
            except ProcessLookupError:  # ended between two readings; its last peak is lost with it
                self._children.pop(pid).close()
                continue
            marks += children[-1]["host.hwm"]
        if not self.is_exact:
            before = self._last_rss_bytes
            self._last_rss_bytes = self._own.gauges_of(text)["host.rss"]
            self._last_rss_bytes += sum(theirs["host.rss"] for theirs in children)
            marks = max(before, self._last_rss_bytes)
        return Cut(
            at_s=at_s,
            peak_bytes=marks,
            text=text,
            children=tuple(children),
            is_exact=self.is_exact,
        )

    def gauges_of(self, cut: Cut) -> dict[str, int]:
        """What was held at its end. ``host.hwm_life`` is the mark of the whole life, where it was not
        reset."""
        gauges = self._own.gauges_of(cut.text)
        for theirs in cut.children:
            gauges = {name: gauges[name] + theirs[name] for name in gauges}
        mark = gauges.pop("host.hwm")
        if not cut.is_exact:
            gauges["host.hwm_life"] = mark
        if cut.children:
            gauges["host.processes"] = 1 + len(cut.children)
        return gauges

    def look_for_children(self) -> None:
        self._looked_s = time.monotonic()
        found = family_of(self._pid)[1:]
        self.is_alone = not found
        for pid in found:
            if pid not in self._children:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    self._children[pid] = ProcessMemory(pid)

    # --- steps -----------------------------------------------------------------------------

    def _take(self, memory: ProcessMemory) -> tuple[bytes, float]:
        """The instant lies between reading and resetting: what was gone before it is in the text, and
        what came after it is not forgotten."""
        text, at_s = memory.read_text(), time.monotonic()
        if self.is_exact:
            try:
                memory.reset_peak()
            except ProcessLookupError:
                raise
            except OSError:  # the right to reset was taken away while we ran
                self.is_exact = False
        return text, at_s

    def _reset(self) -> bool:
        try:
            self._own.reset_peak()
        except OSError:
            return False
        return True
