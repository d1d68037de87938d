"""A trace that is held against a reference, as waves: whole, or the windows of it that say most."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memplan.errors import InputError
from memplan.in_flight import Life
from memplan.records import Request, WindowFacts
from memplan.specs import ClassSpec
from memplan.workload.classify import TRACE_WAVE, plan_requests
from memplan.workload.dilation import Speed, fitted_dilation
from memplan.workload.reference import Reference, lives_of
from memplan.workload.trace import Trace
from memplan.workload.windows import windows_of

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
    two of them, as when the warm-up of one begins in another, is sent in both, under ids of its own.

    Raises InputError where a row has no service time, or the engine can never keep the pace.
    """
    lives = lives_of(trace.rows, against.reference)
    speed = against.speed

    def dilation_of(sent: Sequence[Life]) -> float:
        if speed is None:
            return dilation
        found = fitted_dilation(sent, speed, length_scale=length_scale)
        if found is None:
            raise InputError(
                f"--dilation auto: at {speed.text} this engine never keeps the pace of "
                f"{against.reference.text}",
                hint="shorten requests with --length-scale, or give a number: --dilation 8",
            )
        return found

    chosen = windows_of(lives, trace.span_s, against.within_s, dilation_of)
    times_s = [row.timestamp_s for row in trace.rows]
    requests: list[Request] = []
    windows: list[WindowFacts] = []
    taken: set[str] = set()
    for number, (window, slower) in enumerate(chosen, start=1):
        first = bisect_left(times_s, window.warm_up_s)
        last = bisect_right(times_s, window.end_s)
        if last <= first:
            continue
        wave = TRACE_WAVE if len(chosen) == 1 else f"window {number}"
        planned = plan_requests(
            trace,
            classes=classes,
            length_scale=length_scale,
            dilation=slower,
            start_row=first,
            limit=last - first,
            wave=wave,
            reference=against.reference,
            is_paced=against.is_paced,
        )
        requests += (replace(one, request_id=free_id(one.request_id, taken)) for one in planned)
        windows.append(
            WindowFacts(
                wave=wave,
                text=window.text,
                trace_start_s=window.start_s,
                trace_end_s=window.end_s,
                start_s=(window.start_s - times_s[first]) * slower,
                end_s=(window.end_s - times_s[first]) * slower,
                dilation=slower,
            )
        )
    return tuple(requests), tuple(windows)


def mean_dilation(windows: Sequence[WindowFacts]) -> float | None:
    """Over the time of the trace; None without windows."""
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
                )
            )
    return tuple(requests)


def free_id(wanted: str, taken: set[str]) -> str:
    """``wanted``, or what is free behind it; from now on it is taken."""
    while wanted in taken:
        wanted += "#"
    taken.add(wanted)
    return wanted
