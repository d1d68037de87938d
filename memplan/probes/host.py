"""Resident memory of an engine's whole process tree, summed, from ``/proc``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from memplan.process_tree import family_of, is_alive
from memplan.procfs import ProcessMemory, proportional_bytes
from memplan.records import EngineFacts

_LOOK_FOR_CHILDREN_S = 1.0
_SUMMED = ("host.rss", "host.anon", "host.file", "host.shmem", "host.page_tables", "host.swap")


class HostProbe:
    """Sums count pages that processes of the tree share once each: an upper bound for several.

    Beside them it counts whose memory they hold (``host.processes``), who is there and cannot be read
    (``host.processes_hidden``), and children that ended before the engine did, since it was attached
    (``host.processes_gone``). A child that lived for less than a second may be in none of them.
    """

    def __init__(
        self,
        *,
        list_family: Callable[[int], list[int]] = family_of,
        look_every_s: float = _LOOK_FOR_CHILDREN_S,
    ) -> None:
        self._list_family = list_family
        self._look_every_s = look_every_s
        self._roots: tuple[int, ...] = ()
        self._memories: dict[int, ProcessMemory] = {}
        self._hidden: set[int] = set()
        self._ended: set[int] = set()
        """Counted as gone, and still listed: zombies that their parent has not waited for."""
        self._gone = 0
        self._looked_s = 0.0

    def attach(self, facts: EngineFacts) -> None:
        for memory in self._memories.values():
            memory.close()
        self._memories = {}
        self._ended = set()
        self._gone = 0
        self._roots = facts.pids
        self._find_processes()

    def read(self, *, is_quiet: bool = False) -> Mapping[str, int]:
        if time.monotonic() - self._looked_s > self._look_every_s:
            self._find_processes()
        total: dict[str, int] = {}
        ended: set[int] = set()
        for pid, memory in list(self._memories.items()):
            try:
                gauges = memory.read()
            except OSError:
                self._memories.pop(pid).close()
                ended.add(pid)
                continue
            for name in _SUMMED:
                total[name] = total.get(name, 0) + gauges[name]
        self._count_ended(ended)
        if self._memories or self._hidden:
            total |= {
                "host.processes": len(self._memories),
                "host.processes_hidden": len(self._hidden),
                "host.processes_gone": self._gone,
            }
        if is_quiet and (pss_bytes := self._proportional_bytes()) is not None:
            total["host.pss"] = pss_bytes
        return total

    def _proportional_bytes(self) -> int | None:
        """The tree's sum: pages that its processes share count once, unlike in the other sums."""
        parts = []
        for pid in self._memories:
            try:
                parts.append(proportional_bytes(pid))
            except ProcessLookupError:
                continue
        known = [part for part in parts if part is not None]
        return sum(known) if known and len(known) == len(parts) else None

    def _count_ended(self, ended: set[int]) -> None:
        """Those that end with their engine are not counted: its death is told elsewhere."""
        if self._memories.keys() & set(self._roots):
            self._gone += len(ended - self._ended)
            self._ended |= ended

    def _find_processes(self) -> None:
        self._looked_s = time.monotonic()
        listed = {pid for root in self._roots for pid in self._list_family(root)}
        ended: set[int] = set()
        self._hidden = set()
        for pid in sorted(listed - self._memories.keys() - self._ended):
            try:
                self._memories[pid] = ProcessMemory(pid)
            except OSError:
                (self._hidden if is_alive(pid) else ended).add(pid)
        self._ended &= listed
        self._count_ended(ended)
