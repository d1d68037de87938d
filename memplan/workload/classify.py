"""Trace rows in, requests out: each named by its class, scaled and dilated, ready to be sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal

from memplan.errors import InputError
from memplan.life import Life
from memplan.records import Request
from memplan.specs import UNKNOWN_CLASS, ClassSpec
from memplan.workload.reference import tick_s_of
from memplan.workload.trace import Trace, TraceRow

TRACE_WAVE = "trace"
_LEAST_TICK_S = 1e-3


def class_of(
    classes: Sequence[ClassSpec],
    *,
    input_tokens: int,
    output_tokens: int,
    operation: str = "chat",
    labels: Mapping[str, str] | None = None,
) -> str:
    """The first class whose conditions all hold, else ``unknown``."""
    for spec in classes:
        when = spec.when
        if (
            (when.input_tokens is None or when.input_tokens.contains(input_tokens))
            and (when.output_tokens is None or when.output_tokens.contains(output_tokens))
            and (when.operation is None or operation in when.operation)
            and when.labels.items() <= (labels or {}).items()
        ):
            return spec.name
    return UNKNOWN_CLASS


def class_rules(classes: Sequence[ClassSpec], names: Iterable[str]) -> Mapping[str, str]:
    """Class name → the rule that names it, for the classes and for every other name in use."""
    rules = {spec.name: spec.rule for spec in classes}
    rules |= {name: "named by the trace" for name in names if name not in rules}
    if UNKNOWN_CLASS in rules:
        rules[UNKNOWN_CLASS] = "no class matched"
    return rules


def plan_requests(
    trace: Trace,
    *,
    classes: Sequence[ClassSpec],
    length_scale: float = 1.0,
    dilation: float = 1.0,
    limit: int | None = None,
    start_row: int = 0,
    wave: str = TRACE_WAVE,
    lives: Sequence[Life] | None = None,
    is_paced: bool = False,
) -> tuple[Request, ...]:
    """The trace's rows from ``start_row`` on, as one wave that starts with the first of them.

    A class is decided by the lengths in the trace, so that scaling moves no request to another
    class; a class that the trace itself names stands. ``lives``, one for each of these rows, say how
    long each is in service, to be dilated; where ``is_paced`` it is held to that. Raises InputError.
    """
    _check_asked(trace, length_scale, dilation, limit, start_row)
    rows = trace.rows[start_row : None if limit is None else start_row + limit]
    names = request_ids(trace)[start_row:]
    scale = Decimal(str(length_scale))
    planned = [
        Request(
            request_id=name,
            wave=wave,
            arrival_s=(row.timestamp_s - rows[0].timestamp_s) * dilation,
            class_name=row.class_label or class_of_row(classes, row),
            input_tokens=_scaled(row.input_tokens, scale),
            output_tokens=_scaled(row.output_tokens, scale),
            prefix_ids=row.hash_ids,
            prefix_block_tokens=(
                _scaled(trace.block_size, scale) if row.hash_ids and trace.block_size else None
            ),
            session_id=row.session_id,
            operation=row.operation,
            labels=row.labels,
            cancel_after_s=None if row.cancel_after_s is None else row.cancel_after_s * dilation,
            retry_of=row.retry_of,
            attempt=row.attempt,
            trace_input_tokens=row.input_tokens,
            trace_output_tokens=row.output_tokens,
        )
        for name, row in zip(names, rows, strict=False)
    ]
    if lives is None:
        return tuple(planned)
    return _with_service(planned, lives, dilation, is_paced=is_paced)


def _with_service(
    planned: Sequence[Request], lives: Sequence[Life], dilation: float, *, is_paced: bool
) -> tuple[Request, ...]:
    tick_s = dilation * tick_s_of(lives, [request.output_tokens for request in planned])
    return tuple(
        replace(
            request,
            service_prefill_s=life.prefill_s * dilation,
            service_e2e_s=(life.end_s - life.start_s) * dilation,
            pace_tick_s=max(tick_s, _LEAST_TICK_S) if is_paced else None,
        )
        for request, life in zip(planned, lives, strict=True)
    )


def _check_asked(
    trace: Trace, length_scale: float, dilation: float, limit: int | None, start_row: int
) -> None:
    faults = [
        f"{name}: got {value:g}, expected more than 0 and at most 1,000,000"
        for name, value in (("length scale", length_scale), ("dilation", dilation))
        if not 0 < value <= 1e6
    ]
    if limit is not None and limit < 1:
        faults.append(f"limit: got {limit}, expected at least 1")
    if not 0 <= start_row < trace.rows_kept:
        faults.append(f"start row: got {start_row}, expected 0 to {trace.rows_kept - 1:,}")
    if faults:
        raise InputError.of_faults(trace.source, faults, hint="correct these options")


def class_of_row(classes: Sequence[ClassSpec], row: TraceRow) -> str:
    """By its lengths, operation and labels; a class that the trace itself names is not looked at."""
    return class_of(
        classes,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        operation=row.operation,
        labels=row.labels,
    )


def request_ids(trace: Trace) -> list[str]:
    """Of each row: its own, or one by its place in the trace, so that a limit or a later start renames
    nothing."""
    taken = {row.request_id for row in trace.rows if row.request_id is not None}
    return [
        row.request_id or _numbered(number, taken) for number, row in enumerate(trace.rows, start=1)
    ]


def _numbered(number: int, taken: set[str]) -> str:
    name = f"r{number:06d}"
    while name in taken:
        name += "x"
    return name


def _scaled(tokens: int, scale: Decimal) -> int:
    """Halves go up, and no request shrinks to nothing. Decimal, because 100 × 0.285 is 28.5."""
    return max(1, int((tokens * scale).to_integral_value(ROUND_HALF_UP)))


def free_id(wanted: str, taken: set[str]) -> str:
    """``wanted``, or what is free behind it; from now on it is taken."""
    while wanted in taken:
        wanted += "#"
    taken.add(wanted)
    return wanted
