"""ServeGen's tables of clients, sampled: from each client's rates and lengths to a trace.

A folder holds for each client ``chunk-N-trace.csv`` (second of the day, requests a second, variation of
the gaps, ``Gamma`` or ``Weibull`` and its two parameters, each for the ten minutes that follow) and
``chunk-N-dataset.json`` (for each quarter of a day how often prompts and answers of each length are).
https://github.com/alibaba/ServeGen, Apache-2.0.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from random import Random

from memplan.errors import InputError
from memplan.workload.synth import MADE_BY
from memplan.workload.trace import Trace
from memplan.workload.trace_row import TraceRow

_HINT = "give a folder of ServeGen's data, such as data/reason/deepseek-r1"
_MOST_ROWS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rate:
    start_s: float
    per_s: float
    law: str
    """``Gamma`` or ``Weibull``; empty where nobody comes."""
    shape: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lengths:
    """Tokens, and up to which share of the rows they are each."""

    tokens: tuple[int, ...]
    until: tuple[float, ...]

    def draw(self, chance: Random) -> int:
        return chance.choices(self.tokens, cum_weights=self.until)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Client:
    name: str
    rates: tuple[_Rate, ...]
    lengths: Mapping[float, tuple[_Lengths, _Lengths]]
    """Start in seconds → prompts and answers."""


def sample_servegen(folder: Path, start_s: float, end_s: float, *, seed: int) -> Trace:
    """What the clients of a folder send between two seconds of their day: gaps by each one's own law
    with its own rate, lengths by its own shares, prompt and answer independent, because the tables
    say no more. Everything follows from the seed.

    Raises InputError with what is wrong of the folder, or where nobody sends anything.
    """
    clients = _clients(folder)
    wanted = sum(
        one.per_s * max(0.0, min(one.start_s + width_s, end_s) - max(one.start_s, start_s))
        for client in clients
        for one, width_s in _widths(client.rates)
    )
    if wanted > _MOST_ROWS:
        raise InputError(
            f"{folder}: about {wanted:,.0f} requests between {start_s:g} and {end_s:g} s, expected at "
            f"most {_MOST_ROWS:,}",
            hint="take a shorter time with --from and --to",
        )
    made = sorted(
        (
            row
            for client in clients
            for row in _rows(client, start_s, end_s, Random(f"{seed}/{client.name}"))
        ),
        key=lambda row: (row.timestamp_s, row.labels["client"]),
    )
    if not made:
        raise InputError(
            f"{folder}: its clients send nothing between {start_s:g} and {end_s:g} s",
            hint="take another time of the day with --from and --to",
        )
    origin_s = made[0].timestamp_s
    text = f"{folder.name}/{seed}/{start_s!r}/{end_s!r}/{len(made)}"
    return Trace(
        source=f"{MADE_BY}ServeGen {folder.name}, {start_s:g} to {end_s:g} s, seed {seed}",
        format="servegen",
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        rows_read=len(made),
        dropped={},
        time_origin=None,
        block_size=None,
        rows=tuple(
            replace(row, line=number, timestamp_s=row.timestamp_s - origin_s)
            for number, row in enumerate(made, start=1)
        ),
    )


def _rows(client: _Client, start_s: float, end_s: float, chance: Random) -> Iterator[TraceRow]:
    for one, width_s in _widths(client.rates):
        first_s, last_s = max(one.start_s, start_s), min(one.start_s + width_s, end_s)
        if not one.per_s or last_s <= first_s:
            continue
        lengths = _at(client.lengths, one.start_s)
        if lengths is None:
            continue
        # A renewal process is joined in its middle: the first gap is a random part of one.
        at_s = first_s + _gap_s(one, chance) * chance.random()
        while at_s < last_s:
            yield TraceRow(
                line=0,
                timestamp_s=at_s,
                input_tokens=lengths[0].draw(chance),
                output_tokens=lengths[1].draw(chance),
                labels={"client": client.name},
            )
            at_s += _gap_s(one, chance)


def _gap_s(rate: _Rate, chance: Random) -> float:
    """By the law's shape, with a mean of one over the rate: the fitted scales do not keep it."""
    if rate.law == "Gamma":
        return chance.gammavariate(rate.shape, 1 / (rate.shape * rate.per_s))
    scale = 1 / (rate.per_s * math.gamma(1 + 1 / rate.shape))
    return chance.weibullvariate(scale, rate.shape)


def _widths(rates: Sequence[_Rate]) -> Iterator[tuple[_Rate, float]]:
    """Each with how long it holds; the last as long as the one before."""
    for at, one in enumerate(rates):
        if at + 1 < len(rates):
            yield one, rates[at + 1].start_s - one.start_s
        else:
            yield one, one.start_s - rates[at - 1].start_s if at else math.inf


def _at(
    lengths: Mapping[float, tuple[_Lengths, _Lengths]], time_s: float
) -> tuple[_Lengths, _Lengths] | None:
    """Those that hold at a time; of a time without any, the nearest before it, else after."""
    before = [start_s for start_s in lengths if start_s <= time_s]
    if before:
        return lengths[max(before)]
    return lengths[min(lengths)] if lengths else None


def _clients(folder: Path) -> list[_Client]:
    tables = sorted(folder.glob("chunk-*-trace.csv")) if folder.is_dir() else []
    if not tables:
        raise InputError(f"{folder}: holds no chunk-N-trace.csv", hint=_HINT)
    clients, faults = [], []
    for table in tables:
        name = table.name.removesuffix("-trace.csv")
        try:
            clients.append(
                _Client(
                    name=name,
                    rates=_rates(table),
                    lengths=_lengths(table.with_name(f"{name}-dataset.json")),
                )
            )
        except (OSError, ValueError, SyntaxError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise InputError.of_faults(str(folder), faults, hint=_HINT)
    return clients


def _rates(table: Path) -> tuple[_Rate, ...]:
    found = []
    with table.open(newline="", encoding="utf-8") as file:
        for number, cells in enumerate(csv.reader(file), start=1):
            if len(cells) != 6:
                raise ValueError(f"{table.name}:{number} got {len(cells)} columns, expected 6")
            start_s, per_s, law = float(cells[0]), float(cells[1]), cells[3]
            shape = float(cells[4] or 0)
            is_sane = all(map(math.isfinite, (start_s, per_s, shape))) and per_s >= 0
            if not is_sane or (per_s and (law not in ("Gamma", "Weibull") or shape <= 0)):
                raise ValueError(
                    f"{table.name}:{number} got {','.join(cells)[:60]}, expected a rate and its law"
                )
            found.append(_Rate(start_s=start_s, per_s=per_s, law=law, shape=shape))
    if [one.start_s for one in found] != sorted({one.start_s for one in found}):
        raise ValueError(f"{table.name}: its times do not rise")
    return tuple(found)


def _lengths(path: Path) -> dict[float, tuple[_Lengths, _Lengths]]:
    """Quarters in which the client sends nothing have none."""
    found = {}
    for start, entry in json.loads(path.read_text(encoding="utf-8")).items():
        both = [_shares(entry[key], path) for key in ("input_tokens", "output_tokens")]
        if both[0] is not None and both[1] is not None:
            found[float(start)] = both[0], both[1]
    return found


def _shares(text: str, path: Path) -> _Lengths | None:
    """Written as a Python dictionary within a JSON text: length → share."""
    shares = {int(tokens): float(share) for tokens, share in ast.literal_eval(text).items()}
    if any(tokens < 0 or not 0 <= share <= 1 for tokens, share in shares.items()):
        raise ValueError(f"{path.name}: expected shares from 0 to 1 of lengths")
    known = {max(1, tokens): share for tokens, share in sorted(shares.items()) if share > 0}
    if not known:
        return None
    return _Lengths(tokens=tuple(known), until=tuple(accumulate(known.values())))
