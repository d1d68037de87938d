"""What the kernel tells of single pages: those of a process, and those of files in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from pathlib import Path

from memplan.doctor.check import Check
from memplan.page_cache import cached_bytes
from memplan.pages import PAGE_BYTES, PageMap
from memplan.procfs import ProcessMemory, proportional_bytes
from memplan.units import bytes_text

_PAGES = 64
_WRITTEN = 16


def page_map() -> Check:
    """Touches one page of 64 and counts."""
    try:
        found_bytes, _ = _one_page_of(_PAGES)
    except OSError as error:
        return Check(
            name="page map",
            state="no",
            found=str(error),
            means="resident weights cannot be told from mapped ones: attribution stays open",
            remedy="run where /proc/self/pagemap can be read",
        )
    is_right = found_bytes == PAGE_BYTES
    return Check(
        name="page map",
        state="yes" if is_right else "no",
        found=f"1 of {_PAGES} pages was touched, {found_bytes // PAGE_BYTES} counted",
        means="weights are counted by their resident pages"
        if is_right
        else "the page map is wrong here: do not believe the weights of an attribution",
        remedy="" if is_right else "measure on another kernel",
    )


def page_scan() -> Check:
    try:
        _, can_scan = _one_page_of(_PAGES)
    except OSError:
        can_scan = False
    return Check(
        name="page scan",
        state="yes" if can_scan else "note",
        found="the kernel counts pages itself (PAGEMAP_SCAN)"
        if can_scan
        else "no PAGEMAP_SCAN: the page map is read entry by entry",
        means="counting takes 3 µs a MiB"
        if can_scan
        else "counting takes about seven times as long, between steps; no figure is lost",
        remedy="" if can_scan else "Linux 6.7 or newer",
    )


def _one_page_of(pages: int) -> tuple[int, bool]:
    """Bytes counted of an area with one page touched, and whether the kernel did the counting."""
    size_bytes = pages * PAGE_BYTES
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[0] = 1
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        page_map = PageMap()
        try:
            found_bytes = page_map.resident_bytes(start, start + size_bytes)
            return found_bytes, page_map.can_scan
        finally:
            page_map.close()


def proportional_size() -> Check:
    """PSS: a page that n processes map counts as one n-th for each."""
    pss_bytes = proportional_bytes()
    if pss_bytes is None:
        return Check(
            name="proportional size",
            state="no",
            found="no Pss in /proc/self/smaps_rollup",
            means="pages that several processes of an engine share count once for each of them",
            remedy="a kernel with /proc/PID/smaps_rollup (Linux 4.14)",
        )
    with ProcessMemory() as memory:
        resident_bytes = memory.read()["host.rss"]
    return Check(
        name="proportional size",
        state="yes",
        found=f"{bytes_text(pss_bytes)} of {bytes_text(resident_bytes)} resident (smaps_rollup)",
        means="what processes share can be told from what each holds alone; read at rest only",
    )


def page_cache() -> Check:
    """Writes a quarter of a file and asks which of its pages are in the page cache."""
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(_PAGES * PAGE_BYTES)
            file.write(b"\1" * (_WRITTEN * PAGE_BYTES))
            file.flush()
            cached = cached_bytes([Path(file.name)])
        counted = "no answer" if cached is None else f"{cached // PAGE_BYTES} are said to be cached"
        found = f"{_WRITTEN} of {_PAGES} pages of a file were written, {counted}"
    except OSError as error:
        cached, found = None, str(error)
    is_right = cached == _WRITTEN * PAGE_BYTES
    return Check(
        name="page cache",
        state="yes" if is_right else "no",
        found=found,
        means="whether weights were cached before a start can be told (mincore)"
        if is_right
        else "a cold start cannot be told from a warm one: the cold one is charged for its weights",
        remedy="" if is_right else "a Linux kernel whose mincore is true (gVisor's is not)",
    )
