"""The kernel's mark of the most that was ever charged to a group, and setting it back.

Version 1 resets the mark of the group (write to memory.max_usage_in_bytes). Version 2 resets it for
one open file only (write to memory.peak, Linux 6.12): whoever opens the file anew reads the mark of
the whole life, and a second file that resets spoils the first one's mark: it then reads the present
charge (measured on 6.12: 0.3 MB after a peak of 50 MB). So there is one descriptor for each group in
this process, and everyone who asks for the group's mark gets the same.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Mapping
from pathlib import Path

from memplan.cgroups.place import Place, Version

_PEAK_FILE: Mapping[Version, str] = {"v1": "memory.max_usage_in_bytes", "v2": "memory.peak"}
_marks: weakref.WeakValueDictionary[Path, PeakMark] = weakref.WeakValueDictionary()


class PeakMark:
    """Open while anyone holds it. Made by ``peak_mark_of`` only."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    def read(self) -> int:
        """Bytes: the most that was charged since ``reset``, or in the group's life without one.

        Raises OSError once the group is removed.
        """
        return int(os.pread(self._fd, 32, 0))

    def reset(self) -> bool:
        """Sets the mark to what is charged now. False where this kernel cannot, or we may not."""
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, b"0\n", 0)
            return True
        return False


def peak_mark_of(place: Place) -> PeakMark | None:
    """The group's one mark; None on a version 2 without memory.peak (before 5.19)."""
    path = place.folder / _PEAK_FILE[place.version]
    mark = _marks.get(path)
    if mark is None:
        fd = _opened(path)
        if fd is None:
            return None
        mark = _marks[path] = PeakMark(fd)
    return mark


def _opened(path: Path) -> int | None:
    for access in (os.O_RDWR, os.O_RDONLY):
        with contextlib.suppress(OSError):
            return os.open(path, access | os.O_CLOEXEC)
    return None
