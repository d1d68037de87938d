"""Resident memory of an engine's whole process tree, summed, from ``/proc``."""

from __future__ import annotations

import time
from collections.abc import Mapping

import psutil

from memplan.procfs import ProcessMemory
from memplan.records import EngineFacts

_LOOK_FOR_CHILDREN_S = 1.0
_SUMMED = ("host.rss", "host.anon", "host.file", "host.shmem", "host.page_tables", "host.swap")


class HostProbe:
    """Sums count pages that processes of the tree share once each: an upper bound for several."""

    def __init__(self) -> None:
        self._roots: tuple[int, ...] = ()
        self._memories: dict[int, ProcessMemory] = {}
        self._looked_s = 0.0

    def attach(self, facts: EngineFacts) -> None:
        for memory in self._memories.values():
            memory.close()
        self._memories = {}
        self._roots = facts.pids
        self._find_processes()

    def read(self) -> Mapping[str, int]:
        if time.monotonic() - self._looked_s > _LOOK_FOR_CHILDREN_S:
            self._find_processes()
        total: dict[str, int] = {}
        for pid, memory in list(self._memories.items()):
            try:
                gauges = memory.read()
            except ProcessLookupError:
                self._memories.pop(pid).close()
                continue
            for name in _SUMMED:
                total[name] = total.get(name, 0) + gauges[name]
        return total

    def _find_processes(self) -> None:
        self._looked_s = time.monotonic()
        for root in self._roots:
            try:
                family = [root, *(c.pid for c in psutil.Process(root).children(recursive=True))]
            except psutil.Error:
                continue
            for pid in family:
                if pid not in self._memories:
                    try:
                        self._memories[pid] = ProcessMemory(pid)
                    except (ProcessLookupError, PermissionError):
                        continue
