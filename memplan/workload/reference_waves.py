"""A trace that is held against a reference, as waves: whole, or the windows of it that say most."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memplan.errors import InputError
from memplan.life import Life
from memplan.records import Request, WindowFacts
from memplan.specs import ClassSpec
from memplan.workload.classify import (
    TRACE_WAVE,
    class_of_row,
    free_id,
    plan_requests,
    request_ids,
)
from memplan.workload.dilation import Speed, fitted_dilation
from memplan.workload.reference import Reference, lives_of
from memplan.workload.trace import Trace
from memplan.workload.trace_row import TraceRow
from memplan.workload.windows import Feed, Window, windows_of

_LOAD_MARGIN, _LOAD_LEAST_S = 1.3, 1.0
"""Over the time that a probe says it takes to read what was in service when a window begins."""
_PROBE_OUTPUT_TOKENS = 8
_PROBE_RANKS = ((0.5,), (0.9,), (0.3, 0.4, 0.6, 0.7), tuple(at / 20 for at in range(3, 19)))
"""Of prompt lengths, wave by wave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What a replay is held against, and how it is brought near."""

    reference: Reference
    is_paced: bool
    """Answers are held to the reference's pace."""
    within_s: float | None
    """Longest time of sending; None: no limit."""
    speed: Speed | None = None
    """Of the paced engine: each window gets the dilation at which this keeps up. None: as told."""


def judged_requests(
    trace: Trace,
    classes: Sequence[ClassSpec],
    against: Against,
    *,
    length_scale: float,
    dilation: float,
) -> tuple[tuple[Request, ...], tuple[WindowFacts, ...]]:
    """The requests of all windows, each window a wave, and what the windows are. A request that is in
    two of them is sent in both, under ids of its own. What was in service when a window began is sent
    before it: from its arrival on, or, where the engine's speed is known, what is left of it. What is
    in service when a window ends, ends with it.

    Raises InputError where a row has no service time, or the engine can never keep the pace.
    """
    lives = lives_of(trace.rows, against.reference)
    starts_s = [one.start_s for one in lives]
    speed = against.speed

    def feed_of(window: Window) -> Feed:
        before, arriving = _at(window)
        if speed is None:
            oldest_s = min((lives[at].start_s for at in before), default=window.start_s)
            return Feed(dilation=dilation, lead_s=(window.start_s - oldest_s) * dilation)
        rests = [lives[at].rest_from(window.start_s) for at in before]
        found = fitted_dilation(
            [*rests, *lives[arriving]], speed, length_scale=length_scale, loaded=len(rests)
        )
        if found is None:
            raise InputError(
                f"--dilation auto: at {speed.text} this engine never keeps the pace of "
                f"{against.reference.text}",
                hint="shorten requests with --length-scale, or give a number: --dilation 8",
            )
        held_tokens = length_scale * sum(one.input_tokens for one in rests)
        return Feed(
            dilation=found,
            lead_s=_LOAD_MARGIN * held_tokens / speed.prefill_tokens_per_s + _LOAD_LEAST_S
            if rests
            else 0.0,
        )

    def _at(window: Window) -> tuple[list[int], slice]:
        """Places of those in service when it begins, and of those that arrive in it."""
        first = bisect_left(starts_s, window.start_s)
        before = [at for at in range(first) if lives[at].end_s > window.start_s]
        return before, slice(first, bisect_right(starts_s, window.end_s))

    chosen = windows_of(lives, trace.span_s, against.within_s, feed_of)
    named = [
        replace(row, request_id=n) for row, n in zip(trace.rows, request_ids(trace), strict=True)
    ]
    # Who gave up asks for no more than the reference had given by then, at the reference's pace.
    named = [
        row if row.cancel_after_s is None else _until(row, life, life.end_s, classes)[0]
        for row, life in zip(named, lives, strict=True)
    ]
    requests: list[Request] = []
    windows: list[WindowFacts] = []
    taken: set[str] = set()
    for number, (window, feed) in enumerate(chosen, start=1):
        before, arriving = _at(window)
        begins_s = window.start_s - feed.lead_s / feed.dilation
        sent = [(named[at], lives[at]) for at in before]
        if speed is not None:
            sent = [
                _loaded(row, life.rest_from(window.start_s), begins_s, classes)
                for row, life in sent
            ]
        sent += zip(named[arriving], lives[arriving], strict=True)
        if not sent:
            continue
        if len(chosen) > 1:
            sent = [_until(row, life, window.end_s, classes) for row, life in sent]
        wave = TRACE_WAVE if len(chosen) == 1 else f"window {number}"
        planned = plan_requests(
            replace(trace, rows=tuple(row for row, _ in sent)),
            classes=classes,
            length_scale=length_scale,
            dilation=feed.dilation,
            wave=wave,
            lives=[life for _, life in sent],
            is_paced=against.is_paced,
        )
        # A wave begins with its window where nothing is sent before it.
        origin_s = min(window.start_s, sent[0][1].start_s)
        later_s = (sent[0][1].start_s - origin_s) * feed.dilation
        requests += (
            replace(
                one,
                request_id=free_id(one.request_id, taken),
                arrival_s=one.arrival_s + later_s,
            )
            for one in planned
        )
        windows.append(
            WindowFacts(
                wave=wave,
                text=window.text,
                trace_start_s=window.start_s,
                trace_end_s=window.end_s,
                start_s=(window.start_s - origin_s) * feed.dilation,
                end_s=(window.end_s - origin_s) * feed.dilation,
                dilation=feed.dilation,
            )
        )
    return tuple(requests), tuple(windows)


def _until(
    row: TraceRow, life: Life, end_s: float, classes: Sequence[ClassSpec]
) -> tuple[TraceRow, Life]:
    """What is seen of a request that would keep the engine for longer: by a window that is over, or by a
    user who gave up."""
    cut = life.until(end_s)
    label = row.class_label or class_of_row(classes, row)
    return replace(row, output_tokens=cut.output_tokens, class_label=label), cut


def _loaded(
    row: TraceRow, rest: Life, begins_s: float, classes: Sequence[ClassSpec]
) -> tuple[TraceRow, Life]:
    """What is left of a request when a window begins, sent before it with all that it holds by then as
    its prompt: as if the engine had been there from its arrival on."""
    life = replace(rest, start_s=begins_s, prefill_s=rest.start_s + rest.prefill_s - begins_s)
    named = replace(
        row,
        timestamp_s=begins_s,
        input_tokens=rest.input_tokens,
        output_tokens=rest.output_tokens,
        class_label=row.class_label or class_of_row(classes, row),
        cancel_after_s=None,  # counted from its arrival; what is left of it ends by then
    )
    return named, life


def dilation_of(windows: Sequence[WindowFacts]) -> float | None:
    """Of all of them together, over the time of the trace; None where that is no time at all."""
    trace_s = sum(one.trace_end_s - one.trace_start_s for one in windows)
    return sum(one.end_s - one.start_s for one in windows) / trace_s if trace_s else None


def probe_requests(
    trace: Trace, classes: Sequence[ClassSpec], *, length_scale: float, most_tokens: int
) -> tuple[Request, ...]:
    """A few requests that show an engine's speed: one of median and one of long length alone, then four
    and sixteen at once, as waves; none longer than ``most_tokens``."""
    by_length = sorted(
        range(trace.rows_kept), key=lambda at: (trace.rows[at].input_tokens, trace.rows[at].line)
    )
    requests: list[Request] = []
    for number, ranks in enumerate(_PROBE_RANKS, start=1):
        for rank in ranks:
            (one,) = plan_requests(
                trace,
                classes=classes,
                length_scale=length_scale,
                start_row=by_length[int(rank * (len(by_length) - 1))],
                limit=1,
                wave=f"probe {number}",
            )
            tokens = max(1, min(one.input_tokens, most_tokens - _PROBE_OUTPUT_TOKENS))
            requests.append(
                replace(
                    one,
                    request_id=f"p{len(requests)}",
                    input_tokens=tokens,
                    output_tokens=_PROBE_OUTPUT_TOKENS,
                    prefix_ids=(),
                    cancel_after_s=None,
                )
            )
    return tuple(requests)
