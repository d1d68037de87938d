"""Parts of a trace: a window of time, and the share that one of N replicas would get of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from memplan.errors import InputError
from memplan.workload.trace import Trace, TraceRow

_HUB_RATIO = 0.05
"""A first block that more than so many of the rows begin with is a hub (a system prompt that all
share), and says nothing of who belongs together."""


def window_of(trace: Trace, start_s: float, end_s: float) -> Trace:
    """Rows that arrive in [start, end], as a trace that starts with the first of them. Raises
    InputError where there is none."""
    rows = [row for row in trace.rows if start_s <= row.timestamp_s <= end_s]
    if not rows:
        raise InputError(
            f"{trace.source}: no row arrives between {start_s:g} s and {end_s:g} s; the trace is "
            f"{trace.span_s:,.0f} s long",
            hint="give a window within it with --from and --to",
        )
    return _with_rows(trace, rows, "outside_the_window")


def share_of(trace: Trace, replicas: int, *, seed: int) -> Trace:
    """Whole sessions, or groups of equal prefixes, by a hash: what a router that keeps them together
    gives one replica. Single requests, where the trace has neither. Raises InputError where nothing
    is left."""
    if replicas == 1:
        return trace
    hubs = _hubs(trace)
    rows = [row for row in trace.rows if _place(row, hubs, seed) % replicas == 0]
    if not rows:
        raise InputError(
            f"{trace.source}: 1/{replicas} of it holds no row", hint="take a larger share"
        )
    return _with_rows(trace, rows, "of_other_replicas")


def _place(row: TraceRow, hubs: frozenset[int], seed: int) -> int:
    own = [one for one in row.hash_ids if one not in hubs]
    group = row.session_id or (f"prefix {own[0]}" if own else f"line {row.line}")
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:8], "big")


def _hubs(trace: Trace) -> frozenset[int]:
    counts: dict[int, int] = {}
    for row in trace.rows:
        for one in row.hash_ids:
            counts[one] = counts.get(one, 0) + 1
    most = max(2.0, _HUB_RATIO * trace.rows_kept)
    return frozenset(one for one, count in counts.items() if count > most)


def _with_rows(trace: Trace, rows: list[TraceRow], reason: str) -> Trace:
    origin_s = rows[0].timestamp_s
    left_out = trace.rows_kept - len(rows)
    dropped = {**trace.dropped, **({reason: left_out} if left_out else {})}
    return replace(
        trace,
        dropped=dropped,
        time_origin=trace.time_origin if origin_s == 0 else None,
        rows=tuple(replace(row, timestamp_s=row.timestamp_s - origin_s) for row in rows),
    )
