"""Which malloc serves this process, what it holds, and how to make it give back what it does not use.

Read inside the engine process. The allocator is found by where the symbol ``malloc`` leads, never by
what was asked for: a library that is preloaded and does not serve must not pass for one that does.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Protocol

from memplan.engines.allocator.glibc import GlibcHeap
from memplan.engines.allocator.jemalloc import JemallocHeap
from memplan.engines.allocator.tcmalloc import TcmallocHeap

_MOVED_BY = ("MALLOC_", "GLIBC_TUNABLES", "TCMALLOC_")
"""Names or beginnings of names of environment variables that change what an allocator keeps."""


class Heap(Protocol):
    """One allocator's account of itself."""

    name: str
    version: str

    def gauges(self) -> Mapping[str, int]:
        """``host.heap_used``: bytes that malloc handed out and nobody freed, also those that were
        mapped one by one. ``host.heap_free``: bytes that the allocator keeps and nobody uses, an
        upper bound of what of them is resident. Empty where they are unknown."""
        ...

    def trim(self) -> None:
        """Gives back to the kernel what is free."""
        ...


class UnknownHeap:
    """An allocator that says nothing we understand: mimalloc, or the C library of musl."""

    version = ""

    def __init__(self, name: str) -> None:
        self.name = name

    def gauges(self) -> Mapping[str, int]:
        return {}

    def trim(self) -> None:
        """There is no way that we know."""


def heap_gauges() -> Mapping[str, int]:
    """``host.heap_used`` and ``host.heap_free`` of the allocator that serves this process.

    What each counts is said by its heap's ``gauges``. Empty where it gives no account (musl, glibc
    before 2.33, an allocator that we do not know): unknown, not zero.
    """
    return _heap().gauges()


def trim_heap() -> None:
    """Free bytes inside the heap go back to the kernel; nothing where the allocator is unknown."""
    _heap().trim()


def allocator_name() -> str:
    """``glibc``, ``jemalloc`` or ``tcmalloc``; any other by the file name of its library."""
    return _heap().name


def allocator_settings() -> Mapping[str, str]:
    """Which allocator serves, from which library, and the environment that moves it, as text."""
    heap = _heap()
    env = {key: value for key, value in sorted(os.environ.items()) if key.startswith(_MOVED_BY)}
    return {
        "allocator": heap.name,
        "allocator_version": heap.version or "unknown",
        "allocator_library": Path(_library_of("malloc")).name,
        **env,
    }


def check_allocator(asked: str) -> str:
    """Why malloc is not served as ``asked`` (``settings.allocator``); empty when it is."""
    heap = _heap()
    served = _library_of("malloc")
    is_system = served == _library_of("getpid")
    if is_system if asked == "system" else heap.name == asked:
        return ""
    remedy = f"; write allocator: {heap.name}" if heap.name in ("jemalloc", "tcmalloc") else ""
    return (
        f"settings.allocator is {asked}, but malloc is served by {heap.name} ({served}), and "
        f"LD_PRELOAD is {os.environ.get('LD_PRELOAD', '')!r}{remedy}"
    )


# --- steps ---------------------------------------------------------------------------------------


@cache
def _heap() -> Heap:
    path = _library_of("malloc")
    try:
        library = ctypes.CDLL(path)
    except OSError:  # linked into the executable, which cannot be opened as a library
        library = ctypes.CDLL(None)
    # A lookup in a library goes on in those that it needs, the C library among them: so that one
    # is asked last, and only where it serves itself.
    if hasattr(library, "mallctl"):
        return JemallocHeap(library)
    if hasattr(library, "MallocExtension_GetNumericProperty"):
        return TcmallocHeap(library)
    if path == _library_of("getpid") and hasattr(library, "gnu_get_libc_version"):
        return GlibcHeap(library)
    return UnknownHeap(Path(path).name)


class _SymbolInfo(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _library_of(symbol: str) -> str:
    """The file that this process's ``symbol`` comes from: the first in the order of lookup."""
    process = ctypes.CDLL(None)
    found = _SymbolInfo()
    address = ctypes.cast(getattr(process, symbol), ctypes.c_void_p)
    if not process.dladdr(address, ctypes.byref(found)) or not found.file:
        return ""
    return os.fsdecode(found.file)
