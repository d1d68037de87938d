"""How often our 95 % intervals hold the truth, on simulated traffic whose truth is known.

A replica's memory is simulated as requests that come at random, stay, and hold memory that grows while
they do. A study is what `memplan replay --repeat N` would record: one trace, N replays of it, each at
a pace and a base of its own. The truth is the quantile of 200 long simulations, each of a trace and a
machine of its own. The package's own code makes the percentiles; numpy only simulates.

    python benchmarks/coverage.py --out reports/benchmark_coverage.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memplan.stats.excursions import Replay, Timed, block_s_of
from memplan.stats.percentiles import of_process, of_requests, weighted_quantile
from memplan.stats.summary import Percentiles

Floats = npt.NDArray[np.float64]
SEED = 20261124
STUDIES = 500
TRUTH_REPLAYS, TRUTH_S = 200, 20_000.0
RESAMPLES = 200
LEVELS = (0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Memory in MB. A class's stay, first and last size are means; sizes vary log-normally."""

    name: str
    per_s: float
    share: tuple[float, ...]
    stay_s: tuple[float, ...]
    first: tuple[float, ...]
    last: tuple[float, ...]
    watched: int
    """The class whose figures are made."""
    step_s: float


SCENARIOS = {
    # Chat beside retrieval, all over within seconds.
    "short": Scenario(
        name="short",
        per_s=2.0,
        share=(0.75, 0.25),
        stay_s=(1.0, 3.0),
        first=(4, 60),
        last=(8, 70),
        watched=1,
        step_s=0.5,
    ),
    # Chat, retrieval and agents: 10 % of requests are agents, and half of all requests in flight.
    "agents": Scenario(
        name="agents",
        per_s=1.0,
        share=(0.7, 0.2, 0.1),
        stay_s=(3.0, 8.0, 40.0),
        first=(10, 300, 100),
        last=(32, 385, 500),
        watched=2,
        step_s=4.0,
    ),
    # Held out: written when the method stood, and nothing was changed for it. One or two requests
    # at once, and sizes that differ a lot.
    "sparse": Scenario(
        name="sparse",
        per_s=0.2,
        share=(0.8, 0.2),
        stay_s=(6.0, 20.0),
        first=(50, 200),
        last=(100, 500),
        watched=0,
        step_s=2.0,
    ),
}
CASES = (
    # (scenario, seconds of a replay, replays, the same trace in all of them)
    ("short", 600.0, 5, True),
    ("short", 600.0, 8, True),
    ("short", 2400.0, 1, True),
    ("short", 2400.0, 5, True),
    ("short", 2400.0, 8, True),
    ("agents", 1800.0, 5, True),
    ("agents", 1800.0, 8, True),
    ("agents", 9000.0, 1, True),
    ("agents", 9000.0, 5, True),
    ("agents", 9000.0, 8, True),
    ("agents", 9000.0, 5, False),
    ("sparse", 3600.0, 5, True),
    ("sparse", 7200.0, 5, True),
    ("sparse", 7200.0, 8, True),
)


@dataclass(frozen=True, slots=True)
class Trace:
    at_s: Floats
    kind: npt.NDArray[np.int64]
    stay_s: Floats
    size: Floats


@dataclass(frozen=True, slots=True)
class Played:
    """One replay: what the process held in each step, whether the class was there, and what each
    request of the class owned at its end."""

    held: Floats
    is_there: npt.NDArray[np.bool_]
    sent_s: Floats
    owned: Floats
    longest_stay_s: float


def draw_trace(one: Scenario, length_s: float, chance: np.random.Generator) -> Trace:
    """With requests before its start, so that it does not begin empty."""
    before_s = 3 * max(one.stay_s)
    n = chance.poisson(one.per_s * (length_s + before_s))
    kind = chance.choice(len(one.share), n, p=one.share)
    stretch = np.minimum(chance.gamma(4, 0.25, n), 2.5)
    return Trace(
        at_s=np.sort(chance.uniform(-before_s, length_s, n)),
        kind=kind,
        stay_s=np.array(one.stay_s)[kind] * stretch,
        size=chance.lognormal(0, 0.5, n),
    )


def play(one: Scenario, trace: Trace, length_s: float, chance: np.random.Generator) -> Played:
    """One replay: paces differ by 3 %, stays of requests by 5 %, the idle process by 5 MB."""
    stay_s = trace.stay_s * chance.normal(1, 0.03) * chance.normal(1, 0.05, len(trace.stay_s))
    first = np.array(one.first)[trace.kind] * trace.size
    last = np.array(one.last)[trace.kind] * trace.size
    grows = (last - first) / stay_s
    steps = int(length_s / one.step_s)
    enters = np.clip(np.floor(trace.at_s / one.step_s).astype(int), 0, steps)
    leaves = np.clip(np.ceil((trace.at_s + stay_s) / one.step_s).astype(int), 0, steps)

    def over_time(per_request: Floats) -> Floats:
        change = np.zeros(steps + 1)
        np.add.at(change, enters, per_request)
        np.add.at(change, leaves, -per_request)
        return np.cumsum(change)[:steps]

    end_s = (np.arange(steps) + 1) * one.step_s
    watched = trace.kind == one.watched
    mine = watched & (trace.at_s >= 0)
    return Played(
        held=1000
        + chance.normal(0, 5)
        + over_time(first - grows * trace.at_s)
        + over_time(grows) * end_s
        + chance.exponential(5, steps),
        is_there=over_time(watched.astype(float)) > 0.5,
        sent_s=trace.at_s[mine],
        owned=last[mine] + chance.exponential(1, int(mine.sum())),
        longest_stay_s=float(stay_s.max()),
    )


# --- one study --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One interval of one study; bounds None are open."""

    value: float
    low: float | None
    high: float | None


def by_time(one: Scenario, played: Sequence[Played]) -> tuple[list[Replay], float]:
    stay_s = max(p.longest_stay_s for p in played)
    step_s = one.step_s
    replays = [
        Replay(
            points=tuple(
                Timed(i * step_s, (i + 1) * step_s, held, step_s)
                for i, held in zip(
                    np.flatnonzero(p.is_there).tolist(), p.held[p.is_there].tolist(), strict=True
                )
            )
        )
        for p in played
    ]
    return replays, stay_s


def by_request(played: Sequence[Played]) -> list[Replay]:
    return [
        Replay(
            points=tuple(
                Timed(float(at), float(at), float(v), 1.0)
                for at, v in zip(p.sent_s, p.owned, strict=True)
            )
        )
        for p in played
    ]


def told(made: Percentiles, p: float) -> Told | None:
    """None where the percentile, or both its bounds, are withheld."""
    quantile = made.p95 if p == LEVELS[0] else made.p99
    if quantile.value is None or (quantile.low is None and quantile.high is None):
        return None
    return Told(value=quantile.value, low=quantile.low, high=quantile.high)


def iid(values: Floats, p: float) -> Told:
    """What a bootstrap over samples converges to: ranks of independent values, n p ± 1.96 sd."""
    ordered = np.sort(values)
    n = len(ordered)
    half = 1.96 * math.sqrt(n * p * (1 - p))
    low, high = math.floor(n * p - half), math.ceil(n * p + half)
    return Told(
        value=float(ordered[math.ceil(n * p) - 1]),
        low=float(ordered[low]) if low >= 0 else None,
        high=float(ordered[high]) if high < n else None,
    )


def block_bootstrap(
    played: Sequence[Played], p: float, block: int, chance: np.random.Generator
) -> Told | None:
    """memplan's interval until 0.1: blocks as long as the longest stay, of all replays alike."""
    parts = [
        part[there]
        for one in played
        for part, there in zip(
            np.split(one.held, range(block, len(one.held), block)),
            np.split(one.is_there, range(block, len(one.held), block)),
            strict=True,
        )
    ]
    parts = [part for part in parts if len(part)]
    if len(parts) < 8:
        return None
    of_block = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    values = np.concatenate(parts)
    order = np.argsort(values, kind="stable")
    values, of_block = values[order], of_block[order]
    found = []
    for _ in range(RESAMPLES):
        times = np.bincount(chance.integers(0, len(parts), len(parts)), minlength=len(parts))
        reached = np.cumsum(times[of_block])
        found.append(values[np.searchsorted(reached, p * reached[-1])])
    return Told(
        value=float(values[math.ceil(len(values) * p) - 1]),
        low=float(np.quantile(found, 0.025)),
        high=float(np.quantile(found, 0.975)),
    )


# --- many studies -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    scenario: str
    replay_s: float
    replays: int
    same_trace: bool
    figure: str
    """co_resident (by time) or attributed (by request)"""
    method: str
    p: float
    truth: float
    studies: int
    reported: int
    """Studies in which the interval was given."""
    covered: int
    open_above: int
    """Of the reported: those without an upper bound."""
    mean_width_ratio: float | None
    """Of the closed ones, of the truth."""
    mean_value_ratio: float | None
    median_excursions: int | None
    median_blocks: int | None


def run_case(
    case: tuple[str, float, int, bool],
    truths: dict[str, dict[float, float]],
    studies: int,
    chance: np.random.Generator,
) -> list[Row]:
    name, length_s, replays, same = case
    one = SCENARIOS[name]
    found: dict[tuple[str, str, float], list[Told | None]] = {}
    excursions: list[int] = []
    blocks: list[int] = []
    for _ in range(studies):
        trace = draw_trace(one, length_s, chance)
        played = [
            play(one, trace if same else draw_trace(one, length_s, chance), length_s, chance)
            for _ in range(replays)
        ]
        timed, stay_s = by_time(one, played)
        block_s = block_s_of(timed, stay_s=stay_s)
        requests = by_request(played)
        held = of_process(
            timed,
            requests=max(len(replay.points) for replay in requests),
            stay_s=stay_s,
            block_s=block_s,
            method="",
        )
        owned = of_requests(requests, block_s=block_s, method="")
        excursions.append(held.excursions or 0)
        blocks.append(int(length_s / block_s))
        present = np.concatenate([p.held[p.is_there] for p in played])
        for p in LEVELS:
            ways: dict[tuple[str, str], Told | None] = {
                ("co_resident", "memplan"): told(held, p),
                ("co_resident", "iid"): iid(present, p),
                ("co_resident", "blocks_of_one_stay"): block_bootstrap(
                    played, p, max(1, round(stay_s / one.step_s)), chance
                ),
                ("attributed", "memplan"): told(owned, p),
                ("attributed", "iid"): iid(np.concatenate([x.owned for x in played]), p),
            }
            if replays > 1:
                ways["co_resident", "t_over_replays"] = t_alone(held, p)
            for (figure, method), interval in ways.items():
                found.setdefault((figure, method, p), []).append(interval)
    return [
        row_of(case, key, intervals, truths[key[0]][key[2]], excursions, blocks)
        for key, intervals in found.items()
    ]


def t_alone(made: Percentiles, p: float) -> Told | None:
    quantile = made.p95 if p == LEVELS[0] else made.p99
    if quantile.value is None:
        return None
    return Told(value=quantile.value, low=quantile.replays_low, high=quantile.replays_high)


def row_of(
    case: tuple[str, float, int, bool],
    key: tuple[str, str, float],
    intervals: Sequence[Told | None],
    truth: float,
    excursions: Sequence[int],
    blocks: Sequence[int],
) -> Row:
    given = [one for one in intervals if one is not None]
    widths = [o.high - o.low for o in given if o.high is not None and o.low is not None]
    is_process = key[0] == "co_resident"
    return Row(
        scenario=case[0],
        replay_s=case[1],
        replays=case[2],
        same_trace=case[3],
        figure=key[0],
        method=key[1],
        p=key[2],
        truth=truth,
        studies=len(intervals),
        reported=len(given),
        covered=sum(
            (o.low is None or o.low <= truth) and (o.high is None or truth <= o.high) for o in given
        ),
        open_above=sum(o.high is None for o in given),
        mean_width_ratio=float(np.mean(widths)) / truth if widths else None,
        mean_value_ratio=float(np.mean([o.value for o in given])) / truth if given else None,
        median_excursions=int(np.median(excursions)) if is_process else None,
        median_blocks=int(np.median(blocks)),
    )


def truths_of(one: Scenario, chance: np.random.Generator) -> dict[str, dict[float, float]]:
    """Over machines as well as over traffic: as many of either as there are replays."""
    long = [
        play(one, draw_trace(one, TRUTH_S, chance), TRUTH_S, chance) for _ in range(TRUTH_REPLAYS)
    ]
    held = np.concatenate([p.held[p.is_there] for p in long])
    owned = np.concatenate([p.owned for p in long])
    return {
        "co_resident": {p: exact_quantile(held, p) for p in LEVELS},
        "attributed": {p: exact_quantile(owned, p) for p in LEVELS},
    }


def exact_quantile(values: Floats, p: float) -> float:
    ordered = np.sort(values)
    return float(ordered[math.ceil(len(ordered) * p) - 1])


def print_rows(rows: Sequence[Row]) -> None:
    print(
        f"{'scenario':34} {'figure':12} {'interval':20} {'p':>4} {'given':>9} {'covered':>8} width"
    )
    for row in rows:
        case = f"{row.scenario} {row.replay_s:.0f} s × {row.replays}"
        case += "" if row.same_trace else " (own traffic each)"
        share = f"{row.covered / row.reported:.1%}" if row.reported else "–"
        width = f"{row.mean_width_ratio:.1%}" if row.mean_width_ratio is not None else "–"
        print(
            f"{case:34} {row.figure:12} {row.method:20} p{row.p * 100:.0f} "
            f"{row.reported:>4}/{row.studies} {share:>8} {width}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--studies", type=int, default=STUDIES)
    asked = parser.parse_args(arguments)
    began_s = time.monotonic()
    # The exact quantile of the package, on a small sample, is that of numpy's sort.
    small = np.random.default_rng(SEED).normal(size=999)
    assert weighted_quantile([(float(v), 1.0) for v in small], 0.95) == exact_quantile(small, 0.95)
    truths = {
        name: truths_of(one, np.random.default_rng([SEED, at]))
        for at, (name, one) in enumerate(SCENARIOS.items())
    }
    rows: list[Row] = []
    for at, case in enumerate(CASES):
        # Of its own, so that a case gives the same rows whatever else is run.
        chance = np.random.default_rng([SEED, len(SCENARIOS), at])
        made = run_case(case, truths[case[0]], asked.studies, chance)
        print_rows(made)
        rows += made
    if asked.out:
        result = {
            "schema": "memplan.benchmark.coverage/1",
            "seed": SEED,
            "studies": asked.studies,
            "truth_s": TRUTH_REPLAYS * TRUTH_S,
            "scenarios": {name: asdict(one) for name, one in SCENARIOS.items()},
            "rows": [asdict(row) for row in rows],
            "took_s": time.monotonic() - began_s,
            "machine": {"cpu_count": os.cpu_count(), "kernel": platform.release()},
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
        }
        asked.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
