"""A trace file in, its rows out: arrival times and lengths, in order of arrival, nothing invented.

Three formats are read: memplan's own JSON Lines, Mooncake's, and the CSV of Azure's 2023 traces.
Which one a file is follows from its first record alone, by names and never by the size of a number.
docs/trace-formats.md is the reference.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, assert_never, get_args

from memplan.errors import InputError

TraceFormat = Literal["memplan", "mooncake", "azure_2023"]
Status = Literal["ok", "error", "cancelled", "rejected"]

_FORMATS: Mapping[str, TraceFormat] = {
    "memplan": "memplan",
    "mooncake": "mooncake",
    "azure_2023": "azure_2023",
}
LOOKED_FOR = (
    'memplan: a JSON object with "memplan_trace" on line 1',
    "mooncake: a JSON object with timestamp, input_length and output_length, hash_ids a list or "
    "absent, and no chat_id",
    "azure_2023: a CSV header with TIMESTAMP, ContextTokens and GeneratedTokens, and times "
    "without a zone",
)
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_AZURE_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
)
_BLOCK_CHOICES = (512, 256, 128, 64, 32, 16)
_MOST_TOKENS = 2**31 - 1
_LARGEST_TIME = 1e16
_FAULTS_SHOWN = 20
_LABEL_FIELDS = ("model", "adapter", "endpoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One request as the trace tells it."""

    line: int
    timestamp_s: float
    """After the earliest kept row."""
    input_tokens: int
    output_tokens: int
    request_id: str | None = None
    session_id: str | None = None
    operation: str = "chat"
    class_label: str | None = None
    """The class that the trace itself names."""
    labels: Mapping[str, str] = field(default_factory=dict)
    hash_ids: tuple[int, ...] = ()
    """Chained prefix blocks of the trace's ``block_size``; equal ids mean equal tokens."""
    status: Status = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace file, read: its rows by arrival, ties in the order of the file."""

    source: str
    format: TraceFormat
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


def read_trace(path: Path, format: str | None = None) -> Trace:
    """Reads line by line; the format is sniffed unless given.

    Raises InputError when the format is not known, or with every fault of the file.
    """
    try:
        if path.is_dir():
            raise _unusable(path, "is a folder, expected a trace file")
        if path.exists() and not path.is_file():
            raise _unusable(path, "is not a regular file")
        with path.open("rb") as file:
            return _read(path, file, format)
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror or error}") from error


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
            for record in chain([header], map(_canonical_row, trace.rows)):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except FileExistsError as error:
        raise InputError(f"{path}: exists already", hint="give another name, or --force") from error
    except OSError as error:
        raise _unusable(path, f"cannot be written: {error.strerror or error}") from error


def _canonical_row(row: TraceRow) -> dict[str, Any]:
    record = {
        # 100 ns: the finest resolution that any of the formats has
        "timestamp": round(row.timestamp_s * 1e3, 4),
        "input_length": row.input_tokens,
        "output_length": row.output_tokens,
        "request_id": row.request_id,
        "session_id": row.session_id,
        "operation": row.operation,
        "class": row.class_label,
        "labels": dict(row.labels),
        "hash_ids": list(row.hash_ids),
        "status": row.status,
    }
    return {key: value for key, value in record.items() if value not in (None, {}, [])}


# -- the file as lines, faults and rows -------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """A row before its time is counted from the first one."""

    time: float
    """In the format's own unit: milliseconds, or integer nanoseconds."""
    row: TraceRow


class _Reading:
    """What comes to light while a file is read: its faults, and the rows that are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows_read = 0
        self.dropped: Counter[str] = Counter()
        self.faults: list[str] = []
        self.fault_count = 0
        self.time_origin_ns: int | None = None
        self.block_size: int | None = None

    def fault(self, line: int, text: str) -> None:
        self.fault_count += 1
        if len(self.faults) < _FAULTS_SHOWN:
            self.faults.append(f"  {self.path}:{line} {text}")

    def raise_faults(self) -> None:
        if not self.fault_count:
            return
        unseen = self.fault_count - len(self.faults)
        more = [f"  and {unseen:,} more"] if unseen else []
        plural = "s" if self.fault_count > 1 else ""
        head = f"{self.path}: {self.fault_count:,} fault{plural}"
        raise InputError(
            "\n".join([head, *self.faults, *more]),
            hint="correct or remove these lines; docs/trace-formats.md lists every field",
        )


def _read(path: Path, file: BinaryIO, wanted: str | None) -> Trace:
    reading, digest = _Reading(path), hashlib.sha256()
    lines = _lines(file, reading, digest)
    first = list(islice(lines, 2))
    reading.raise_faults()
    if not first:
        raise _unusable(path, "is empty, expected one request a line")
    format = _format_of(path, wanted, [text for _, text in first])
    lines = chain(first, lines)
    match format:
        case "memplan":
            found, unit_per_s = _memplan_rows(lines, reading)
        case "mooncake":
            found, unit_per_s = _mooncake_rows(lines, reading), 1e3
        case "azure_2023":
            found, unit_per_s = _azure_rows(lines, reading), 1e9
        case _:
            assert_never(format)
    timed = sorted(_runnable(found, reading), key=lambda one: one.time)
    reading.raise_faults()
    if not timed:
        raise _unusable(path, _nothing_kept(reading))
    origin = timed[0].time
    return Trace(
        source=str(path),
        format=format,
        sha256=digest.hexdigest(),
        rows_read=reading.rows_read,
        dropped=dict(sorted(reading.dropped.items())),
        time_origin=_origin_text(reading, origin, unit_per_s),
        block_size=reading.block_size,
        rows=tuple(replace(one.row, timestamp_s=(one.time - origin) / unit_per_s) for one in timed),
    )


def _lines(file: BinaryIO, reading: _Reading, digest: hashlib._Hash) -> Iterator[tuple[int, str]]:
    """Number and text of every line that holds something; hashes the bytes as they pass."""
    for number, raw in enumerate(file, start=1):
        digest.update(raw)
        if b"\0" in raw or raw.startswith(b"\x1f\x8b"):
            raise _unusable(reading.path, f"is not text (line {number} holds binary data)")
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            reading.fault(number, "not UTF-8 text")
            continue
        if text.strip():
            yield number, text


def _format_of(path: Path, wanted: str | None, first_lines: list[str]) -> TraceFormat:
    if wanted is not None and wanted in _FORMATS:
        return _FORMATS[wanted]
    if wanted is not None:
        raise InputError(
            f"--format: got {wanted!r}, expected one of {', '.join(_FORMATS)}",
            hint="leave --format out to have the format recognised",
        )
    record = _json_object(first_lines[0])
    if record is not None:
        if "memplan_trace" in record:
            return "memplan"
        named = {"timestamp", "input_length", "output_length"} <= record.keys()
        if named and "chat_id" not in record and isinstance(record.get("hash_ids", []), list):
            return "mooncake"
    elif set(_AZURE_COLUMNS) <= set(_columns(first_lines[0])):
        times = [_cells(first_lines[0], line).get("TIMESTAMP", "") for line in first_lines[1:]]
        if not any(re.search(r"(Z|[+-]\d{2}:?\d{2})$", time) for time in times):
            return "azure_2023"
    looked_for = "\n".join(f"  {rule}" for rule in LOOKED_FOR)
    raise InputError(
        f"{path}: the format is not recognised from its first record; looked for\n{looked_for}",
        hint=f"name it: --format {'|'.join(_FORMATS)}",
    )


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _runnable(found: Iterator[_Timed], reading: _Reading) -> Iterator[_Timed]:
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
        elif row.output_tokens == 0:
            reading.dropped["zero_output"] += 1
        else:
            yield one


def _nothing_kept(reading: _Reading) -> str:
    if not reading.rows_read:
        return "holds no rows, expected one request a line"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in reading.dropped.items())
    return f"none of its {reading.rows_read:,} rows can be replayed ({reasons})"


def _origin_text(reading: _Reading, origin: float, unit_per_s: float) -> str | None:
    if reading.time_origin_ns is None:
        return None
    # Integer nanoseconds stay exact; milliseconds come from a header that named the origin.
    moved_ns = int(origin) if unit_per_s == 1e9 else round(origin * 1e9 / unit_per_s)
    seconds, rest_ns = divmod(reading.time_origin_ns + moved_ns, 10**9)
    day = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{day}.{f'{rest_ns:09d}'.rstrip('0') or '0'}Z"


def _unusable(path: Path, text: str) -> InputError:
    return InputError(f"{path}: {text}", hint="docs/trace-formats.md shows what a trace looks like")


# -- JSON lines: memplan and Mooncake ---------------------------------------------------------


class _BadFieldError(Exception):
    """One field of one row cannot be used; caught where the row's line is known."""


def _memplan_rows(
    lines: Iterator[tuple[int, str]], reading: _Reading
) -> tuple[Iterator[_Timed], float]:
    number, text = next(lines)
    header = _json_object(text) or {}
    unit = header.get("time_unit", "ms")
    unit_per_s = {'"ms"': 1e3, '"s"': 1.0}.get(json.dumps(unit))
    if header.get("memplan_trace") != 1:
        got = json.dumps(header.get("memplan_trace"))
        reading.fault(number, f"memplan_trace: got {got}, expected the header of version 1")
    if unit_per_s is None:
        reading.fault(number, f'time_unit: got {json.dumps(unit)}, expected "ms" or "s"')
    scope = header.get("hash_id_scope", "global")
    if scope not in ("global", "session"):
        reading.fault(
            number, f'hash_id_scope: got {json.dumps(scope)}, expected "global" or "session"'
        )
    try:
        block_size = header.get("block_size")
        reading.block_size = None if block_size is None else _tokens(header, "block_size", least=1)
        reading.time_origin_ns = _origin_ns(header.get("time_origin"))
    except _BadFieldError as error:
        reading.fault(number, str(error))
    rows = _json_rows(lines, reading, has_header=True, ids_are_per_session=scope == "session")
    return rows, unit_per_s or 1.0


def _origin_ns(value: Any) -> int | None:
    if value is None:
        return None
    match = _AZURE_TIME.fullmatch(value.removesuffix("Z")) if isinstance(value, str) else None
    if match is None:
        raise _BadFieldError(f"time_origin: got {_got(value)}, expected a UTC time in ISO 8601")
    return _ns_of(match, "time_origin")


def _mooncake_rows(lines: Iterator[tuple[int, str]], reading: _Reading) -> Iterator[_Timed]:
    """The file does not say its block size: the one that fits every row is taken."""
    fitting: tuple[int, ...] = _BLOCK_CHOICES
    misfit = None
    for one in _json_rows(lines, reading, has_header=False, ids_are_per_session=False):
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


def _json_rows(
    lines: Iterator[tuple[int, str]],
    reading: _Reading,
    *,
    has_header: bool,
    ids_are_per_session: bool,
) -> Iterator[_Timed]:
    own_ids: dict[tuple[str, int], int] = {}
    for number, text in lines:
        reading.rows_read += 1
        record = _json_object(text)
        if record is None:
            reading.fault(number, "not a JSON object, or cut off")
            continue
        try:
            time = _time(record)
            row = _json_row(number, record)
            if has_header and row is not None and row.hash_ids:
                _check_blocks(row, reading.block_size)
            if ids_are_per_session and row is not None and row.hash_ids:
                row = _with_global_ids(row, own_ids)
        except _BadFieldError as error:
            reading.fault(number, str(error))
            continue
        if row is None:
            reading.dropped["unknown_output_length"] += 1
        else:
            yield _Timed(time=time, row=row)


def _json_row(number: int, record: Mapping[str, Any]) -> TraceRow | None:
    """None where the output length is not known."""
    status = record.get("status", "ok")
    if status not in get_args(Status):
        expected = ", ".join(get_args(Status))
        raise _BadFieldError(f"status: got {_got(status)}, expected one of {expected}")
    input_tokens = _tokens(record, "input_length", least=0)
    if "output_length" in record and record["output_length"] is None and status == "ok":
        return None
    has_output = record.get("output_length") is not None or status == "ok"
    return TraceRow(
        line=number,
        timestamp_s=0.0,
        input_tokens=input_tokens,
        output_tokens=_tokens(record, "output_length", least=0) if has_output else 0,
        request_id=_text(record, "request_id"),
        session_id=_text(record, "session_id"),
        operation=_text(record, "operation") or "chat",
        class_label=_text(record, "class"),
        labels=_labels(record),
        hash_ids=_hash_ids(record),
        status=status,
    )


def _check_blocks(row: TraceRow, block_size: int | None) -> None:
    if block_size is None:
        raise _BadFieldError(
            "hash_ids: expected block_size in the header to say what they stand for"
        )
    blocks = -(-row.input_tokens // block_size)
    if blocks != len(row.hash_ids):
        raise _BadFieldError(
            f"hash_ids: got {len(row.hash_ids)} ids for {row.input_tokens:,} tokens, "
            f"expected {blocks} blocks of {block_size}"
        )


def _with_global_ids(row: TraceRow, own_ids: dict[tuple[str, int], int]) -> TraceRow:
    session = row.session_id
    if session is None:
        raise _BadFieldError('session_id: missing, expected one where hash_id_scope is "session"')
    ids = (own_ids.setdefault((session, one), len(own_ids)) for one in row.hash_ids)
    return replace(row, hash_ids=tuple(ids))


def _time(record: Mapping[str, Any]) -> float:
    if "timestamp" not in record:
        raise _BadFieldError("timestamp: missing, expected the arrival time")
    value = record["timestamp"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _BadFieldError(f"timestamp: got {_got(value)}, expected a number")
    if not -_LARGEST_TIME < value < _LARGEST_TIME:
        raise _BadFieldError(f"timestamp: got {_got(value)}, expected a time")
    return value


def _tokens(record: Mapping[str, Any], key: str, *, least: int) -> int:
    if key not in record:
        raise _BadFieldError(f"{key}: missing, expected a number of tokens")
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise _BadFieldError(f"{key}: got {_got(value)}, expected a whole number of tokens")
    if not least <= value <= _MOST_TOKENS:
        raise _BadFieldError(f"{key}: got {_got(value)}, expected {least} to {_MOST_TOKENS:,}")
    return value


def _text(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.isprintable():
        raise _BadFieldError(f"{key}: got {_got(value)}, expected printable text")
    return value


def _labels(record: Mapping[str, Any]) -> Mapping[str, str]:
    given = record.get("labels") or {}
    if not isinstance(given, dict):
        raise _BadFieldError(f"labels: got {_got(given)}, expected an object of texts")
    texts = {key: _text(given, key) for key in given} | {
        key: value for key in _LABEL_FIELDS if (value := _text(record, key)) is not None
    }
    return {key: text for key, text in texts.items() if text is not None}


def _hash_ids(record: Mapping[str, Any]) -> tuple[int, ...]:
    ids = record.get("hash_ids") or []
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise _BadFieldError(f"hash_ids: got {_got(ids)}, expected a list of whole numbers")
    return tuple(ids)


def _got(value: Any) -> str:
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}…"


# -- CSV: Azure 2023 --------------------------------------------------------------------------


def _azure_rows(lines: Iterator[tuple[int, str]], reading: _Reading) -> Iterator[_Timed]:
    number, header = next(lines)
    columns = _columns(header)
    wrong = [name for name in _AZURE_COLUMNS if columns.count(name) != 1]
    if wrong:
        reading.fault(number, f"header: expected the columns {', '.join(wrong)}, each once")
        return
    reading.time_origin_ns = 0
    for number, text in lines:
        reading.rows_read += 1
        cells = _cells(header, text)
        try:
            if len(cells) != len(columns):
                raise _BadFieldError(f"got {len(cells)} fields, expected {len(columns)}")
            yield _Timed(
                time=_azure_time(cells["TIMESTAMP"]),
                row=TraceRow(
                    line=number,
                    timestamp_s=0.0,
                    input_tokens=_csv_tokens(cells, "ContextTokens"),
                    output_tokens=_csv_tokens(cells, "GeneratedTokens"),
                ),
            )
        except _BadFieldError as error:
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


def _azure_time(value: str) -> int:
    """Nanoseconds since 1970; integers, because a float of today's date keeps only 240 ns."""
    match = _AZURE_TIME.fullmatch(value)
    if match is None:
        raise _BadFieldError(
            f"TIMESTAMP: got {_got(value)}, expected a time without zone "
            "such as 2023-11-16 18:15:46.6805900"
        )
    return _ns_of(match, "TIMESTAMP")


def _ns_of(match: re.Match[str], name: str) -> int:
    day, clock, fraction = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}+00:00")
    except ValueError as error:
        raise _BadFieldError(f"{name}: got {_got(match.group())}: {error}") from error
    return int(moment.timestamp()) * 10**9 + int((fraction or "").ljust(9, "0"))


def _csv_tokens(cells: Mapping[str, str], key: str) -> int:
    text = cells[key]
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise _BadFieldError(f"{key}: got {_got(text)}, expected a whole number of tokens")
    return _tokens({key: int(text)}, key, least=0)
