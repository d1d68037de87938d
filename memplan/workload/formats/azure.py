"""The CSVs of Azure's public traces: 2023 (times without a zone, which are UTC), 2024 (with one), and
the multimodal one of 2025 (with images)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from memplan.workload.formats.csv_columns import time_and_tokens
from memplan.workload.formats.csv_rows import Cells, cells_of, columns_of, csv_rows, csv_tokens
from memplan.workload.formats.fields import UTC_TIME, BadFieldError, got, ns_of
from memplan.workload.formats.reading import ByteSource, Columns, Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_IMAGES = "NumImages"
_ZONE = re.compile(r"(Z|[+-]\d{2}:?\d{2})$")


def zoned_ns(value: str, name: str) -> int:
    """Nanoseconds since 1970 of a time whose zone is written behind it; the fraction may be missing."""
    zone = _ZONE.search(value)
    match = UTC_TIME.fullmatch(value[: zone.start()]) if zone else None
    if zone is None or match is None:
        raise BadFieldError(
            f"{name}: got {got(value)}, expected a time with its zone such as 2024-05-12T00:00:00.5Z"
        )
    text = zone.group().replace(":", "")
    away_s = 0 if text == "Z" else int(text[:3]) * 3600 + int(text[0] + text[3:]) * 60
    return ns_of(match, name) - away_s * 10**9


def _fits(first_lines: Sequence[str], *, has_zone: bool, has_images: bool) -> bool:
    header, *rows = first_lines
    columns = columns_of(header)
    if not set(_COLUMNS) <= set(columns) or (_IMAGES in columns) != has_images:
        return False
    if has_images:
        return True
    times = [cells_of(header, row).get("TIMESTAMP", "") for row in rows]
    return any(map(_ZONE.search, times)) == has_zone


def _rows(lines: Lines, reading: Reading, *, has_zone: bool) -> Iterator[Timed]:
    reading.time_origin_ns, reading.units_per_s = 0, 1e9

    def row(number: int, cells: Cells) -> Timed:
        value = cells["TIMESTAMP"]
        images = csv_tokens(cells, _IMAGES) if _IMAGES in cells else 0
        return Timed(
            time=zoned_ns(value, "TIMESTAMP") if has_zone else _plain_ns(value),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=csv_tokens(cells, "ContextTokens"),
                output_tokens=csv_tokens(cells, "GeneratedTokens"),
                images=images,
                labels={"images": str(images)} if images else {},
            ),
        )

    yield from csv_rows(lines, reading, _COLUMNS, row)


def _columns(file: ByteSource, reading: Reading, *, has_zone: bool) -> Iterator[Columns]:
    reading.time_origin_ns, reading.units_per_s = 0, 1e9
    yield from time_and_tokens(file, reading, *_COLUMNS, has_zone=has_zone)


def _plain_ns(value: str) -> int:
    """Integers, because a float of today's date keeps only 240 ns."""
    match = UTC_TIME.fullmatch(value)
    if match is None:
        raise BadFieldError(
            f"TIMESTAMP: got {got(value)}, expected a time without zone "
            "such as 2023-11-16 18:15:46.6805900"
        )
    return ns_of(match, "TIMESTAMP")


def iso_ns(value: object, name: str) -> int:
    """Of an ISO time with a zone, or without one, which is UTC."""
    if isinstance(value, str):
        if _ZONE.search(value):
            return zoned_ns(value, name)
        match = UTC_TIME.fullmatch(value)
        if match is not None:
            return ns_of(match, name)
    if isinstance(value, datetime):
        return int(value.timestamp() * 1e9)
    raise BadFieldError(f"{name}: got {got(value)}, expected a time in ISO 8601")


AZURE_2023 = Format(
    name="azure_2023",
    recognised_by="a CSV header with TIMESTAMP, ContextTokens and GeneratedTokens, and times "
    "without a zone",
    fits=lambda first: _fits(first, has_zone=False, has_images=False),
    rows=lambda lines, reading: _rows(lines, reading, has_zone=False),
    columns=lambda file, reading: _columns(file, reading, has_zone=False),
)
AZURE_2024 = Format(
    name="azure_2024",
    recognised_by="the same header, and times that end in Z or an offset",
    fits=lambda first: _fits(first, has_zone=True, has_images=False),
    rows=lambda lines, reading: _rows(lines, reading, has_zone=True),
    columns=lambda file, reading: _columns(file, reading, has_zone=True),
)
AZURE_LMM_2025 = Format(
    name="azure_lmm_2025",
    recognised_by="the same header with NumImages",
    fits=lambda first: _fits(first, has_zone=True, has_images=True),
    rows=lambda lines, reading: _rows(lines, reading, has_zone=True),
)
