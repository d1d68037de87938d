"""vLLM's request log (``--enable-log-requests``): text whose wording changes with the version.

Newer versions log no prompt and no length above DEBUG; such rows are counted, and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow

# Of bounded length: every character of a text without spaces would start a search to its end.
_STAMP = r"\b\w{1,12} (?P<month>\d\d)-(?P<day>\d\d) (?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)"
_LINE = re.compile(rf"(?:\(\w+(?: pid=\d+)?\) )?{_STAMP} \[?[\w./]+:\d+\]?")
_RECEIVED = re.compile(rf"{_STAMP}.*?Received request (?P<id>\S+?):")
_ANSWERED = re.compile(r"Generated response (?P<id>\S+?)(?: \(.*?\))?:")
_PROMPT_IDS = re.compile(r"prompt_token_ids: \[(?P<ids>[\d, ]*)\]")
_OUTPUT_IDS = re.compile(r"output_token_ids: (?:array\('\w', )?\[(?P<ids>[\d, ]*)\]")
_DAYS_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
"""Of a year that the log does not name: a leap day in it is not seen."""


def _count(found: re.Match[str] | None) -> int | None:
    return len([one for one in found["ids"].split(",") if one.strip()]) if found else None


def _rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    """Whole seconds, and no year."""
    waiting: dict[str, tuple[int, float, int | None]] = {}
    for number, text in lines:
        came = _RECEIVED.search(text)
        if came is not None:
            reading.rows_read += 1
            waiting[came["id"]] = number, _seconds(came), _count(_PROMPT_IDS.search(text))
            continue
        went = _ANSWERED.search(text)
        if went is None or went["id"] not in waiting:
            continue
        line, time_s, prompt = waiting.pop(went["id"])
        output = _count(_OUTPUT_IDS.search(text))
        if prompt is None or output is None:
            reading.dropped["no_token_counts"] += 1
            continue
        yield Timed(
            time=time_s,
            row=TraceRow(
                line=line,
                timestamp_s=0.0,
                input_tokens=prompt,
                output_tokens=output,
                request_id=went["id"],
            ),
        )
    if waiting:
        reading.dropped["unknown_output_length"] += len(waiting)


def _seconds(found: re.Match[str]) -> float:
    month = min(12, max(1, int(found["month"])))
    days = _DAYS_BEFORE[month - 1] + int(found["day"])
    return ((days * 24 + int(found["h"])) * 60 + int(found["m"])) * 60.0 + int(found["s"])


def _fits(first_lines: Sequence[str]) -> bool:
    """A log begins with what vLLM says while it starts."""
    return _LINE.match(first_lines[0]) is not None


VLLM_LOG = Format(
    name="vllm_log",
    recognised_by="a first line as vLLM logs it: INFO 11-27 09:30:00 [file.py:12] …",
    fits=_fits,
    rows=_rows,
)
