"""A CSV of the user's own, whose columns he names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from memplan.errors import InputError
from memplan.workload.formats.azure import iso_ns
from memplan.workload.formats.csv_rows import Cells, csv_number, csv_rows, csv_tokens
from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow

NAME = "columns"
_REQUIRED = ("timestamp", "input", "output")
_OPTIONAL = ("session", "class", "id", "e2e", "ttft")
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "iso": 1e9}
_HINT = "--columns timestamp=COLUMN,input=COLUMN,output=COLUMN,unit=s"


def columns_format(text: str) -> Format:
    """Of ``timestamp=…,input=…,output=…,unit=s|ms|us|iso`` and, where there are such columns,
    ``session=…,class=…,id=…,e2e=…,ttft=…`` (the last two in the same unit, seconds for iso). Raises
    InputError."""
    named: dict[str, str] = {}
    faults = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        key, equals, column = part.partition("=")
        if key not in (*_REQUIRED, *_OPTIONAL, "unit") or not equals or not column:
            expected = ", ".join((*_REQUIRED, "unit", *_OPTIONAL))
            faults.append(f"got {part!r}, expected NAME=COLUMN with a name of {expected}")
        elif key in named:
            faults.append(f"{key} is given twice")
        else:
            named[key] = column
    unit = named.pop("unit", None)
    faults += [f"{name} is missing" for name in _REQUIRED if name not in named]
    if unit not in _UNITS:
        faults.append(f"unit: got {unit!r}, expected {', '.join(_UNITS)}; it is never guessed")
    if faults:
        raise InputError.of_faults("--columns", faults, hint=_HINT)
    assert unit is not None
    return Format(
        name=NAME,
        recognised_by="the columns that --columns names",
        fits=lambda _: False,
        rows=partial(_rows, named=named, unit=unit),
    )


def _rows(
    lines: Lines, reading: Reading, *, named: Mapping[str, str], unit: str
) -> Iterator[Timed]:
    reading.units_per_s = _UNITS[unit]
    per_s = 1.0 if unit == "iso" else _UNITS[unit]
    if unit == "iso":
        reading.time_origin_ns = 0

    def text(cells: Cells, key: str) -> str | None:
        return cells[named[key]] or None if key in named else None

    def observed_s(cells: Cells, key: str) -> float | None:
        if key not in named or not cells[named[key]]:
            return None
        return csv_number(cells, named[key]) / per_s

    def row(number: int, cells: Cells) -> Timed:
        at = named["timestamp"]
        return Timed(
            time=iso_ns(cells[at], at) if unit == "iso" else csv_number(cells, at),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=csv_tokens(cells, named["input"]),
                output_tokens=csv_tokens(cells, named["output"]),
                request_id=text(cells, "id"),
                session_id=text(cells, "session"),
                class_label=text(cells, "class"),
                observed_ttft_s=observed_s(cells, "ttft"),
                observed_e2e_s=observed_s(cells, "e2e"),
            ),
        )

    yield from csv_rows(lines, reading, tuple(dict.fromkeys(named.values())), row)
