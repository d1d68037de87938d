"""The CSV of Azure's 2023 traces: times without a zone, which are UTC, and two token counts."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence

from memplan.workload.formats.fields import (
    UTC_TIME,
    BadFieldError,
    got,
    json_object,
    ns_of,
    tokens_of,
)
from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def _fits(first_lines: Sequence[str]) -> bool:
    header, *rows = first_lines
    if json_object(header) is not None or not set(_COLUMNS) <= set(_columns(header)):
        return False
    times = [_cells(header, row).get("TIMESTAMP", "") for row in rows]
    return not any(re.search(r"(Z|[+-]\d{2}:?\d{2})$", time) for time in times)


def _rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    number, header = next(lines)
    columns = _columns(header)
    wrong = [name for name in _COLUMNS if columns.count(name) != 1]
    if wrong:
        reading.fault(number, f"header: expected the columns {', '.join(wrong)}, each once")
        return
    reading.time_origin_ns, reading.units_per_s = 0, 1e9
    for number, text in lines:
        reading.rows_read += 1
        cells = _cells(header, text)
        try:
            if len(cells) != len(columns):
                raise BadFieldError(f"got {len(cells)} fields, expected {len(columns)}")
            yield Timed(
                time=_ns_since_1970(cells["TIMESTAMP"]),
                row=TraceRow(
                    line=number,
                    timestamp_s=0.0,
                    input_tokens=_csv_tokens(cells, "ContextTokens"),
                    output_tokens=_csv_tokens(cells, "GeneratedTokens"),
                ),
            )
        except BadFieldError as error:
            reading.fault(number, str(error))


def _columns(header: str) -> list[str]:
    return [name.strip() for name in _fields(header)]


def _cells(header: str, text: str) -> dict[str, str]:
    """By column name; a row of another length than the header shows in the count."""
    fields, names = _fields(text), _columns(header)
    surplus = [f"column {index}" for index in range(len(names) + 1, len(fields) + 1)]
    return dict(zip([*names, *surplus], (field.strip() for field in fields), strict=False))


def _fields(text: str) -> list[str]:
    try:
        return next(csv.reader([text.strip()]), [])
    except csv.Error:
        return []


def _ns_since_1970(value: str) -> int:
    """Nanoseconds since 1970; integers, because a float of today's date keeps only 240 ns."""
    match = UTC_TIME.fullmatch(value)
    if match is None:
        raise BadFieldError(
            f"TIMESTAMP: got {got(value)}, expected a time without zone "
            "such as 2023-11-16 18:15:46.6805900"
        )
    return ns_of(match, "TIMESTAMP")


def _csv_tokens(cells: Mapping[str, str], key: str) -> int:
    text = cells[key]
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise BadFieldError(f"{key}: got {got(text)}, expected a whole number of tokens")
    return tokens_of({key: int(text)}, key, least=0)


AZURE_2023 = Format(
    name="azure_2023",
    recognised_by="a CSV header with TIMESTAMP, ContextTokens and GeneratedTokens, and times "
    "without a zone",
    fits=_fits,
    rows=_rows,
)
