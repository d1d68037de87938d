"""BurstGPT's CSVs: seconds since an unknown day, and rows of zero tokens, which are failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memplan.workload.formats.csv_rows import Cells, columns_of, csv_number, csv_rows, csv_tokens
from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow

_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
_SESSION = "Session ID"


def _fits(first_lines: Sequence[str], *, has_session: bool) -> bool:
    columns = columns_of(first_lines[0])
    return set(_COLUMNS) <= set(columns) and (_SESSION in columns) == has_session


def _rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    def row(number: int, cells: Cells) -> Timed:
        outputs = csv_tokens(cells, "Response tokens")
        return Timed(
            time=csv_number(cells, "Timestamp"),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=csv_tokens(cells, "Request tokens"),
                output_tokens=outputs,
                session_id=cells.get(_SESSION) or None,
                class_label=cells.get("Log Type") or None,
                labels={"model": cells["Model"]} if cells.get("Model") else {},
                observed_e2e_s=csv_number(cells, "Elapsed time")
                if cells.get("Elapsed time")
                else None,
                status="ok" if outputs else "error",
            ),
        )

    yield from csv_rows(lines, reading, _COLUMNS, row)


BURSTGPT_V1 = Format(
    name="burstgpt_v1",
    recognised_by="a CSV header with Timestamp, Request tokens and Response tokens",
    fits=lambda first: _fits(first, has_session=False),
    rows=_rows,
)
BURSTGPT_V2 = Format(
    name="burstgpt_v2",
    recognised_by="the same header with Session ID",
    fits=lambda first: _fits(first, has_session=True),
    rows=_rows,
)
