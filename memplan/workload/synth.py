"""Made-up traces that strain one thing each: nobody's traffic, and said to be so.

For what a log of one's own does not hold yet. Arrivals are Poisson's and lengths log-normal unless a
shape is about just that; everything follows from the seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

from memplan.workload.trace import Trace
from memplan.workload.trace_row import TraceRow

MADE_BY = "synth "
"""How the source of a trace begins that is made up here."""
BLOCK_TOKENS = 16
_OWN_IDS = 10**12
"""Ids of blocks from here on belong to one row alone."""
_MOST_TOKENS = 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How long and how busy; ``requests_per_s`` is the mean of what users begin, on which a shape
    adds."""

    length_s: float
    requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    strains: str
    rows: Callable[[Random, Ask], Iterator[TraceRow]]
    """In any order."""


def synth(name: str, ask: Ask, *, seed: int) -> Trace:
    """A trace of the shape of that name in SHAPES, at least one row; raises KeyError for another."""
    made = sorted(SHAPES[name].rows(Random(f"{seed}/{name}"), ask), key=lambda row: row.timestamp_s)
    rows = made or [_row(0.0, 100, 20)]
    origin_s = rows[0].timestamp_s
    text = f"{name}/{seed}/{ask.length_s!r}/{ask.requests_per_s!r}"
    return Trace(
        source=f"{MADE_BY}{name}, seed {seed}",
        format="synth",
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        rows_read=len(rows),
        dropped={},
        time_origin=None,
        block_size=BLOCK_TOKENS,
        rows=tuple(
            replace(
                row,
                line=number,
                timestamp_s=row.timestamp_s - origin_s,
                hash_ids=_with_own(row, number),
            )
            for number, row in enumerate(rows, start=1)
        ),
    )


def _long_prefixes(draw: Random, ask: Ask) -> Iterator[TraceRow]:
    """Five products, each with a system prompt of thousands of tokens, and a short question each."""
    heads = [
        _blocks(number, tokens) for number, tokens in enumerate((8000, 5000, 3000, 2000, 1000))
    ]
    for at_s in _arrivals(draw, ask):
        # The first is asked for most, as products are.
        head = draw.choices(heads, weights=(16, 8, 4, 2, 1))[0]
        question = _tokens(draw, 120, 0.8)
        yield _row(
            at_s, len(head) * BLOCK_TOKENS + question, _tokens(draw, 150, 0.8), hash_ids=head
        )


def _retries(draw: Random, ask: Ask) -> Iterator[TraceRow]:
    """Clients that give up after 30 s and ask again, up to three times, in a tenth of the time in
    which the service is slow: the same prompts come back while the first ones are still served."""
    is_slow = _phases(draw, ask, mean_s=60, ratio=0.1)
    for number, at_s in enumerate(_arrivals(draw, ask)):
        prompt, answer = _tokens(draw, 1500, 1.0), _tokens(draw, 200, 0.8)
        ids = _blocks(number, prompt + BLOCK_TOKENS - 1)  # its last block too: it is the same text
        yield _row(at_s, prompt, answer, hash_ids=ids)
        for again in range(1, 4):
            at_s += 30 * 2 ** (again - 1) * draw.uniform(0.9, 1.1)
            if not is_slow(at_s - 30) or draw.random() < 0.2:
                break
            yield _row(at_s, prompt, answer, hash_ids=ids)


def _tool_calls(draw: Random, ask: Ask) -> Iterator[TraceRow]:
    """Agents: each turn sends all turns before it and what a tool said, which now and then is a file."""
    turns_mean = 12
    for session, start_s in enumerate(
        _arrivals(draw, replace(ask, requests_per_s=ask.requests_per_s / turns_mean))
    ):
        at_s, context = start_s, _tokens(draw, 3000, 0.3)
        for _ in range(1 + int(draw.expovariate(1 / turns_mean))):
            if at_s > ask.length_s or context > _MOST_TOKENS:
                break
            answer = _tokens(draw, 180, 0.9)
            yield _row(
                at_s, context, answer, hash_ids=_blocks(session, context), session_id=f"s{session}"
            )
            context += answer + _tokens(draw, 6000 if draw.random() < 0.1 else 400, 0.8)
            at_s += answer * 0.02 + draw.expovariate(1 / 4)


def _batch_collisions(draw: Random, ask: Ask) -> Iterator[TraceRow]:
    """Short questions all the time, and every five minutes a job that sends long prompts at once."""
    for at_s in _arrivals(draw, ask):
        yield _row(
            at_s, _tokens(draw, 300, 0.8), _tokens(draw, 120, 0.8), class_label="interactive"
        )
    job_s = draw.uniform(0, 300)
    while job_s < ask.length_s:
        for _ in range(draw.randint(16, 48)):
            sent_s = job_s + draw.uniform(0, 0.5)
            yield _row(
                sent_s, _tokens(draw, 8000, 0.4), _tokens(draw, 400, 0.5), class_label="batch"
            )
        job_s += 300


def _cache_churn(draw: Random, ask: Ask) -> Iterator[TraceRow]:
    """Two hundred documents asked for in turn: each comes back when all others have passed."""
    lengths = [_tokens(draw, 4000, 0.5) for _ in range(200)]
    for number, at_s in enumerate(_arrivals(draw, ask)):
        document = number % len(lengths)
        question = _tokens(draw, 60, 0.5)
        yield _row(
            at_s,
            lengths[document] + question,
            _tokens(draw, 100, 0.8),
            hash_ids=_blocks(document, lengths[document]),
        )


def _node_pressure(draw: Random, ask: Ask) -> Iterator[TraceRow]:
    """From a quarter of the rate to four times it, while prompts and answers grow twofold: what a node
    sees while another one's share moves to it."""
    at_s = 0.0
    while True:
        share = min(1.0, at_s / ask.length_s)
        at_s += draw.expovariate(ask.requests_per_s * 0.25 * 16**share)
        if at_s > ask.length_s:
            return
        grown = 1 + share
        yield _row(at_s, _tokens(draw, 900 * grown, 0.9), _tokens(draw, 180 * grown, 0.8))


SHAPES = {
    "long-prefixes": Shape(
        strains="prefix caches that hold long system prompts", rows=_long_prefixes
    ),
    "retries": Shape(strains="queues that serve the same prompt more than once", rows=_retries),
    "tool-calls": Shape(strains="contexts that grow turn by turn, in jumps", rows=_tool_calls),
    "batch-collisions": Shape(strains="peaks of many long prompts at once", rows=_batch_collisions),
    "cache-churn": Shape(strains="caches that lose what they need next", rows=_cache_churn),
    "node-pressure": Shape(strains="a load that rises until something gives", rows=_node_pressure),
}


def _arrivals(draw: Random, ask: Ask) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += draw.expovariate(ask.requests_per_s)
        if at_s > ask.length_s:
            return
        yield at_s


def _phases(draw: Random, ask: Ask, *, mean_s: float, ratio: float) -> Callable[[float], bool]:
    """Whether a time lies in one of the phases that fill ``ratio`` of all."""
    ends: list[tuple[float, float]] = []
    at_s = 0.0
    while at_s < ask.length_s:
        start_s = at_s + draw.expovariate(ratio / (mean_s * (1 - ratio)))
        at_s = start_s + draw.expovariate(1 / mean_s)
        ends.append((start_s, at_s))
    return lambda time_s: any(start_s <= time_s < end_s for start_s, end_s in ends)


def _tokens(draw: Random, middle: float, spread: float) -> int:
    return min(_MOST_TOKENS, max(1, round(draw.lognormvariate(math.log(middle), spread))))


def _blocks(source: int, tokens: int) -> tuple[int, ...]:
    """Of the whole blocks of a text: the first ones of a longer text of the same source are the same."""
    return tuple(source * 10_000 + at for at in range(tokens // BLOCK_TOKENS))


def _with_own(row: TraceRow, number: int) -> tuple[int, ...]:
    """One id for each started block of the prompt, where a shape gave it some."""
    if not row.hash_ids:
        return ()
    missing = -(-row.input_tokens // BLOCK_TOKENS) - len(row.hash_ids)
    return (*row.hash_ids, *(_OWN_IDS + number * 10_000 + at for at in range(missing)))


def _row(
    at_s: float,
    input_tokens: int,
    output_tokens: int,
    *,
    hash_ids: tuple[int, ...] = (),
    session_id: str | None = None,
    class_label: str | None = None,
) -> TraceRow:
    return TraceRow(
        line=0,
        timestamp_s=at_s,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        hash_ids=hash_ids,
        session_id=session_id,
        class_label=class_label,
    )
