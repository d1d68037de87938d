"""A CSV of times and lengths by columns, as Arrow reads it: about twenty times as fast as row by row.

Arrow is more lenient than the rows' reader in some things and names one fault where that names all. So
whatever is not plainly right here is left to the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from memplan.workload.formats.reading import ByteSource, Columns, NotColumnarError, Reading

if TYPE_CHECKING:
    from memplan.workload.formats.reading import Ints

_BLOCK_BYTES = 1 << 22
_MOST_TOKENS = 2**31
# Narrower than what the rows allow, never wider; years whose nanoseconds fit 64 bits.
_TIME = (
    r"^(19[7-9][0-9]|2[01][0-9]{2})-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
)
_ZONE = r"(Z|[+-][0-9]{2}:[0-9]{2})"


def time_and_tokens(
    file: ByteSource, reading: Reading, time: str, inputs: str, outputs: str, *, has_zone: bool
) -> Iterator[Columns]:
    """Of a file that has these three columns, in any order, and no other."""
    import pyarrow as pa  # noqa: PLC0415 - half a second, and not every format needs it
    import pyarrow.compute as pc  # noqa: PLC0415
    from pyarrow import csv  # noqa: PLC0415

    kinds = {time: pa.string(), inputs: pa.int64(), outputs: pa.int64()}
    moment = pa.timestamp("ns", "UTC" if has_zone else None)
    form = f"{_TIME}{_ZONE if has_zone else ''}$"
    try:
        for block in _blocks(file):
            # Not csv.open_csv: its readahead thread would outlive a reading that is given up.
            table = csv.read_csv(
                pa.BufferReader(block),
                read_options=csv.ReadOptions(use_threads=False, block_size=len(block)),
                convert_options=csv.ConvertOptions(column_types=kinds, null_values=[]),
            ).combine_chunks()
            if sorted(table.schema.names) != sorted(kinds):
                raise NotColumnarError
            for batch in table.to_batches():
                texts = batch.column(time)
                if not pc.all(pc.match_substring_regex(texts, form)).as_py():
                    raise NotColumnarError
                found = Columns(
                    times=pc.cast(texts, moment).cast(pa.int64()).to_numpy(),
                    input_tokens=_tokens(batch.column(inputs)),
                    output_tokens=_tokens(batch.column(outputs)),
                )
                reading.rows_read += len(found.times)
                yield found
    except pa.ArrowException as error:
        raise NotColumnarError from error


def _blocks(file: ByteSource) -> Iterator[bytes]:
    """The file's whole lines, block by block, its first line before each."""
    header, rest = b"", b""
    while read := file.read(_BLOCK_BYTES):
        rest += read
        end = rest.rfind(b"\n") + 1
        if end:
            if not header:
                yield rest[:end]
                header = rest[: rest.index(b"\n") + 1]
            else:
                yield header + rest[:end]
            rest = rest[end:]
    if rest:
        yield header + rest


def _tokens(column: Any) -> Ints:
    values: Ints = column.to_numpy()
    if len(values) and (values.min() < 0 or values.max() >= _MOST_TOKENS):
        raise NotColumnarError
    return values
