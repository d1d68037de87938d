"""How much of a file the kernel holds in its page cache, without reading or mapping a page of it.

What is cached already is charged to whoever read it first: an engine that finds its weights there is
charged less than one that must read them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from memplan.pages import PAGE_BYTES

# One byte a page comes back: 64 KiB of answer for each of these.
_WINDOW_BYTES = 65_536 * PAGE_BYTES


def cached_bytes(files: Iterable[Path]) -> int | None:
    """Bytes of ``files`` in the page cache, in whole pages, at most their sizes (mincore(2)).

    None where the kernel does not say: since 5.2 it answers "all" for files that are neither ours
    nor writable for us, which would be a lie. Raises nothing for a file that is gone: it has none.
    """
    total = 0
    for path in files:
        found = _cached_bytes(path)
        if found is None:
            return None
        total += found
    return total


def _cached_bytes(path: Path) -> int | None:
    try:
        stat = path.stat()
        is_ours = stat.st_uid == os.geteuid()
        if not is_ours and not os.access(path, os.W_OK, effective_ids=True):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError:
        return None
    try:
        windows = range(0, stat.st_size, _WINDOW_BYTES)
        counts = [_pages_cached(fd, at, min(_WINDOW_BYTES, stat.st_size - at)) for at in windows]
    finally:
        os.close(fd)
    known = [count for count in counts if count is not None]
    return min(sum(known) * PAGE_BYTES, stat.st_size) if len(known) == len(counts) else None


def _pages_cached(fd: int, offset: int, size_bytes: int) -> int | None:
    libc = ctypes.CDLL(None, use_errno=True)
    answer = (ctypes.c_ubyte * -(-size_bytes // PAGE_BYTES))()
    with mmap.mmap(fd, size_bytes, flags=mmap.MAP_PRIVATE, offset=offset) as window:
        # MAP_PRIVATE and writable: the only kind whose address ctypes hands out. Nothing is touched.
        first = ctypes.c_char.from_buffer(window)
        code = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size_bytes), answer
        )
        del first
    return None if code != 0 else bytes(answer).count(1)  # bit 0: resident; the rest is 0
