"""A user's own logs: OpenTelemetry's GenAI spans (vLLM's among them), LiteLLM's spend log, Langfuse's
export.

Only rows that reached an engine are kept; every other is counted by its reason, and no length is
invented.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from memplan.workload.formats.azure import iso_ns
from memplan.workload.formats.fields import BadFieldError, got, json_object
from memplan.workload.formats.json_logs import (
    Record,
    list_in,
    log_rows,
    number_in,
    object_in,
    record_rows,
    seconds_in,
    tokens_in,
    word_in,
)
from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow

_INFERENCE = {"chat", "text_completion", "generate_content", "embeddings", ""}
_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_TTFT = ("gen_ai.response.time_to_first_chunk", "gen_ai.latency.time_to_first_token")


def _first(first_lines: Sequence[str]) -> Record:
    return json_object(first_lines[0]) or {}


def _otel_rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    """Spans that wrap others (agents, tools, workflows) would count twice and are left out."""
    reading.time_origin_ns, reading.units_per_s = 0, 1e9
    for number, text in lines:
        document = json_object(text)
        if document is None:
            reading.rows_read += 1
            reading.fault(number, "not a JSON object, or cut off")
            continue
        try:
            spans = _spans_in(document)
        except BadFieldError as error:
            reading.rows_read += 1
            reading.fault(number, str(error))
            continue
        yield from record_rows(number, spans, reading, _span_row)


def _spans_in(document: Record) -> list[Any]:
    if "resourceSpans" in document:
        return [
            span
            for resource in list_in(document, "resourceSpans")
            for scope in (list_in(resource, "scopeSpans") if isinstance(resource, dict) else [])
            for span in (list_in(scope, "spans") if isinstance(scope, dict) else [])
        ]
    spans = document.get("spans")
    return spans if isinstance(spans, list) else [document]


def _span_row(number: int, span: Record) -> Timed | str:
    attributes = _attributes(span.get("attributes"))
    operation = str(attributes.get("gen_ai.operation.name") or "")
    if operation not in _INFERENCE or not any(key.startswith("gen_ai.") for key in attributes):
        return operation or "no_gen_ai_span"
    inputs = next((key for key in _INPUT if key in attributes), None)
    outputs = next((key for key in _OUTPUT if key in attributes), None)
    if inputs is None or (outputs is None and operation != "embeddings"):
        return "no_token_counts"
    start = _span_ns(span, "startTimeUnixNano", "start_time")
    end = _span_ns(span, "endTimeUnixNano", "end_time")
    ttft = next((key for key in _TTFT if key in attributes), _TTFT[0])
    cached = "gen_ai.usage.cache_read.input_tokens"
    return Timed(
        time=start,
        row=TraceRow(
            line=number,
            timestamp_s=0.0,
            input_tokens=tokens_in(attributes, inputs),
            output_tokens=1 if outputs is None else tokens_in(attributes, outputs),
            request_id=word_in(attributes, "gen_ai.request.id"),
            session_id=word_in(attributes, "gen_ai.conversation.id"),
            operation=operation or "chat",
            labels={"model": model}
            if (model := word_in(attributes, "gen_ai.request.model"))
            else {},
            cached_input_tokens=tokens_in(attributes, cached) if cached in attributes else None,
            observed_ttft_s=seconds_in(attributes, ttft),
            observed_e2e_s=(end - start) / 1e9,
            status="error" if "error.type" in attributes else "ok",
        ),
    )


def _attributes(found: object) -> dict[str, Any]:
    """Plain, or OTLP's list of keys with a typed value, where 64-bit numbers are text."""
    if isinstance(found, dict):
        return found
    plain: dict[str, Any] = {}
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict) and isinstance(one.get("value"), dict):
            plain[str(one.get("key"))] = next(iter(one["value"].values()), None)
    return plain


def _span_ns(span: Record, number: str, text: str) -> int:
    if number in span:
        return (
            int(number_in(span, number))
            if not isinstance(span[number], str)
            else _digits(span, number)
        )
    return iso_ns(span.get(text), text)


def _digits(span: Record, key: str) -> int:
    text = str(span[key])
    if not text.isdecimal() or len(text) > 20:
        raise BadFieldError(f"{key}: got {got(text)}, expected nanoseconds")
    return int(text)


def _litellm_rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    reading.time_origin_ns, reading.units_per_s = 0, 1e9

    def row(number: int, record: Record) -> Timed | str:
        if str(record.get("cache_hit", "")).lower() == "true":
            return "answered_from_cache"
        start = iso_ns(record.get("startTime"), "startTime")
        first, end = record.get("completionStartTime"), record.get("endTime")
        call = str(record.get("call_type") or "")
        return Timed(
            time=start,
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=tokens_in(record, "prompt_tokens"),
                output_tokens=1 if "embedding" in call else tokens_in(record, "completion_tokens"),
                request_id=word_in(record, "request_id"),
                session_id=word_in(record, "session_id"),
                operation="embeddings" if "embedding" in call else "chat",
                labels={key: value for key in ("model", "user") if (value := word_in(record, key))},
                observed_ttft_s=(iso_ns(first, "completionStartTime") - start) / 1e9
                if first
                else None,
                observed_e2e_s=(iso_ns(end, "endTime") - start) / 1e9 if end else None,
                status="error" if record.get("status") == "failure" else "ok",
            ),
        )

    yield from log_rows(lines, reading, row)


def _langfuse_rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    reading.time_origin_ns, reading.units_per_s = 0, 1e9

    def row(number: int, record: Record) -> Timed | str:
        kind = str(record.get("type"))
        if kind not in ("GENERATION", "EMBEDDING"):
            return f"type_{kind.lower()}"
        usage = object_in(record, "usageDetails")
        if not usage:
            usage = object_in(record, "usage")
            if usage.get("unit", "TOKENS") != "TOKENS":
                raise BadFieldError(f"usage.unit: got {got(usage.get('unit'))}, expected TOKENS")
        if "input" not in usage or ("output" not in usage and kind == "GENERATION"):
            return "no_token_counts"
        return Timed(
            time=iso_ns(record.get("startTime"), "startTime"),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=tokens_in(usage, "input"),
                output_tokens=tokens_in(usage, "output") if kind == "GENERATION" else 1,
                request_id=word_in(record, "id"),
                session_id=word_in(record, "sessionId") or word_in(record, "traceId"),
                operation="chat" if kind == "GENERATION" else "embeddings",
                labels={"model": model} if (model := word_in(record, "model")) else {},
                observed_ttft_s=seconds_in(record, "timeToFirstToken"),
                observed_e2e_s=seconds_in(record, "latency"),
                status="error" if record.get("level") == "ERROR" else "ok",
            ),
        )

    yield from log_rows(lines, reading, row)


def _is_otel(first_lines: Sequence[str]) -> bool:
    record = _first(first_lines)
    if "resourceSpans" in record:
        return True
    return any(
        isinstance(one, dict)
        and any(key.startswith("gen_ai.") for key in _attributes(one.get("attributes")))
        for one in _spans_in(record)
    )


OTEL = Format(
    name="otel",
    recognised_by="OTLP JSON (resourceSpans), or spans with gen_ai. attributes",
    fits=_is_otel,
    rows=_otel_rows,
)
LITELLM = Format(
    name="litellm",
    recognised_by="a JSON object with call_type, startTime and prompt_tokens",
    fits=lambda first: {"call_type", "startTime", "prompt_tokens"} <= _first(first).keys(),
    rows=_litellm_rows,
)
LANGFUSE = Format(
    name="langfuse",
    recognised_by="a JSON object with type, startTime, and usageDetails or usage",
    fits=lambda first: (
        {"type", "startTime"} <= _first(first).keys()
        and bool({"usageDetails", "usage"} & _first(first).keys())
    ),
    rows=_langfuse_rows,
)
