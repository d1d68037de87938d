"""The reference: how long the fleet that made a trace took for a request.

Arrivals and lengths fix the demand, not how many requests were in flight. That takes service times:
those that the trace has itself, or a prefill rate and a time per output token that the user declares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from statistics import median

from memplan.errors import InputError
from memplan.life import Life
from memplan.units import parse_seconds
from memplan.workload.trace_row import TraceRow

OBSERVED = "observed"
_HINT = "--reference prefill=14000,tpot=13ms, or --reference observed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """``prefill_tokens_per_s`` and ``tpot_s`` of every request, in service from its arrival on: the
    fleet had room for all. Where ``is_observed``, a row's own times stand before them."""

    prefill_tokens_per_s: float | None
    tpot_s: float | None
    is_observed: bool

    @property
    def text(self) -> str:
        declared = ""
        if self.prefill_tokens_per_s is not None and self.tpot_s is not None:
            declared = (
                f"{self.prefill_tokens_per_s:,.0f} prompt tokens/s and "
                f"{self.tpot_s * 1e3:g} ms per output token, as declared"
            )
        if not self.is_observed:
            return declared
        own = "times that the trace has itself"
        return f"{own}, else {declared}" if declared else own


def parse_reference(text: str) -> Reference:
    """``prefill=14000,tpot=13ms``, ``observed``, or both with commas. Raises InputError."""
    prefill = tpot = None
    is_observed = False
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, equals, value = part.partition("=")
        try:
            match name, equals:
                case "observed", "":
                    is_observed = True
                case "prefill", "=":
                    prefill = float(value)
                case "tpot", "=":
                    tpot = parse_seconds(value)
                case _:
                    raise ValueError
        except (ValueError, InputError) as error:
            raise _bad(
                f"got {part!r}, expected prefill=TOKENS_PER_S, tpot=TIME or observed"
            ) from error
    declared = [one for one in (prefill, tpot) if one is not None]
    if not declared and not is_observed:
        raise _bad("it is empty")
    if len(declared) == 1:
        raise _bad("prefill and tpot belong together")
    if not all(0 < one < 1e9 for one in declared):
        raise _bad("expected rates and times above 0")
    return Reference(prefill_tokens_per_s=prefill, tpot_s=tpot, is_observed=is_observed)


def _bad(text: str) -> InputError:
    return InputError(f"--reference: {text}", hint=_HINT)


def service_of(row: TraceRow, reference: Reference) -> tuple[float, float] | None:
    """(prefill_s, e2e_s) of a row; None where the reference says nothing of it.

    An observed end-to-end time without one to the first token is split as the declared rates would
    split it; without those the answer grows from the start on.
    """
    declared: tuple[float, float] | None = None
    if reference.prefill_tokens_per_s is not None and reference.tpot_s is not None:
        prefill_s = row.input_tokens / reference.prefill_tokens_per_s
        declared = prefill_s, prefill_s + row.output_tokens * reference.tpot_s
    if not reference.is_observed or not row.observed_e2e_s:
        return declared
    e2e_s = row.observed_e2e_s
    if row.observed_ttft_s is not None:
        return min(row.observed_ttft_s, e2e_s), e2e_s
    return (e2e_s * declared[0] / declared[1] if declared else 0.0), e2e_s


def tick_s_of(lives: Sequence[Life], output_tokens: Sequence[int]) -> float:
    """The median time of a token: a pace's tick, at which all that run decode together.
    ``output_tokens``: of each life, as they are sent."""
    return median(
        (one.end_s - one.start_s - one.prefill_s) / tokens
        for one, tokens in zip(lives, output_tokens, strict=True)
    )


def lives_of(rows: Sequence[TraceRow], reference: Reference) -> tuple[Life, ...]:
    """In the trace's own time; a user who gave up ends one. Raises InputError where a row has no
    service time."""
    lives, unknown = [], 0
    for row in rows:
        service = service_of(row, reference)
        if service is None:
            unknown += 1
            continue
        life = Life(
            start_s=row.timestamp_s,
            prefill_s=service[0],
            end_s=row.timestamp_s + service[1],
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
        )
        given_up_s = row.timestamp_s + (inf if row.cancel_after_s is None else row.cancel_after_s)
        lives.append(life.until(given_up_s))
    if unknown:
        raise InputError(
            f"--reference observed: {unknown:,} of {len(rows):,} rows say nothing of how long they took",
            hint="declare what such rows took: --reference observed,prefill=14000,tpot=13ms",
        )
    return tuple(lives)
