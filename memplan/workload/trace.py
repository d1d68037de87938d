"""A trace file in, its rows out: arrival times and lengths, in order of arrival, nothing invented.

Which of the formats a file has follows from its first record alone, by names and never by the size
of a number. docs/trace-formats.md is the reference.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, cast

from memplan.errors import InputError
from memplan.workload.formats.azure import AZURE_2023, AZURE_2024, AZURE_LMM_2025
from memplan.workload.formats.burstgpt import BURSTGPT_V1, BURSTGPT_V2
from memplan.workload.formats.canonical import MEMPLAN, canonical_row
from memplan.workload.formats.lengths_only import SERVEGEN, VIDUR
from memplan.workload.formats.mooncake import MOONCAKE
from memplan.workload.formats.named_columns import columns_format
from memplan.workload.formats.openai_batch import OPENAI_BATCH, OPENAI_BATCH_INPUT
from memplan.workload.formats.own_logs import LANGFUSE, LITELLM, OTEL
from memplan.workload.formats.public_json import BAILIAN, DYNAMO, TRACELAB, WEKA
from memplan.workload.formats.ragpulse import RAGPULSE
from memplan.workload.formats.reading import Columns, Format, Reading, Timed
from memplan.workload.formats.vllm_log import VLLM_LOG
from memplan.workload.trace_row import TraceRow

__all__ = ["FORMATS", "Trace", "TraceRow", "read_trace", "write_trace"]
FORMATS = (
    MEMPLAN, MOONCAKE, AZURE_2023, AZURE_2024, AZURE_LMM_2025, BURSTGPT_V1, BURSTGPT_V2, BAILIAN,
    RAGPULSE, WEKA, TRACELAB, DYNAMO, OPENAI_BATCH, OPENAI_BATCH_INPUT, OTEL, LITELLM, LANGFUSE,
    VLLM_LOG, VIDUR, SERVEGEN,
)  # fmt: skip
"""Exactly one of them fits a file, or it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHead:
    """A trace file without its rows."""

    source: str
    format: str
    sha256: str
    rows_read: int
    rows_kept: int
    dropped: Mapping[str, int]
    """Reason → rows that were read and left out."""
    time_origin: str | None
    """UTC time of the earliest kept row, ISO 8601, where the trace knows it."""
    written_from: str | None
    """What memplan made the file of, where memplan wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace file, read: its rows by arrival, ties in the order of the file."""

    source: str
    format: str
    sha256: str
    rows_read: int
    dropped: Mapping[str, int]
    """Reason → rows that were read and left out."""
    time_origin: str | None
    """UTC time of the earliest kept row, ISO 8601, where the trace knows it."""
    block_size: int | None
    """Tokens of one prefix block; None where no row has hash_ids."""
    rows: tuple[TraceRow, ...]

    @property
    def rows_kept(self) -> int:
        return len(self.rows)

    @property
    def span_s(self) -> float:
        return self.rows[-1].timestamp_s


def read_trace(path: Path, format: str | None = None, *, columns: str | None = None) -> Trace:
    """Reads line by line; the format is sniffed unless given. ``columns`` names those of a CSV of the
    user's own.

    Raises InputError when the format is not known, or with every fault of the file.
    """
    with scanned(path, format, columns) as scan:
        timed = sorted(scan.rows, key=lambda one: one.time)
        origin = timed[0].time if timed else 0.0
        head = scan.head(len(timed), origin)
        reading = scan.reading
    return Trace(
        source=head.source,
        format=head.format,
        sha256=head.sha256,
        rows_read=head.rows_read,
        dropped=head.dropped,
        time_origin=head.time_origin,
        block_size=reading.block_size,
        rows=tuple(
            replace(one.row, timestamp_s=(one.time - origin) / reading.units_per_s) for one in timed
        ),
    )


def opened(path: Path) -> BinaryIO:
    """As it was before it was packed with gzip or zstandard, by its first bytes."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if magic == b"\x28\xb5\x2f\xfd":
        import pyarrow  # noqa: PLC0415 - reads zstandard, and is here already

        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd")))
    return path.open("rb")


def write_trace(path: Path, trace: Trace, *, overwrite: bool = False) -> None:
    """The canonical form, ``memplan.trace.v1``: read_trace gives the same rows back."""
    header = {
        "memplan_trace": 1,
        "source": Path(trace.source).name,
        "source_sha256": trace.sha256,
        "time_unit": "ms",
        "time_origin": trace.time_origin,
        "block_size": trace.block_size,
        "hash_id_scope": "global",
        "rows_read": trace.rows_read,
        "rows_kept": trace.rows_kept,
        "dropped": dict(trace.dropped),
    }
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            for record in chain([header], map(canonical_row, trace.rows)):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except FileExistsError as error:
        raise InputError(f"{path}: exists already", hint="give another name, or --force") from error
    except OSError as error:
        raise _unusable(path, f"cannot be written: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A trace file on its way in: what it is, and its rows in the order of the file."""

    path: Path
    format: Format
    reading: Reading
    digest: hashlib._Hash
    """Of the bytes that were read so far."""
    rows: Iterator[Timed]
    """Those that can be replayed; the others, and faults, are counted in ``reading``."""

    def head(self, kept: int, origin: float) -> TraceHead:
        """Of a file that is read to its end, whose earliest kept row is at ``origin`` in the format's
        own time. Raises InputError with all faults of the file, or where no row is kept."""
        self.reading.raise_faults()
        if not kept:
            raise _unusable(self.path, _nothing_kept(self.reading))
        return TraceHead(
            source=str(self.path),
            format=self.format.name,
            sha256=self.digest.hexdigest(),
            rows_read=self.reading.rows_read,
            rows_kept=kept,
            dropped=dict(sorted(self.reading.dropped.items())),
            time_origin=_origin_text(self.reading, origin),
            written_from=self.reading.written_from,
        )


@contextmanager
def scanned(path: Path, format: str | None, columns: str | None) -> Iterator[Scan]:
    """Raises InputError, also from the rows that are read within."""
    try:
        if path.is_dir():
            raise _unusable(path, "is a folder, expected a trace file")
        if path.exists() and not path.is_file():
            raise _unusable(path, "is not a regular file")
        with opened(path) as file:
            yield _scan(path, file, format, columns)
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise _unusable(path, "is packed, and its end is missing or broken") from error


def _scan(path: Path, file: BinaryIO, wanted: str | None, columns: str | None) -> Scan:
    reading, digest = Reading(path), hashlib.sha256()
    lines = _whole_document(_lines(file, reading, digest))
    first = list(islice(lines, 2))
    reading.raise_faults()
    if not first:
        raise _unusable(path, "is empty, expected one request a line")
    if columns is not None and wanted is not None:
        raise InputError(
            "--format and --columns: the one names a known format, the other a CSV of your own",
            hint="leave one of the two out",
        )
    format = (
        columns_format(columns)
        if columns is not None
        else _format_of(path, wanted, [text for _, text in first])
    )
    rows = _runnable(format.rows(chain(first, lines), reading), reading)
    return Scan(path=path, format=format, reading=reading, digest=digest, rows=rows)


def _lines(file: BinaryIO, reading: Reading, digest: hashlib._Hash) -> Iterator[tuple[int, str]]:
    """Number and text of every line that holds something; hashes the bytes as they pass."""
    for number, raw in enumerate(file, start=1):
        digest.update(raw)
        reading.bytes_read += len(raw)
        if b"\0" in raw:
            raise _unusable(reading.path, f"is not text (line {number} holds binary data)")
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            reading.fault(number, "not UTF-8 text")
            continue
        if text.strip():
            yield number, text


def _whole_document(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """A file that is one JSON document over many lines comes as one line; a list, item by item."""
    number, first = next(lines, (0, ""))
    if not number:
        return
    if first.strip() not in ("{", "[") and not first.lstrip().startswith("[{"):
        yield number, first
        yield from lines
        return
    text = "\n".join([first, *(text for _, text in lines)])
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        yield number, first
        return
    for item in document if isinstance(document, list) else [document]:
        yield number, json.dumps(item)


def _format_of(path: Path, wanted: str | None, first_lines: Sequence[str]) -> Format:
    names = [format.name for format in FORMATS]
    if wanted is not None:
        if wanted not in names:
            raise InputError(
                f"--format: got {wanted!r}, expected one of {', '.join(names)}",
                hint="leave --format out to have the format recognised",
            )
        return FORMATS[names.index(wanted)]
    fitting = [format for format in FORMATS if format.fits(first_lines)]
    if len(fitting) > 1:
        raise InputError(
            f"{path}: the first record fits {' and '.join(one.name for one in fitting)}",
            hint=f"name one: --format {fitting[0].name}",
        )
    found = fitting[0] if fitting else None
    if found is None:
        looked_for = "\n".join(f"  {one.name}: {one.recognised_by}" for one in FORMATS)
        raise InputError(
            f"{path}: the format is not recognised from its first record; looked for\n{looked_for}",
            hint=f"name it: --format {'|'.join(names)}; or, for a CSV of your own, its columns: "
            "--columns timestamp=COLUMN,input=COLUMN,output=COLUMN,unit=s",
        )
    return found


def _runnable(found: Iterator[Timed], reading: Reading) -> Iterator[Timed]:
    """Leaves out what never loaded an engine, and says how often; refuses an id given twice."""
    line_of_id: dict[str, int] = {}
    for one in found:
        row = one.row
        if row.request_id is not None:
            first = line_of_id.setdefault(row.request_id, row.line)
            if first != row.line:
                reading.fault(row.line, f"request_id {row.request_id!r} is also on line {first}")
        if row.status in ("error", "rejected"):
            reading.dropped[f"status_{row.status}"] += 1
        elif row.input_tokens == 0:
            reading.dropped["zero_input"] += 1
        elif row.output_tokens == 0 and row.cancel_after_s is None:
            reading.dropped["zero_output"] += 1
        else:
            yield one


def runnable_columns(found: Columns, reading: Reading) -> Columns:
    """As `_runnable` leaves rows out; these have neither an id nor a status."""
    has_input = found.input_tokens > 0
    has_both = has_input & (found.output_tokens > 0)
    for reason, count in (
        ("zero_input", len(has_input) - int(has_input.sum())),
        ("zero_output", int(has_input.sum()) - int(has_both.sum())),
    ):
        if count:
            reading.dropped[reason] += count
    return found if has_both.all() else Columns(*(column[has_both] for column in found))


def _nothing_kept(reading: Reading) -> str:
    if not reading.rows_read:
        return "holds no rows, expected one request a line"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in reading.dropped.items())
    return f"none of its {reading.rows_read:,} rows can be replayed ({reasons})"


def _origin_text(reading: Reading, origin: float) -> str | None:
    if reading.time_origin_ns is None:
        return None
    # Integer nanoseconds stay exact; milliseconds come from a header that named the origin.
    moved_ns = (
        int(origin) if reading.units_per_s == 1e9 else round(origin * 1e9 / reading.units_per_s)
    )
    seconds, rest_ns = divmod(reading.time_origin_ns + moved_ns, 10**9)
    day = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{day}.{f'{rest_ns:09d}'.rstrip('0') or '0'}Z"


def _unusable(path: Path, text: str) -> InputError:
    return InputError(f"{path}: {text}", hint="docs/trace-formats.md shows what a trace looks like")
