"""Rows that are JSON objects, as memplan and Mooncake write them: one set of fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

from memplan.workload.formats.fields import (
    BadFieldError,
    got,
    json_object,
    text_of,
    tokens_of,
)
from memplan.workload.formats.reading import Lines, Reading, Timed
from memplan.workload.trace_row import Status, TraceRow

_LARGEST_TIME = 1e16
_LABEL_FIELDS = ("model", "adapter", "endpoint")


def json_rows(
    lines: Lines,
    reading: Reading,
    *,
    has_header: bool,
    ids_are_per_session: bool,
) -> Iterator[Timed]:
    own_ids: dict[tuple[str, int], int] = {}
    for number, text in lines:
        reading.rows_read += 1
        record = json_object(text)
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
        except BadFieldError as error:
            reading.fault(number, str(error))
            continue
        if row is None:
            reading.dropped["unknown_output_length"] += 1
        else:
            yield Timed(time=time, row=row)


def _json_row(number: int, record: Mapping[str, Any]) -> TraceRow | None:
    """None where the output length is not known."""
    status = record.get("status", "ok")
    if status not in get_args(Status):
        expected = ", ".join(get_args(Status))
        raise BadFieldError(f"status: got {got(status)}, expected one of {expected}")
    input_tokens = tokens_of(record, "input_length", least=0)
    if "output_length" in record and record["output_length"] is None and status == "ok":
        return None
    has_output = record.get("output_length") is not None or status == "ok"
    observed = record.get("observed") or {}
    if not isinstance(observed, dict):
        raise BadFieldError(f"observed: got {got(observed)}, expected an object of times")
    return TraceRow(
        line=number,
        timestamp_s=0.0,
        input_tokens=input_tokens,
        output_tokens=tokens_of(record, "output_length", least=0) if has_output else 0,
        request_id=text_of(record, "request_id"),
        session_id=text_of(record, "session_id"),
        operation=text_of(record, "operation") or "chat",
        class_label=text_of(record, "class"),
        labels=_labels(record),
        hash_ids=_hash_ids(record),
        status=status,
        cancel_after_s=_milliseconds(record, "cancel_after_ms"),
        retry_of=text_of(record, "retry_of"),
        attempt=tokens_of(record, "attempt", least=1) if "attempt" in record else 1,
        images=tokens_of(record, "images", least=0) if "images" in record else 0,
        cached_input_tokens=tokens_of(record, "cached_input_length", least=0)
        if record.get("cached_input_length") is not None
        else None,
        observed_ttft_s=_milliseconds(observed, "ttft_ms", "observed."),
        observed_e2e_s=_milliseconds(observed, "e2e_ms", "observed."),
    )


def _milliseconds(record: Mapping[str, Any], key: str, inside: str = "") -> float | None:
    """In seconds; None where it is missing."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise BadFieldError(f"{inside}{key}: got {got(value)}, expected milliseconds")
    return value / 1e3


def _check_blocks(row: TraceRow, block_size: int | None) -> None:
    if block_size is None:
        raise BadFieldError(
            "hash_ids: expected block_size in the header to say what they stand for"
        )
    blocks = -(-row.input_tokens // block_size)
    if blocks != len(row.hash_ids):
        raise BadFieldError(
            f"hash_ids: got {len(row.hash_ids)} ids for {row.input_tokens:,} tokens, "
            f"expected {blocks} blocks of {block_size}"
        )


def _with_global_ids(row: TraceRow, own_ids: dict[tuple[str, int], int]) -> TraceRow:
    session = row.session_id
    if session is None:
        raise BadFieldError('session_id: missing, expected one where hash_id_scope is "session"')
    ids = (own_ids.setdefault((session, one), len(own_ids)) for one in row.hash_ids)
    return replace(row, hash_ids=tuple(ids))


def _time(record: Mapping[str, Any]) -> float:
    if "timestamp" not in record:
        raise BadFieldError("timestamp: missing, expected the arrival time")
    value = record["timestamp"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadFieldError(f"timestamp: got {got(value)}, expected a number")
    if not -_LARGEST_TIME < value < _LARGEST_TIME:
        raise BadFieldError(f"timestamp: got {got(value)}, expected a time")
    return value


def _labels(record: Mapping[str, Any]) -> Mapping[str, str]:
    given = record.get("labels") or {}
    if not isinstance(given, dict):
        raise BadFieldError(f"labels: got {got(given)}, expected an object of texts")
    texts = {key: text_of(given, key) for key in given} | {
        key: value for key in _LABEL_FIELDS if (value := text_of(record, key)) is not None
    }
    return {key: text for key, text in texts.items() if text is not None}


def _hash_ids(record: Mapping[str, Any]) -> tuple[int, ...]:
    ids = record.get("hash_ids") or []
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise BadFieldError(f"hash_ids: got {got(ids)}, expected a list of whole numbers")
    return tuple(ids)
