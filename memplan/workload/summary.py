"""A trace file in, its head and shape out, without keeping its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from memplan.records import Finding
from memplan.specs import ClassSpec
from memplan.workload.classify import class_rules
from memplan.workload.formats.reading import NotColumnarError, Reading
from memplan.workload.shape import ShapeBuilder, TraceShape
from memplan.workload.synth import MADE_BY
from memplan.workload.trace import Scan, TraceHead, opened, runnable_columns, scanned

_ROWS_TOLD = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    head: TraceHead
    shape: TraceShape
    class_rules: Mapping[str, str]
    """Class name → the rule that names it."""


def summarise_trace(
    path: Path,
    classes: Sequence[ClassSpec],
    format: str | None = None,
    *,
    columns: str | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> TraceSummary:
    """By columns where the format can be read so, else row by row: the same result. ``on_bytes`` hears
    how much of the file, unpacked, went in since it was last called.

    Raises InputError as read_trace does.
    """
    with scanned(path, format, columns) as scan:
        found = _by_columns(scan, classes, on_bytes) or _by_rows(scan, classes, on_bytes)
        head = found.scan.head(len(found.builder), found.earliest)
    shape = found.builder.shape()
    if (head.written_from or "").startswith(MADE_BY):
        shape = replace(shape, findings=(_made_up(head), *shape.findings))
    return TraceSummary(head=head, shape=shape, class_rules=class_rules(classes, shape.classes))


def _made_up(head: TraceHead) -> Finding:
    return Finding(
        code="made_up",
        text=f"It is made up: {head.written_from}.",
        hint="Let no budget rest on it alone: it is nobody's traffic.",
    )


class _Found(NamedTuple):
    scan: Scan
    builder: ShapeBuilder
    earliest: float
    """Time of a kept row, in the format's own unit."""


def _by_rows(scan: Scan, classes: Sequence[ClassSpec], on_bytes: Callable[[int], None]) -> _Found:
    builder = ShapeBuilder(classes)
    first: float | None = None
    earliest, told = 0.0, 0
    for number, one in enumerate(scan.rows):
        if first is None:
            first = earliest = one.time
        # Whole nanoseconds are subtracted before they become a float, which would round them.
        builder.add_row((one.time - first) / scan.reading.units_per_s, one.row)
        earliest = min(earliest, one.time)
        if number % _ROWS_TOLD == 0:
            on_bytes(scan.reading.bytes_read - told)
            told = scan.reading.bytes_read
    return _Found(scan, builder, earliest)


def _by_columns(
    scan: Scan, classes: Sequence[ClassSpec], on_bytes: Callable[[int], None]
) -> _Found | None:
    """None where rows have to be read one by one: nothing of the scan is used up then."""
    if scan.format.columns is None:
        return None
    builder, digest = ShapeBuilder(classes), hashlib.sha256()
    reading = Reading(scan.path)
    first: int | None = None
    earliest = 0
    try:
        with opened(scan.path) as file:
            for batch in scan.format.columns(_Heard(file, digest, on_bytes), reading):
                kept = runnable_columns(batch, reading)
                if not len(kept.times):
                    continue
                if first is None:
                    first = earliest = int(kept.times[0])
                earliest = min(earliest, int(kept.times.min()))
                times_s = (kept.times - first) / reading.units_per_s
                builder.add(times_s, kept.input_tokens, kept.output_tokens)
    except NotColumnarError:
        return None
    return _Found(replace(scan, reading=reading, digest=digest), builder, earliest)


class _Heard:
    """A file whose bytes are hashed and counted as they pass."""

    closed = False

    def __init__(
        self, file: BinaryIO, digest: hashlib._Hash, on_bytes: Callable[[int], None]
    ) -> None:
        self._file, self._digest, self._on_bytes = file, digest, on_bytes

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        self._digest.update(found)
        self._on_bytes(len(found))
        return found
