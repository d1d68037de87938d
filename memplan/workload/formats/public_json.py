"""Public traces in JSON: Qwen-Bailian, TraceLab, Dynamo's request trace, and WEKA's
sessions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from memplan.workload.formats.azure import iso_ns
from memplan.workload.formats.fields import (
    BadFieldError,
    got,
    json_object,
    json_value,
    text_of,
    tokens_of,
)
from memplan.workload.formats.json_logs import (
    Record,
    log_rows,
    number_in,
    object_in,
    record_rows,
    tokens_in,
    word_in,
)
from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow

_DYNAMO = "dynamo.request.trace.v1"


def _first(first_lines: Sequence[str]) -> Record:
    return json_object(first_lines[0]) or {}


def _ids(record: Record, key: str = "hash_ids") -> tuple[int, ...]:
    ids = record.get(key) or []
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise BadFieldError(f"{key}: got {got(ids)}, expected a list of whole numbers")
    return tuple(ids)


def _bailian_rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    """Seconds; blocks of 16; a session is the root of a chain of parents."""
    reading.block_size = 16
    root: dict[str | None, str] = {}

    def row(number: int, record: Record) -> Timed:
        chat, parent = (text_of(record, key) for key in ("chat_id", "parent_chat_id"))
        if chat is None:
            raise BadFieldError("chat_id: missing, expected the id of a chat")
        root[chat] = root.get(parent, parent if parent not in ("-1", None) else chat)
        return Timed(
            time=number_in(record, "timestamp"),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=tokens_of(record, "input_length", least=0),
                output_tokens=tokens_of(record, "output_length", least=0),
                request_id=chat,
                session_id=root[chat],
                class_label=word_in(record, "type"),
                hash_ids=_ids(record),
            ),
        )

    yield from log_rows(lines, reading, row)


def _tracelab_rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    reading.time_origin_ns, reading.units_per_s = 0, 1e9

    def row(number: int, record: Record) -> Timed | str:
        events = record.get("timing_events")
        events = json_value(events) if isinstance(events, str) else events
        if not isinstance(events, list) or not events or not isinstance(events[0], dict):
            return "no_timing_event"
        return Timed(
            time=iso_ns(events[0].get("timestamp"), "timing_events[0].timestamp"),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=tokens_of(record, "input_tokens_total", least=0),
                output_tokens=tokens_of(record, "output_tokens", least=0),
                request_id=word_in(record, "round_id"),
                session_id=word_in(record, "session_id"),
                labels={"model": model} if (model := word_in(record, "model")) else {},
                cached_input_tokens=tokens_in(record, "prefix_tokens"),
            ),
        )

    yield from log_rows(lines, reading, row)


def _dynamo_event(record: Record) -> Record:
    event = object_in(record, "event") if "event" in record else record
    return event if event.get("schema") == _DYNAMO else {}


def _dynamo_rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    """The outer timestamp is when a request ended; when it came is inside. Hashes are 64 bits wide."""
    reading.time_origin_ns, reading.units_per_s = 0, 1e3

    def row(number: int, record: Record) -> Timed | str:
        event = _dynamo_event(record)
        if event.get("event_type") != "request_end":
            return str(event.get("event_type") or "not_a_request")
        request, replay = (
            object_in(event, "request"),
            object_in(object_in(event, "request"), "replay"),
        )
        block = replay.get("trace_block_size")
        hashes = _ids(replay, "input_sequence_hashes")
        if hashes and (type(block) is not int or block < 1):
            raise BadFieldError(f"trace_block_size: got {got(block)}, expected tokens of a block")
        if hashes:
            if reading.block_size not in (None, block):
                raise BadFieldError(
                    f"trace_block_size: got {block}, where rows before have {reading.block_size}"
                )
            reading.block_size = block
        return Timed(
            time=number_in(request, "request_received_ms"),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=tokens_in(request, "input_tokens"),
                output_tokens=tokens_in(request, "output_tokens"),
                request_id=word_in(request, "request_id"),
                session_id=word_in(object_in(event, "agent_context"), "session_id"),
                labels={"model": model} if (model := word_in(request, "model")) else {},
                hash_ids=hashes,
                cached_input_tokens=tokens_in(request, "cached_tokens")
                if "cached_tokens" in request
                else None,
                observed_ttft_s=_ms(request, "ttft_ms"),
                observed_e2e_s=_ms(request, "total_time_ms"),
            ),
        )

    yield from log_rows(lines, reading, row)


def _ms(record: Record, key: str) -> float | None:
    return number_in(record, key) / 1e3 if record.get(key) is not None else None


def _weka_rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    """A session a document, all from time zero; a sub-agent's requests are a session of their own."""
    own: dict[tuple[str, int], int] = {}
    for number, text in lines:
        session = json_object(text)
        if session is None:
            reading.rows_read += 1
            reading.fault(number, "not a JSON object, or cut off")
            continue
        block = session.get("block_size")
        reading.block_size = block if type(block) is int and block > 0 else None
        name = str(session.get("id") or f"session {number}")
        yield from _weka_session(number, session.get("requests"), name, 0.0, reading, own)


def _weka_session(
    number: int,
    found: Any,
    name: str,
    began_s: float,
    reading: Reading,
    own: dict[tuple[str, int], int],
) -> Iterator[Timed]:
    """``own``: the id that each session's own ids become, because they mean nothing beyond it."""
    root = name.partition("/")[0]

    def row(number: int, record: Record) -> Timed:
        ids = tuple(own.setdefault((root, one), len(own)) for one in _ids(record))
        is_tool = record.get("stop") == "tool_use" or "tool_result" in (
            record.get("input_types") or []
        )
        return Timed(
            time=began_s + number_in(record, "t"),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=tokens_in(record, "in"),
                output_tokens=tokens_in(record, "out"),
                session_id=name,
                class_label="tool" if is_tool else None,
                labels={"model": model} if (model := word_in(record, "model")) else {},
                hash_ids=ids if reading.block_size else (),
                observed_e2e_s=number_in(record, "api_time") if "api_time" in record else None,
            ),
        )

    for at, record in enumerate(found if isinstance(found, list) else []):
        if isinstance(record, dict) and record.get("type") == "subagent":
            try:
                start_s = began_s + (number_in(record, "t") if "t" in record else 0.0)
            except BadFieldError as error:
                reading.fault(number, str(error))
                continue
            yield from _weka_session(
                number, record.get("requests"), f"{name}/{at}", start_s, reading, own
            )
        else:
            yield from record_rows(number, [record], reading, row)


BAILIAN = Format(
    name="bailian",
    recognised_by="a JSON object with chat_id, parent_chat_id and hash_ids",
    fits=lambda first: {"chat_id", "parent_chat_id", "hash_ids"} <= _first(first).keys(),
    rows=_bailian_rows,
)
TRACELAB = Format(
    name="tracelab",
    recognised_by="a JSON object with round_index, prefix_tokens and newly_append_tokens",
    fits=lambda first: (
        {"round_index", "prefix_tokens", "newly_append_tokens"} <= _first(first).keys()
    ),
    rows=_tracelab_rows,
)
DYNAMO = Format(
    name="dynamo",
    recognised_by=f"a JSON object of the schema {_DYNAMO}",
    fits=lambda first: bool(
        _dynamo_event(
            {k: v for k, v in _first(first).items() if k != "event" or isinstance(v, dict)}
        )
    ),
    rows=_dynamo_rows,
)
WEKA = Format(
    name="weka",
    recognised_by="one JSON object with requests, block_size and hash_id_scope",
    fits=lambda first: {"requests", "block_size", "hash_id_scope"} <= _first(first).keys(),
    rows=_weka_rows,
)
