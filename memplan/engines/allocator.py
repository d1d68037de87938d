"""glibc's own account of the heap of this process, and how to shrink it."""

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


def heap_gauges() -> Mapping[str, int]:
    """``host.heap_free``: bytes in malloc's arenas that are free but not given back to the kernel.

    An upper bound of allocator slack: after malloc_trim free bytes need not be resident. Empty on
    a libc without mallinfo2 (glibc < 2.33, musl): unknown, not zero.
    """
    try:
        call = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return {}
    call.restype = _Mallinfo2
    info = call()
    return {"host.heap_free": info.fordblks, "host.heap_used": info.uordblks + info.hblkhd}


def trim_heap() -> None:
    """malloc_trim(0): free pages inside the heap go back to the kernel. Nothing on other libcs."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
