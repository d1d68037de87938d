"""Chunks that glibc's malloc mapped one by one, found by the header that each begins with.

mallinfo2 says how large they are all together, and counts a buffer in full that was asked for and never
written to. Only their addresses tell how much of them is resident.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Iterable, Iterator

from memplan.pages import PAGE_BYTES, Area, PageMap

_HEADER_BYTES = 16
_IS_MAPPED = 0b010  # malloc/malloc.c: IS_MMAPPED, and neither PREV_INUSE nor NON_MAIN_ARENA
_MOST_AT_ONCE = 1024  # IOV_MAX


Chunk = tuple[int, int]
"""Addresses [start, end)."""


def mapped_chunks(pages: PageMap, found: Iterable[Area], mapped_bytes: int) -> tuple[Chunk, ...]:
    """All of them in ``found``, ascending; ``mapped_bytes`` is what mallinfo2 says that they are together.

    Empty where what was found is not so much to the byte: a header was moved (realloc of an aligned
    chunk), a page only looks like one, another thread was faster, or none may be read (Linux before
    6.7, or a sandbox without process_vm_readv).
    """
    try:
        chunks = [chunk for area in found if _may_hold(area) for chunk in _chunks_in(pages, area)]
    except OSError:
        return ()
    return tuple(chunks) if sum(end - start for start, end in chunks) == mapped_bytes else ()


def _may_hold(area: Area) -> bool:
    """Anonymous memory without a name."""
    return area.permissions == "rw-p" and not area.name


def _chunks_in(pages: PageMap, area: Area) -> Iterator[Chunk]:
    """Ascending. The kernel makes one area of neighbours, so any page may begin a
    chunk; its header was written, so that page is resident."""
    starts: array[int] = array("Q")
    for start, end in pages.resident_regions(area.start, area.end):
        starts.extend(range(start, end, PAGE_BYTES))
    ends_at = area.start
    for first in range(0, len(starts), _MOST_AT_ONCE):
        some = starts[first : first + _MOST_AT_ONCE]
        words = _headers_at(some)
        for start, before, size in zip(some, words[::2], words[1::2], strict=False):
            is_header = before == 0 and size % PAGE_BYTES == _IS_MAPPED
            end = start + size - _IS_MAPPED
            if is_header and ends_at <= start < end <= area.end:
                ends_at = end
                yield start, end


def _headers_at(addresses: array[int]) -> array[int]:
    """Two words from each, as far as they can be read: a page may be gone by now, and to look at it
    would be the end of this process; to ask the kernel is not."""
    headers = array("Q", bytes(_HEADER_BYTES * len(addresses)))
    remote = array("Q", bytes(16 * len(addresses)))
    remote[0::2] = addresses
    remote[1::2] = array("Q", [_HEADER_BYTES]) * len(addresses)
    local = array("Q", [headers.buffer_info()[0], _HEADER_BYTES * len(addresses)])
    count = _readv(
        os.getpid(), local.buffer_info()[0], 1, remote.buffer_info()[0], len(addresses), 0
    )
    return headers[: max(0, count) // 8]


_readv = ctypes.CDLL(None).process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = (
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
)
