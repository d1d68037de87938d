"""jemalloc's account of its heap."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

_ALL_ARENAS = 4096  # MALLCTL_ARENAS_ALL of jemalloc.h, since 5.0


class JemallocHeap:
    """mallctl(3) by the names of its manual."""

    name = "jemalloc"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._call = library.mallctl
        version = ctypes.c_char_p()
        self._call(b"version", ctypes.byref(version), _size_of(version), None, ctypes.c_size_t(0))
        self.version = (version.value or b"").decode()

    def gauges(self) -> Mapping[str, int]:
        """Used: ``stats.allocated``; free: ``stats.resident`` − ``stats.allocated``.

        So free holds dirty pages not yet given back, the gaps in half-used pages, and jemalloc's own
        metadata. ``stats.resident`` counts pages that were handed out and never touched, as
        ``stats.allocated`` does, so that these cancel. Empty in a build without statistics.
        """
        epoch = ctypes.c_uint64(1)
        self._call(b"epoch", None, None, ctypes.byref(epoch), ctypes.c_size_t(8))
        used, resident = self._size(b"stats.allocated"), self._size(b"stats.resident")
        if used is None or resident is None:
            return {}
        return {"host.heap_free": max(0, resident - used), "host.heap_used": used}

    def trim(self) -> None:
        """First the calling thread's own cache, which holds pages half in use."""
        none = ctypes.c_size_t(0)
        self._call(b"thread.tcache.flush", None, None, None, none)
        self._call(f"arena.{_ALL_ARENAS}.purge".encode(), None, None, None, none)

    def _size(self, name: bytes) -> int | None:
        value = ctypes.c_size_t()
        code = self._call(name, ctypes.byref(value), _size_of(value), None, ctypes.c_size_t(0))
        return None if code else value.value


def _size_of(value: ctypes.c_size_t | ctypes.c_char_p) -> object:
    return ctypes.byref(ctypes.c_size_t(ctypes.sizeof(value)))
