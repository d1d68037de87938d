"""What a JSON row of somebody else's log shares: checked objects in, timed rows or a counted drop
out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from memplan.workload.formats.fields import BadFieldError, got, json_object
from memplan.workload.formats.reading import Lines, Reading, Timed

Record = Mapping[str, Any]
RowOf = Callable[[int, Record], Timed | str]
"""A row, or the reason why it is dropped."""


def log_rows(lines: Lines, reading: Reading, row_of: RowOf) -> Iterator[Timed]:
    for number, text in lines:
        record = json_object(text)
        if record is None:
            reading.rows_read += 1
            reading.fault(number, "not a JSON object, or cut off")
            continue
        yield from record_rows(number, [record], reading, row_of)


def record_rows(
    number: int, records: list[Any], reading: Reading, row_of: RowOf
) -> Iterator[Timed]:
    """Several of one line, such as the spans of an export."""
    for record in records:
        reading.rows_read += 1
        try:
            if not isinstance(record, dict):
                raise BadFieldError(f"got {got(record)}, expected an object")
            found = row_of(number, record)
        except BadFieldError as error:
            reading.fault(number, str(error))
            continue
        if isinstance(found, str):
            reading.dropped[found] += 1
        else:
            yield found


def number_in(record: Record, key: str) -> float:
    value = record.get(key)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e16:
        raise BadFieldError(f"{key}: got {got(record.get(key))}, expected a number")
    return float(value)


def seconds_in(record: Record, key: str) -> float | None:
    """None where it is absent."""
    return None if record.get(key) is None else number_in(record, key)


def tokens_in(record: Record, key: str) -> int:
    """Whole, from a number or from its digits."""
    value = number_in(record, key)
    if value != int(value) or not 0 <= value < 2**31:
        raise BadFieldError(f"{key}: got {got(record.get(key))}, expected a whole number of tokens")
    return int(value)


def object_in(record: Record, key: str) -> Record:
    """Empty where it is absent."""
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadFieldError(f"{key}: got {got(value)}, expected an object")
    return value


def list_in(record: Record, key: str) -> list[Any]:
    """Empty where it is absent."""
    value = record.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadFieldError(f"{key}: got {got(value)}, expected a list")
    return value


def word_in(record: Record, key: str) -> str | None:
    value = record.get(key)
    return value if isinstance(value, str) and value else None
