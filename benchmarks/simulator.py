"""Simulated requests a second and core: memplan's simulator at 1,000 replicas, beside Microsoft's Vidur,
a SimPy model and the plain rules in Python.

Lengths are those of the Azure code trace, arrivals Poisson at `--rate` requests a second and replica.
A step takes what a Llama-3-8B might on one accelerator: the law is declared, not measured, and the same
for all. `--requests` go to `--replicas`, round robin. In the same run the first replicas' traffic is
simulated once more by a SimPy model of the same rules and by `plan.simulation.simulate_plainly`, where
every request must end at the same picosecond, and by Vidur. Its rules (Sarathi's scheduler) are not
ours: it admits by prompt. So its answer is compared, not required to be equal. CPU seconds of the
simulation alone, `--rounds` in turn, medians.

    pip install simpy
    python -m venv vidur && vidur/bin/pip install vidur==0.0.26
    python benchmarks/simulator.py azure_code.csv --vidur vidur/bin/python --out simulator.json
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from memplan.machine import read_machine
from memplan.plan.simulation import (
    PS_PER_S,
    ReplicaRules,
    Served,
    StepLaw,
    Traffic,
    simulate_plainly,
)
from memplan.simulator import simulate

SEED = 20261127
CLAIM_PER_S = 1e6
RULES = ReplicaRules(
    pool_blocks=4096,
    block_tokens=16,
    max_requests=64,
    batch_tokens=2048,
    law=StepLaw(
        step_ps=5_000_000_000, prompt_token_ps=40_000_000, decode_ps=10_000_000, kv_token_ps=40_000
    ),
)
"""KV for 65,536 tokens: 8 GiB of a Llama-3-8B."""


def traffic_of(trace: Path, *, requests: int, replicas: int, rate: float) -> Traffic:
    with trace.open() as file:
        rows = list(csv.DictReader(file))
    chance = np.random.default_rng(SEED)
    drawn = chance.integers(0, len(rows), requests)
    prompts = np.array([int(row["ContextTokens"]) for row in rows])[drawn]
    outputs = np.array([max(1, int(row["GeneratedTokens"])) for row in rows])[drawn]
    gaps_s = chance.exponential(1 / (rate * replicas), requests)
    return Traffic(
        arrival_ps=(np.cumsum(gaps_s) * PS_PER_S).astype(np.int64),
        prompt_tokens=prompts,
        output_tokens=outputs,
        reserved_tokens=prompts + outputs - 1,
        replica=np.arange(requests) % replicas,
    )


def first_replicas(traffic: Traffic, count: int) -> Traffic:
    kept = traffic.replica < count
    return Traffic(
        arrival_ps=traffic.arrival_ps[kept],
        prompt_tokens=traffic.prompt_tokens[kept],
        output_tokens=traffic.output_tokens[kept],
        reserved_tokens=traffic.reserved_tokens[kept],
        replica=traffic.replica[kept],
    )


# --- the same rules as a SimPy model --------------------------------------------------------------


@dataclass(slots=True)
class Flight:
    at: int
    prompt: int
    output: int
    blocks: int
    computed: int = 0
    out: int = 0


def by_simpy(traffic: Traffic, rules: ReplicaRules, replicas: int) -> Served:
    """Whole reservation, as in the traffic above; one process brings requests, one a replica steps."""
    served = Served.empty(len(traffic), replicas)
    environment = simpy.Environment()
    waiting: list[deque[Flight]] = [deque() for _ in range(replicas)]
    bells = [environment.event() for _ in range(replicas)]

    def arrivals() -> Iterator[Any]:
        for at in range(len(traffic)):
            yield environment.timeout(int(traffic.arrival_ps[at]) - environment.now)
            prompt, output = int(traffic.prompt_tokens[at]), int(traffic.output_tokens[at])
            here = int(traffic.replica[at])
            blocks = -(-(prompt + output - 1) // rules.block_tokens)
            waiting[here].append(Flight(at, prompt, output, blocks))
            if not bells[here].triggered:
                bells[here].succeed()

    def replica(here: int) -> Iterator[Any]:
        running: list[Flight] = []
        taken = 0
        law = rules.law
        while True:
            if not running and not waiting[here]:
                bells[here] = environment.event()
                yield bells[here]
            while (
                waiting[here]
                and len(running) < rules.max_requests
                and taken + waiting[here][0].blocks <= rules.pool_blocks
            ):
                one = waiting[here].popleft()
                taken += one.blocks
                running.append(one)
                served.admitted_ps[one.at] = environment.now
            budget, read, prompts = rules.batch_tokens, 0, 0
            decoding = [one for one in running if one.out][:budget]
            budget -= len(decoding)
            rows = [(one, 1) for one in decoding]
            for one in running:
                if one.out or budget < 1:
                    continue
                count = min(one.prompt - one.computed, budget)
                budget -= count
                prompts += count
                rows.append((one, count))
            read = sum(one.computed for one, _ in rows)
            yield environment.timeout(
                law.step_ps
                + law.prompt_token_ps * prompts
                + law.decode_ps * len(decoding)
                + law.kv_token_ps * read
            )
            for one, count in rows:
                one.computed += count
                if one.computed == one.prompt + one.out:
                    one.out += 1
                    if one.out == 1:
                        served.first_token_ps[one.at] = environment.now
                    if one.out == one.output:
                        served.end_ps[one.at] = environment.now
                        taken -= one.blocks
            running = [one for one in running if one.out < one.output]

    environment.process(arrivals())
    for here in range(replicas):
        environment.process(replica(here))
    environment.run()
    return served


# --- Vidur -----------------------------------------------------------------------------------------


def by_vidur(
    python: str, traffic: Traffic, rules: ReplicaRules, replicas: int
) -> tuple[float, npt.NDArray[np.float64]]:
    """CPU seconds, and when each request ended in seconds."""
    asked = {
        "rules": dataclasses.asdict(rules),
        "replicas": replicas,
        "arrival_s": (traffic.arrival_ps / PS_PER_S).tolist(),
        "prompts": traffic.prompt_tokens.tolist(),
        "outputs": traffic.output_tokens.tolist(),
    }
    done = subprocess.run(
        [python, str(Path(__file__).with_name("vidur_run.py"))],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "WANDB_MODE": "offline"},
    )
    found = json.loads(done.stdout[done.stdout.index('{"cpu_s"') :])
    return found["cpu_s"], np.array(found["end_s"])


# --- measured -------------------------------------------------------------------------------------


def timed(way: Callable[[Traffic, ReplicaRules, int], Served], *case: Any) -> tuple[float, Served]:
    began_s = time.process_time()
    served = way(*case)
    return time.process_time() - began_s, served


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--replicas", type=int, default=1_000)
    parser.add_argument("--rate", type=float, nargs="*", default=[1.0, 4.0, 8.0])
    parser.add_argument(
        "--beside", type=int, default=5, help="replicas that the others simulate too"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vidur", help="a Python that has it; without it is left out")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    loads = []
    for rate in asked.rate:
        traffic = traffic_of(
            asked.trace, requests=asked.requests, replicas=asked.replicas, rate=rate
        )
        few = first_replicas(traffic, asked.beside)
        ways = {"simpy": by_simpy, "plain": simulate_plainly}
        took: dict[str, list[float]] = {"memplan": [], "simpy": [], "plain": []}
        same: dict[str, bool] = {}
        against_vidur: dict[str, float] = {}
        for _ in range(asked.rounds):
            cpu_s, served = timed(simulate, traffic, RULES, asked.replicas)
            took["memplan"].append(cpu_s)
            for name, way in ways.items():
                cpu_s, found = timed(way, few, RULES, asked.beside)
                took[name].append(cpu_s)
                ends_ps = served.end_ps[traffic.replica < asked.beside]
                same[name] = bool(np.array_equal(found.end_ps, ends_ps))
            if asked.vidur:
                cpu_s, end_s = by_vidur(asked.vidur, few, RULES, asked.beside)
                took.setdefault("vidur", []).append(cpu_s)
                ours_s, came_s = ends_ps / PS_PER_S, few.arrival_ps / PS_PER_S
                against_vidur = {
                    "mean_end_to_end_ratio": float(
                        (ours_s - came_s).mean() / (end_s - came_s).mean()
                    ),
                    "median_apart_s": float(np.median(np.abs(ours_s - end_s))),
                    "p99_apart_s": float(np.quantile(np.abs(ours_s - end_s), 0.99)),
                }
        per_s = {
            name: (len(traffic) if name == "memplan" else len(few)) / median(cpu_s)
            for name, cpu_s in took.items()
        }
        faster = {one: per_s["memplan"] / per_s[one] for one in per_s if one != "memplan"}
        loads.append(
            {
                "requests_per_s_and_replica": rate,
                "busy_share": float(served.busy_ps.sum() / served.last_ps.sum()),
                "steps": int(served.steps.sum()),
                "cpu_s": took,
                "requests_per_s_and_core": per_s,
                "times_as_fast_as": faster,
                "every_request_ends_at_the_same_picosecond": same,
                "against_vidur": against_vidur or None,
            }
        )
        print(
            f"{rate:g} requests/s and replica, busy {loads[-1]['busy_share']:.0%}: "
            f"{per_s['memplan'] / 1e6:.2f} M requests/s and core; "
            + "; ".join(f"{times:,.0f} x {name}" for name, times in faster.items())
            + f"; the same ends: {all(same.values())}; against Vidur {against_vidur}"
        )
    result = {
        "benchmark": "simulator",
        "machine": read_machine().cpu_model,
        "simpy": importlib.metadata.version("simpy"),
        "requests": asked.requests,
        "replicas": asked.replicas,
        "replicas_beside": asked.beside,
        "rounds": asked.rounds,
        "loads": loads,
        "claim_requests_per_s_and_core": CLAIM_PER_S,
        "holds": all(
            one["requests_per_s_and_core"]["memplan"] >= CLAIM_PER_S
            and all(one["every_request_ends_at_the_same_picosecond"].values())
            for one in loads
        ),
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
