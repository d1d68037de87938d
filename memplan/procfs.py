"""The kernel's own words about one process: resident bytes, their split, and the high-water mark.

Reads kept-open files of ``/proc/PID``: 1.5 µs for statm and about 10 µs for status, whatever the
size of the process. Never touches smaps, which stalls every mmap of a large process while it is
read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from memplan.pages import PAGE_BYTES

_STATUS_GAUGES = (
    (b"\nVmHWM:", "host.hwm"),
    (b"\nVmRSS:", "host.rss"),
    (b"\nRssAnon:", "host.anon"),
    (b"\nRssFile:", "host.file"),
    (b"\nRssShmem:", "host.shmem"),
    (b"\nVmPTE:", "host.page_tables"),
    (b"\nVmSwap:", "host.swap"),
)
"""In the order in which the kernel writes them."""


def drift_bound_bytes(cpu_count: int) -> int:
    """How far below the truth the kernel may report a high-water mark.

    Resident counters are kept per CPU and folded in batches of ``max(32, 2 * ncpu)`` pages
    (lib/percpu_counter.c, compute_batch_value), and three counters are summed.
    """
    return 3 * cpu_count * max(32, 2 * cpu_count) * PAGE_BYTES


def peak_in(text: bytes) -> int:
    """The high-water mark in a process's status, in bytes; 0 where there is none."""
    at = text.find(b"VmHWM:") + 6
    return int(text[at : text.index(b" kB", at)]) * 1024 if at > 5 else 0


class ProcessMemory:
    """One process's memory, with its files kept open.

    Raises ProcessLookupError, from any method, once the process is gone.
    """

    def __init__(self, pid: int | str = "self") -> None:
        self._status = self._open(f"/proc/{pid}/status", os.O_RDONLY)
        self._clear = -1
        self._pid = pid

    @staticmethod
    def _open(path: str, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(path) from error

    def read(self) -> Mapping[str, int]:
        """All host gauges, in bytes. ``host.hwm`` is the peak since the last ``reset_peak``."""
        return self.gauges_of(self.read_text())

    def take_peak(self) -> Mapping[str, int]:
        """``read`` and ``reset_peak`` with nothing between them but one system call's return.

        What comes and goes in that gap, a microsecond or two, is seen by neither side.
        """
        text = self.read_text()
        self.reset_peak()
        return self.gauges_of(text)

    def read_text(self) -> bytes:
        """What ``gauges_of`` reads later, when there is time."""
        return os.pread(self._status, 4096, 0)

    def gauges_of(self, text: bytes) -> dict[str, int]:
        """As ``read`` returns them. Raises ProcessLookupError for the text of a dead process."""
        gauges = {}
        at = 0
        for line, gauge in _STATUS_GAUGES:
            found = text.find(line, at)
            if found >= 0:
                at = found + len(line)
                gauges[gauge] = int(text[at : text.index(b" kB", at)]) * 1024
        if "host.rss" not in gauges:  # a zombie's status has no memory lines
            raise ProcessLookupError(f"process {self._pid} has no memory any more")
        return gauges

    def reset_peak(self) -> None:
        """Sets the high-water mark to the present resident bytes (0.7 µs; no page is touched).

        One owner per process: whoever else resets takes peaks away from this one.
        Raises PermissionError for a process of another user.
        """
        if self._clear < 0:
            self._clear = self._open(f"/proc/{self._pid}/clear_refs", os.O_WRONLY)
        os.pwrite(self._clear, b"5", 0)

    def close(self) -> None:
        for fd in (self._status, self._clear):
            if fd >= 0:
                os.close(fd)
        self._status = self._clear = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# --- for quiet moments of any process: 10 µs a MiB, and its mmap and munmap wait meanwhile --------


def mapped_resident_bytes(pid: int, files: Sequence[Path]) -> int:
    """Resident pages of those files in one process (``Rss`` of smaps); 0 where nothing may be read."""
    names = {str(path.resolve()) for path in files}
    if not names:
        return 0
    total, is_ours = 0, False
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        parts = line.split(maxsplit=5)
        if not parts[0].endswith(":"):
            is_ours = len(parts) > 5 and parts[5] in names
        elif is_ours and parts[0] == "Rss:":
            total += int(parts[1]) * 1024
    return total


def proportional_bytes(pid: int | str = "self", part: str = "Pss") -> int | None:
    """PSS: each resident page divided by the processes that map it (``Pss`` of smaps_rollup); or of its
    file pages only (``Pss_File``, from 5.9 on).

    None where the kernel does not say (before 4.14), or not to us; raises ProcessLookupError once
    the process is gone.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        if Path(f"/proc/{pid}").exists():
            return None
        raise ProcessLookupError(f"process {pid} is gone") from error
    except OSError:
        return None
    found = re.search(rf"^{part}:\s+(\d+) kB$", text, re.MULTILINE)
    return None if found is None else int(found.group(1)) * 1024
