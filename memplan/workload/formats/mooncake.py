"""Mooncake's JSON Lines: lengths, milliseconds, and prefix blocks of a size it does not say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memplan.workload.formats.fields import json_object
from memplan.workload.formats.json_rows import json_rows
from memplan.workload.formats.reading import Format, Lines, Reading, Timed

_BLOCK_CHOICES = (512, 256, 128, 64, 32, 16)


def _fits(first_lines: Sequence[str]) -> bool:
    record = json_object(first_lines[0])
    return (
        record is not None
        and {"timestamp", "input_length", "output_length"} <= record.keys()
        and not {"chat_id", "memplan_trace"} & record.keys()
        and isinstance(record.get("hash_ids", []), list)
    )


def _rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    """The file does not say its block size: the one that fits every row is taken."""
    reading.units_per_s = 1e3
    fitting: tuple[int, ...] = _BLOCK_CHOICES
    misfit = None
    for one in json_rows(lines, reading, has_header=False, ids_are_per_session=False):
        row = one.row
        if row.hash_ids and fitting:
            still = tuple(b for b in fitting if -(-row.input_tokens // b) == len(row.hash_ids))
            if not still:
                misfit = (
                    row.line,
                    f"hash_ids: got {len(row.hash_ids)} ids for {row.input_tokens:,} tokens, "
                    f"expected one for each block of {' or '.join(map(str, fitting))} tokens",
                )
            fitting, reading.block_size = still, still[0] if still else None
        yield one
    if misfit is not None:
        reading.fault(*misfit)


MOONCAKE = Format(
    name="mooncake",
    recognised_by="a JSON object with timestamp, input_length and output_length, hash_ids a list "
    "or absent, and no chat_id",
    fits=_fits,
    rows=_rows,
)
