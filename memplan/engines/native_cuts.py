"""The same in C: a cut without Python on the way, and a thread that needs no lock of Python's.

Code that runs once a step finds none of itself in the processor's caches. Where 64 MiB were written
between two of them, a close took 92 µs this way and 228 in Python when both read the whole status
(reports/LOG.md).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from memplan.compiled import Compiled, compile_once
from memplan.engines.cuts import LONGEST_SLICE_S, Ended, Slices

OFF = "MEMPLAN_SEGMENTS_IN_PYTHON"
"""Environment variable: closes segments without the library, as on a machine without a compiler."""

_SOURCE = Path(__file__).with_suffix(".c")
_LOOK_FOR_CHILDREN_S = 0.5
# As in native_cuts.c.
_RECORDS, _ENDS = 4096, 128
_RECORD = struct.Struct("d8q")
_GAUGES = ("host.rss", "host.anon", "host.file", "host.shmem", "host.page_tables", "host.swap")


RawRecords = tuple[bytes, bytes, int]
"""Records, what was counted of tensors at each end, and how many bytes that is."""


def ended_of(raw: RawRecords) -> tuple[list[Ended], Slices]:
    """The segments in it, and the slices of the one that was still open."""
    records, tensors, size = raw
    ended: list[Ended] = []
    slices: list[tuple[float, int]] = []
    for end_s, peak_bytes, *gauges, is_end in _RECORD.iter_unpack(records):
        slices.append((end_s, peak_bytes))
        if is_end:
            at = len(ended) * size
            counted = tensors[at : at + size] if size else None
            ended.append(Ended(tuple(slices), partial(_named, gauges), counted))
            slices = []
    return ended, tuple(slices)


def largest_resident_bytes() -> int:
    """The most that was ever resident in this process, before it became this program too; or since the
    mark was reset, if that is more."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def find_library(cache: Path) -> Compiled:
    """Compiles it on first use (0.2 s); never raises."""
    if os.environ.get(OFF):
        return Compiled(path=None, reason=f"{OFF} is set")
    return compile_once(_SOURCE, "library", cache)


class NativeCuts:
    """Of this process alone. Raises OSError where it cannot be.

    Goes on with the interval that the last reset began at ``cut_s``. ``earlier_bytes`` is
    ``largest_resident_bytes`` of an early moment, or of any: where marks are not above it a cut takes
    longer. ``count_tensors`` is a C function
    that writes what it counted in a segment, and how many bytes that is.
    """

    def __init__(
        self,
        library: Compiled,
        *,
        epoch_s: float,
        cut_s: float,
        earlier_bytes: int,
        count_tensors: tuple[int, int] | None,
    ) -> None:
        # PyDLL: Python's lock stays ours. To give it away would let another thread in between reading
        # a mark and resetting it, for 5 ms or for as long as a call into C takes.
        functions = ctypes.PyDLL(str(library.path), use_errno=True)
        tensors, self._tensor_bytes = count_tensors or (None, 0)
        functions.memplan_cuts_open.restype = ctypes.c_void_p
        handle = functions.memplan_cuts_open(
            ctypes.c_double(epoch_s),
            ctypes.c_double(cut_s),
            ctypes.c_double(LONGEST_SLICE_S),
            ctypes.c_double(_LOOK_FOR_CHILDREN_S),
            ctypes.c_int64(earlier_bytes),
            ctypes.c_void_p(tensors),
            ctypes.c_int64(self._tensor_bytes),
        )
        if not handle:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self._handle = ctypes.c_void_p(handle)
        self._functions = functions
        functions.memplan_cuts_end_function.restype = ctypes.py_object
        self.end: Callable[[], tuple[float, int, float]] = functions.memplan_cuts_end_function(
            self._handle
        )
        # Pages that nothing was written to are not resident, so that room costs nothing.
        self._records = mmap.mmap(-1, _RECORDS * _RECORD.size)
        self._tensors = mmap.mmap(-1, max(1, _ENDS * self._tensor_bytes))
        self._take = partial(
            functions.memplan_cuts_take,
            self._handle,
            *(ctypes.byref(ctypes.c_char.from_buffer(r)) for r in (self._records, self._tensors)),
        )
        self._ended: list[Ended] = []
        self._open: Slices = ()
        self._is_stopped = False
        self.cut_s = cut_s

    def raw(self) -> RawRecords | None:
        """What ``taken`` would tell, for ``ended_of``; None where only that can tell it."""
        return None if self._is_stopped or self._ended else self._taken()

    def taken(self) -> list[Ended]:
        self._read()
        ended, self._ended = self._ended, []
        return ended

    def pause(self, *, is_paused: bool) -> None:
        self._functions.memplan_cuts_pause(self._handle, int(is_paused))

    def stop(self) -> Slices:
        if not self._is_stopped:
            self._functions.memplan_cuts_pause(self._handle, 1)
            self._read()
            self._is_stopped = True
            self._functions.memplan_cuts_close(self._handle)
        return self._open

    # --- steps -----------------------------------------------------------------------------

    def _read(self) -> None:
        if not self._is_stopped:
            ended, self._open = ended_of(self._taken())
            self._ended += ended

    def _taken(self) -> RawRecords:
        ends, count = divmod(self._take(), 1 << 16)
        size = self._tensor_bytes
        return self._records[: count * _RECORD.size], self._tensors[: ends * size], size


def _named(gauges: list[int]) -> Mapping[str, int]:
    return {name: size for name, size in zip(_GAUGES, gauges, strict=True) if size >= 0}
