"""memplan's own JSON Lines, ``memplan.trace.v1``: read here, and its rows written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from memplan.workload.formats.fields import (
    UTC_TIME,
    BadFieldError,
    got,
    json_object,
    ns_of,
    tokens_of,
)
from memplan.workload.formats.json_rows import json_rows
from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow


def canonical_row(row: TraceRow) -> dict[str, Any]:
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
        "cancel_after_ms": None
        if row.cancel_after_s is None
        else round(row.cancel_after_s * 1e3, 4),
        "retry_of": row.retry_of,
        "attempt": row.attempt if row.retry_of is not None else None,
        "images": row.images or None,
        "cached_input_length": row.cached_input_tokens,
        "observed": {
            name: round(value * 1e3, 4)
            for name, value in (
                ("ttft_ms", row.observed_ttft_s),
                ("e2e_ms", row.observed_e2e_s),
            )
            if value is not None
        },
    }
    return {key: value for key, value in record.items() if value not in (None, {}, [])}


def _fits(first_lines: Sequence[str]) -> bool:
    return "memplan_trace" in (json_object(first_lines[0]) or {})


def _rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    number, text = next(lines)
    header = json_object(text) or {}
    unit = header.get("time_unit", "ms")
    source = header.get("source")
    reading.written_from = source if isinstance(source, str) and source else None
    units_per_s = {'"ms"': 1e3, '"s"': 1.0}.get(json.dumps(unit))
    if header.get("memplan_trace") != 1:
        version = json.dumps(header.get("memplan_trace"))
        reading.fault(number, f"memplan_trace: got {version}, expected the header of version 1")
    if units_per_s is None:
        reading.fault(number, f'time_unit: got {json.dumps(unit)}, expected "ms" or "s"')
    else:
        reading.units_per_s = units_per_s
    scope = header.get("hash_id_scope", "global")
    if scope not in ("global", "session"):
        reading.fault(
            number, f'hash_id_scope: got {json.dumps(scope)}, expected "global" or "session"'
        )
    try:
        block_size = header.get("block_size")
        reading.block_size = (
            None if block_size is None else tokens_of(header, "block_size", least=1)
        )
        reading.time_origin_ns = _origin_ns(header.get("time_origin"))
    except BadFieldError as error:
        reading.fault(number, str(error))
    return json_rows(lines, reading, has_header=True, ids_are_per_session=scope == "session")


def _origin_ns(value: Any) -> int | None:
    if value is None:
        return None
    match = UTC_TIME.fullmatch(value.removesuffix("Z")) if isinstance(value, str) else None
    if match is None:
        raise BadFieldError(f"time_origin: got {got(value)}, expected a UTC time in ISO 8601")
    return ns_of(match, "time_origin")


MEMPLAN = Format(
    name="memplan",
    recognised_by='a JSON object with "memplan_trace" on line 1',
    fits=_fits,
    rows=_rows,
)
