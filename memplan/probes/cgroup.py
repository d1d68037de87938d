"""What the kernel charges the engine's own control group for, and what memory pressure did to it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from memplan.cgroups import GroupMemory, place_at, place_of
from memplan.records import EngineFacts

# memory.stat makes the kernel fold its per-CPU counters; usage and peak are plain words.
_DETAIL_EVERY_S = 0.2


class CgroupProbe:
    """Reads nothing where the engine has no group of its own: a shared one has others' memory in it.

    ``folder``: the group that the user named, of an engine that memplan did not start.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._memory: GroupMemory | None = None
        self._detail_due_s = 0.0

    def attach(self, facts: EngineFacts) -> None:
        self._close()
        if self._folder is not None:
            self._memory = GroupMemory(place_at(Path(self._folder)))
            return
        if not facts.pids or not facts.settings.get("cgroup", "").startswith(("v1", "v2")):
            return
        try:
            place = place_of(facts.pids[0])
        except OSError:
            return
        if place is not None:
            self._memory = GroupMemory(place)
            self._detail_due_s = 0.0

    def read(self, *, is_quiet: bool = False) -> Mapping[str, int]:
        if self._memory is None:
            return {}
        try:
            gauges = self._memory.read_charge()
            if is_quiet or time.monotonic() >= self._detail_due_s:
                gauges |= self._memory.read_detail()
                self._detail_due_s = time.monotonic() + _DETAIL_EVERY_S
        except OSError:  # the group was removed
            self._close()
            return {}
        return gauges

    def _close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None
