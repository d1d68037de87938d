"""What a format and its reader share: lines in, timed rows out, and what comes to light between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from memplan.errors import InputError
from memplan.workload.trace_row import TraceRow

if TYPE_CHECKING:  # 11 MiB that a replay of most formats does without
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

_FAULTS_SHOWN = 20
Lines = Iterator[tuple[int, str]]
"""Number and text of every line that holds something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A row before its time is counted from the first one."""

    time: float
    """In the format's own unit, of which a second has ``Reading.units_per_s``."""
    row: TraceRow


class Columns(NamedTuple):
    """Rows of a file in its order, chats without labels."""

    times: Ints
    """Nanoseconds since 1970."""
    input_tokens: Ints
    output_tokens: Ints


class ByteSource(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class NotColumnarError(Exception):
    """A file has to be read row by row."""


class Reading:
    """What comes to light while a file is read: its unit, its faults, the rows left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows_read = 0
        self.bytes_read = 0
        self.dropped: Counter[str] = Counter()
        self.faults: list[str] = []
        self.fault_count = 0
        self.units_per_s = 1.0
        self.time_origin_ns: int | None = None
        self.block_size: int | None = None
        self.written_from: str | None = None
        """What memplan made the file of, where memplan wrote it."""

    def fault(self, line: int, text: str) -> None:
        self.fault_count += 1
        if len(self.faults) < _FAULTS_SHOWN:
            self.faults.append(f"  {self.path}:{line} {text}")

    def raise_faults(self) -> None:
        if not self.fault_count:
            return
        unseen = self.fault_count - len(self.faults)
        more = [f"  and {unseen:,} more"] if unseen else []
        plural = "s" if self.fault_count > 1 else ""
        head = f"{self.path}: {self.fault_count:,} fault{plural}"
        raise InputError(
            "\n".join([head, *self.faults, *more]),
            hint="correct or remove these lines; docs/trace-formats.md lists every field",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to write a trace."""

    name: str
    recognised_by: str
    """What ``fits`` looks for, in words."""
    fits: Callable[[Sequence[str]], bool]
    """Whether the first two lines, or the only one, are of this format: by names alone."""
    columns: Callable[[ByteSource, Reading], Iterator[Columns]] | None = None
    """The same rows many at a time; raises NotColumnarError as soon as one is not as this format writes
    it, and then the rows are to be read one by one. None where the format has no such way."""
    rows: Callable[[Lines, Reading], Iterator[Timed]]
    """The rows of the file in its order; notes in the Reading what the file says of itself."""
