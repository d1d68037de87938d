"""glibc's account of its heap."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping

_FIELDS = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd",
    "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


class GlibcHeap:
    """mallinfo2(3): all arenas, and the chunks that were mapped one by one."""

    name = "glibc"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.gnu_get_libc_version.restype = ctypes.c_char_p
        self.version = library.gnu_get_libc_version().decode()

    def gauges(self) -> Mapping[str, int]:
        """Free: ``fordblks``. After malloc_trim free bytes need not be resident. Chunks in a thread's
        own cache count as used. Empty before glibc 2.33.

        With two more, by which resident pages can be told apart: ``host.heap_arenas``, the size of
        all arenas, and ``host.heap_mapped``, the part of used that was mapped one by one.
        """
        try:
            call = self._library.mallinfo2
        except AttributeError:
            return {}
        call.restype = _Mallinfo2
        info = call()
        return {
            "host.heap_free": info.fordblks,
            "host.heap_used": info.uordblks + info.hblkhd,
            "host.heap_arenas": info.arena,
            "host.heap_mapped": info.hblkhd,
        }

    def trim(self) -> None:
        with contextlib.suppress(AttributeError):
            self._library.malloc_trim(0)
