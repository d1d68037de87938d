"""Sessions as a closed loop: a turn is sent when the one before it has been answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from memplan.errors import InputError
from memplan.records import Request
from memplan.workload.reference import Reference, service_of
from memplan.workload.trace_row import TraceRow


def in_turns(
    requests: Sequence[Request],
    rows: Sequence[TraceRow],
    reference: Reference | None,
    *,
    dilation: float,
) -> tuple[Request, ...]:
    """Each of ``requests``, which are those of ``rows``, follows the one of its session that in the
    trace ended last before it came; the time between is its user's, or tool's, and is dilated. One that
    came while all before it were served, as agents' calls beside each other do, keeps its own time.

    When a row ended the trace says itself, or the reference does. Raises InputError where neither does.
    """
    known = reference or Reference(prefill_tokens_per_s=None, tpot_s=None, is_observed=True)
    ended: dict[str, list[tuple[float, str]]] = {}
    found, unknown, is_any = [], 0, False
    for request, row in zip(requests, rows, strict=True):
        before = ended.setdefault(row.session_id, []) if row.session_id is not None else []
        over = [one for one in before if one[0] <= row.timestamp_s]
        if over:
            end_s, request_id = max(over)
            think_s = (row.timestamp_s - end_s) * dilation
            request = replace(request, follows=request_id, think_s=think_s)
            is_any = True
        found.append(request)
        service = service_of(row, known)
        if service is not None:
            given_up_s = inf if row.cancel_after_s is None else row.cancel_after_s
            before.append((row.timestamp_s + min(service[1], given_up_s), request.request_id))
        elif row.session_id is not None:
            unknown += 1
    if unknown:
        raise InputError(
            f"--closed-loop: {unknown:,} of {len(rows):,} rows say nothing of when they ended",
            hint="declare what such rows took: --reference prefill=14000,tpot=13ms",
        )
    if not is_any:
        raise InputError(
            "--closed-loop: the trace names no session with a turn after another",
            hint="leave it out: each request is sent at its own time",
        )
    return tuple(found)
