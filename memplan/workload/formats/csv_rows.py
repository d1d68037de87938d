"""Rows of a CSV by the names of its columns, in any order, quoted or not, with a byte order mark or
without."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from memplan.workload.formats.fields import BadFieldError, got, json_object, tokens_of
from memplan.workload.formats.reading import Lines, Reading, Timed

Cells = Mapping[str, str]


def columns_of(header: str) -> list[str]:
    """Empty for a line that is JSON."""
    if json_object(header) is not None:
        return []
    return [name.strip() for name in _fields(header)]


def cells_of(header: str, text: str) -> dict[str, str]:
    """By column name; a row of another length than the header shows in the count."""
    fields, names = _fields(text), columns_of(header)
    surplus = [f"column {index}" for index in range(len(names) + 1, len(fields) + 1)]
    return dict(zip([*names, *surplus], (field.strip() for field in fields), strict=False))


def csv_rows(
    lines: Lines,
    reading: Reading,
    wanted: Sequence[str],
    row_of: Callable[[int, Cells], Timed | None],
) -> Iterator[Timed]:
    """``row_of`` gets a line's number and cells; None where the row is counted as dropped already."""
    number, header = next(lines)
    columns = columns_of(header)
    wrong = [name for name in wanted if columns.count(name) != 1]
    if wrong:
        reading.fault(number, f"header: expected the columns {', '.join(wrong)}, each once")
        return
    for number, text in lines:
        reading.rows_read += 1
        cells = cells_of(header, text)
        try:
            if len(cells) != len(columns):
                raise BadFieldError(f"got {len(cells)} fields, expected {len(columns)}")
            found = row_of(number, cells)
        except BadFieldError as error:
            reading.fault(number, str(error))
            continue
        if found is not None:
            yield found


def csv_tokens(cells: Cells, key: str) -> int:
    text = cells[key]
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise BadFieldError(f"{key}: got {got(text)}, expected a whole number of tokens")
    return tokens_of({key: int(text)}, key, least=0)


def csv_number(cells: Cells, key: str) -> float:
    text = cells[key]
    if not re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?", text):
        raise BadFieldError(f"{key}: got {got(text)}, expected a number")
    return float(text)


def _fields(text: str) -> list[str]:
    try:
        return next(csv.reader([text.strip()]), [])
    except csv.Error:
        return []
