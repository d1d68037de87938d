"""What this process's resident bytes are made of, between two steps: pages counted, not guessed.

Each part has a source of its own, so that what none of them names can be told: the KV pool and
malloc's arenas by their resident pages, the allocator's and the interpreter's own accounts, and the
private pages of mapped libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from memplan.engines.allocator import heap_gauges
from memplan.engines.allocator.mapped_chunks import MappedChunks
from memplan.pages import Area, PageMap, areas

# glibc maps a thread's arena in heaps of this size, aligned to it (HEAP_MAX_SIZE, malloc/arena.c).
_HEAP_ALIGNMENT_BYTES = 64 << 20
_MORE_BYTES = 256 << 10


class HostComposition:
    """Reads all parts; about 3 µs per MiB of KV and heap.

    ``pool`` is the address range of the KV pool, where it lies in host memory;
    ``interpreter_bytes`` counts Python's own heap, where it can be counted.
    """

    def __init__(
        self,
        *,
        pool: tuple[int, int] | None,
        interpreter_bytes: Callable[[], int] | None,
    ) -> None:
        self._pages = PageMap()
        self._pool = pool
        self._interpreter_bytes = interpreter_bytes
        self._arenas: tuple[Area, ...] = ()
        self._code: tuple[Area, ...] = ()
        self._looked_at = (-1, -1)
        self._mapped = MappedChunks(self._pages)

    def read(self) -> Mapping[str, int]:
        """Gauges in bytes: ``engine.kv_resident``, ``host.interpreter``, ``host.heap_used`` and
        ``host.heap_free``: resident, and of no use to anyone; ``host.heap_untouched``: the part of used
        that was never written to; ``host.jit_code``: what libraries compiled while they ran. A part
        without a source is absent."""
        gauges = dict(heap_gauges())
        self._look(gauges.get("host.heap_arenas", 0), gauges.get("host.heap_used", 0))
        if "host.heap_arenas" in gauges:
            in_arenas = gauges["host.heap_used"] - gauges["host.heap_mapped"]
            gauges["host.heap_free"] = max(0, self._resident(self._arenas) - in_arenas)
            gauges |= self._untouched(gauges["host.heap_mapped"])
        gauges["host.jit_code"] = self._resident(self._code)
        if self._pool is not None:
            gauges["engine.kv_resident"] = self._pages.resident_bytes(*self._pool)
        if self._interpreter_bytes is not None:
            gauges["host.interpreter"] = self._interpreter_bytes()
        return gauges

    def library_data_bytes(self) -> int:
        """Private pages of mapped files: relocations and variables of libraries. Takes milliseconds,
        and hardly changes once everything is loaded."""
        return sum(
            self._pages.resident_bytes(area.start, area.end, anonymous_only=True)
            for area in areas()
            if area.is_file and "p" in area.permissions
        )

    def _untouched(self, mapped_bytes: int) -> Mapping[str, int]:
        """Of chunks that malloc mapped one by one."""
        resident = self._mapped.resident_bytes(mapped_bytes)
        return {} if resident is None else {"host.heap_untouched": mapped_bytes - resident}

    def _look(self, arenas_bytes: int, used_bytes: int) -> None:
        """Where arenas and code lie, again when the arenas grew or more was handed out: who compiles
        keeps something beside its code."""
        now = arenas_bytes, used_bytes // _MORE_BYTES
        if now != self._looked_at:
            self._looked_at = now
            found = areas()
            self._arenas = _arenas(found)
            self._code = tuple(one for one in found if "x" in one.permissions and not one.name)

    def _resident(self, found: tuple[Area, ...]) -> int:
        return sum(self._pages.resident_bytes(a.start, a.end) for a in found)


def _arenas(found: tuple[Area, ...]) -> tuple[Area, ...]:
    """The main arena, and those of threads: the used part of an aligned heap, the rest locked."""
    threads = [
        used
        for used, rest in pairwise(found)
        if used.start % _HEAP_ALIGNMENT_BYTES == 0
        and (used.permissions, rest.permissions) == ("rw-p", "---p")
        and rest.end == used.start + _HEAP_ALIGNMENT_BYTES
    ]
    return (*(area for area in found if area.name == "[heap]"), *threads)
