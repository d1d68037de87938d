"""gperftools' tcmalloc and its account of its heap, through the C side of MallocExtension."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping


class TcmallocHeap:
    """Properties by the names of malloc_extension.h."""

    name = "tcmalloc"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.tc_version.restype = ctypes.c_char_p
        self.version = library.tc_version(None, None, None).decode()

    def gauges(self) -> Mapping[str, int]:
        """Used: ``generic.current_allocated_bytes``; free: ``generic.heap_size`` −
        ``tcmalloc.pageheap_unmapped_bytes`` − used.

        So free holds free pages and the caches of threads and size classes. Pages that were given
        back are in ``heap_size`` and not free here. tcmalloc's metadata is in neither.
        """
        size = self._property(b"generic.heap_size")
        used = self._property(b"generic.current_allocated_bytes")
        unmapped = self._property(b"tcmalloc.pageheap_unmapped_bytes")
        if size is None or used is None or unmapped is None:
            return {}
        return {"host.heap_free": max(0, size - unmapped - used), "host.heap_used": used}

    def trim(self) -> None:
        self._library.MallocExtension_ReleaseFreeMemory()

    def _property(self, name: bytes) -> int | None:
        value = ctypes.c_size_t()
        known = self._library.MallocExtension_GetNumericProperty(name, ctypes.byref(value))
        return value.value if known else None
