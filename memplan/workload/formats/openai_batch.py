"""OpenAI's batch files: the output, joined with its input where that lies beside it.

A batch arrives at one instant, and its order means nothing: how many of it run together is the engine's
to decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from memplan.errors import InputError
from memplan.workload.formats.fields import BadFieldError, json_object
from memplan.workload.formats.json_logs import Record, log_rows, object_in, tokens_in, word_in
from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow


def _first(first_lines: Sequence[str]) -> Record:
    return json_object(first_lines[0]) or {}


def _rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    asked = _input_beside(reading.path)
    answered: set[str] = set()

    def row(number: int, record: Record) -> Timed | str:
        own_id = word_in(record, "custom_id")
        if own_id is None:
            raise BadFieldError("custom_id: missing, expected the request's own id")
        answered.add(own_id)
        response = object_in(record, "response")
        if record.get("error") is not None or response.get("status_code") not in (None, 200):
            return "status_error"
        body = object_in(response, "body")
        usage = object_in(body, "usage")
        if "prompt_tokens" not in usage:
            return "no_token_counts"
        url = str(asked.get(own_id, {}).get("url") or body.get("object") or "")
        is_embedding = "embedding" in url or url == "list"
        details = object_in(usage, "prompt_tokens_details")
        model = word_in(body, "model")
        return Timed(
            time=0.0,
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=tokens_in(usage, "prompt_tokens"),
                output_tokens=1 if is_embedding else tokens_in(usage, "completion_tokens"),
                request_id=own_id,
                operation="embeddings" if is_embedding else "chat",
                class_label="batch",
                labels={"model": model} if model else {},
                cached_input_tokens=tokens_in(details, "cached_tokens")
                if "cached_tokens" in details
                else None,
            ),
        )

    yield from log_rows(lines, reading, row)
    missing = asked.keys() - answered
    reading.rows_read += len(missing)
    if missing:
        reading.dropped["never_answered"] += len(missing)


def _input_beside(path: Path) -> Mapping[str, Record]:
    """The requests by their own ids, where the input's file can be told by its name: that of the output
    with ``input`` in the place of ``output``."""
    beside = path.with_name(path.name.replace("output", "input"))
    if beside == path or not beside.is_file():
        return {}
    found: dict[str, Record] = {}
    with beside.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            record = json_object(text) or {}
            own_id = word_in(record, "custom_id")
            if own_id is not None:
                found[own_id] = record
    return found


def _refused(lines: Lines, reading: Reading) -> Iterator[Timed]:
    raise InputError(
        f"{reading.path}: the input of an OpenAI batch has no lengths: they are in its output",
        hint="give the output file; an input of the same name (…input… for …output…) beside it is "
        "joined with it",
    )


OPENAI_BATCH = Format(
    name="openai_batch",
    recognised_by="a JSON object with custom_id, and response or error",
    fits=lambda first: (
        "custom_id" in _first(first) and bool({"response", "error"} & _first(first).keys())
    ),
    rows=_rows,
)
OPENAI_BATCH_INPUT = Format(
    name="openai_batch_input",
    recognised_by="a JSON object with custom_id, method, url and body",
    fits=lambda first: {"custom_id", "method", "url", "body"} <= _first(first).keys(),
    rows=_refused,
)
