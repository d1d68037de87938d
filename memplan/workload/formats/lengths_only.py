"""Files that hold lengths and no arrivals, or a generator's parameters: refused, with what would
help."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from memplan.errors import InputError
from memplan.workload.formats.csv_rows import Cells, columns_of, csv_number, csv_rows, csv_tokens
from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow

_VIDUR = ("num_prefill_tokens", "num_decode_tokens")
_ARRIVED = "arrived_at"


def _vidur_rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    number, header = next(lines)
    if _ARRIVED not in columns_of(header):
        raise InputError(
            f"{reading.path}:{number}: a vidur table without {_ARRIVED} holds lengths and no arrivals",
            hint="add a column arrived_at with seconds; memplan invents no arrivals",
        )

    def row(number: int, cells: Cells) -> Timed:
        return Timed(
            time=csv_number(cells, _ARRIVED),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=csv_tokens(cells, "num_prefill_tokens"),
                output_tokens=csv_tokens(cells, "num_decode_tokens"),
            ),
        )

    def all_lines() -> Iterator[tuple[int, str]]:
        yield number, header
        yield from lines

    yield from csv_rows(all_lines(), reading, (*_VIDUR, _ARRIVED), row)


def _servegen_fits(first_lines: Sequence[str]) -> bool:
    return all(_is_bare(line.strip().split(",")) for line in first_lines)


def _is_bare(cells: Sequence[str]) -> bool:
    number = r"[0-9.eE+-]*"
    return len(cells) == 6 and all(re.fullmatch(rf"{number}|Gamma|Weibull", one) for one in cells)


def _servegen_rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    raise InputError(
        f"{reading.path}: ServeGen's chunk tables are parameters of a generator, not a log of requests",
        hint="memplan trace sample FOLDER sampled.jsonl makes requests of all clients of its folder",
    )


VIDUR = Format(
    name="vidur",
    recognised_by="a CSV header with num_prefill_tokens and num_decode_tokens",
    fits=lambda first: set(_VIDUR) <= set(columns_of(first[0])),
    rows=_vidur_rows,
)
SERVEGEN = Format(
    name="servegen",
    recognised_by="six bare columns of numbers, blanks, Gamma or Weibull",
    fits=_servegen_fits,
    rows=_servegen_rows,
)
