"""Chunks that glibc's malloc mapped one by one, found by the header that each begins with.

mallinfo2 says how large they are all together, and counts a buffer in full that was asked for and never
written to. Only their addresses tell how much of them is resident.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence

from memplan.pages import PAGE_BYTES, Area, PageMap, areas

_HEADER_BYTES = 16
_IS_MAPPED = 0b010  # malloc/malloc.c: IS_MMAPPED, and neither PREV_INUSE nor NON_MAIN_ARENA
_IN_PAGE = PAGE_BYTES - 1
_MOST_AT_ONCE = 1024  # IOV_MAX

Span = tuple[int, int]
"""Addresses [start, end)."""


class MappedChunks:
    """Where they are, looked for again only where memory was mapped since the last time: to look takes
    0.6 µs for each resident page."""

    def __init__(self, pages: PageMap) -> None:
        self._pages = pages
        self._looked_at: list[Span] = []
        self._found: list[Span] = []
        self._unclear_bytes = -1
        """What they were together when they could not be told apart last: not looked for again."""

    def resident_bytes(self, mapped_bytes: int) -> int | None:
        """Of all of them, of which mallinfo2 says that they are ``mapped_bytes``.

        None where what was found is not so much to the byte: a header was moved (realloc of an
        aligned chunk), a page only looks like one, another thread was faster, or none may be read
        (Linux before 6.7, or a sandbox without process_vm_readv).
        """
        if mapped_bytes == self._unclear_bytes:
            return None
        if _size_of(self._found) != mapped_bytes:
            with contextlib.suppress(OSError):
                self._look_again(mapped_bytes)
        if _size_of(self._found) != mapped_bytes:
            self._unclear_bytes = mapped_bytes
            return None
        return sum(self._pages.resident_bytes(start, end) for start, end in self._found)

    def _look_again(self, mapped_bytes: int) -> None:
        spans = [(area.start, area.end) for area in areas() if _may_hold_chunks(area)]
        still = self._chunks_at(array("Q", [start for start, _ in self._found]))
        self._found = sorted({*still, *self._look(parts_outside(spans, self._looked_at))})
        if _size_of(self._found) != mapped_bytes:
            self._found = self._look(spans)
        self._looked_at = spans

    def _look(self, spans: Iterable[Span]) -> list[Span]:
        """The kernel makes one area of neighbours, so any page may begin a chunk; its header was
        written, so that page is resident."""
        found: list[Span] = []
        for start, end in spans:
            starts: array[int] = array("Q")
            for first, last in self._pages.resident_regions(start, end):
                starts.extend(range(first, last, PAGE_BYTES))
            behind = start
            for chunk in self._chunks_at(starts):
                if behind <= chunk[0] and chunk[1] <= end:
                    found.append(chunk)
                    behind = chunk[1]
        return found

    @staticmethod
    def _chunks_at(starts: array[int]) -> Iterator[Span]:
        """Of these pages those that begin like a chunk, as far as it would reach."""
        for first in range(0, len(starts), _MOST_AT_ONCE):
            some = starts[first : first + _MOST_AT_ONCE]
            words = _headers_at(some)
            before, sizes = words[::2], words[1::2]
            # There are tens of thousands of pages, and few such words in them.
            for i in [i for i, size in enumerate(sizes) if size & _IN_PAGE == _IS_MAPPED]:
                if before[i] == 0 and sizes[i] > PAGE_BYTES:
                    yield some[i], some[i] + sizes[i] - _IS_MAPPED


def parts_outside(spans: Iterable[Span], known: Sequence[Span]) -> Iterator[Span]:
    """What of ``spans`` no span in ``known`` covers; all ascending and apart."""
    for start, end in spans:
        for known_start, known_end in known:
            if known_end <= start or known_start >= end:
                continue
            if start < known_start:
                yield start, known_start
            start = known_end
        if start < end:
            yield start, end


def _size_of(spans: Iterable[Span]) -> int:
    return sum(end - start for start, end in spans)


def _may_hold_chunks(area: Area) -> bool:
    """Anonymous memory without a name."""
    return area.permissions == "rw-p" and not area.name


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
    return headers[: max(0, count) // _HEADER_BYTES * 2]


_readv = ctypes.CDLL(None).process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = (
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
)
