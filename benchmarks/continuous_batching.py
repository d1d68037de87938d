"""memplan's torch engine against transformers' own continuous batching, in the same run.

The same requests, weights, forms and threads; each engine in a fresh process, in alternating order.
transformers runs as it configures itself, and once more sized by hand for these requests. It compares
useful output tokens per CPU second, and the peak of resident memory over what the process holds with
its weights loaded, as ratios of the runs of one round.

    python benchmarks/continuous_batching.py --out reports/benchmark_continuous_batching.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engine_door import deployment, machine_fields, plain_requests, serve

from memplan.procfs import ProcessMemory
from memplan.records import Request
from memplan.workload.prompts import prompt_token_ids

SEED = 20261126
THREADS = 1
BATCH_TOKENS = 512
PEERS = ("transformers", "transformers_sized")
ENGINES = ("memplan", *PEERS)
PAGE_TOKENS = 16
"""Of transformers' cache, sized by hand: as large as memplan's blocks (its own choice: 256)."""
DTYPES = ("fp32", "bf16")
WARM_UP = ((16, 2), (16, 2))
"""Prompt and output tokens: what memplan's engine runs before it is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests that all come at once, of lengths drawn within limits and brought to these sums."""

    count: int
    input_range: tuple[int, int]
    input_sum: int
    output_range: tuple[int, int]
    output_sum: int
    tokens_ratio: float
    """What is claimed of memplan's tokens per CPU second over the other's; of its peak over the weights
    at most half is claimed."""
    at_once: int
    """Requests that memplan's engine admits at once: how much KV lives is its policy, and a peer sized
    by hand has room for all of them. With 12 of the long load it was no slower than with all 32, at less
    than half the memory; with 8 of the short one it was a fifth slower."""

    def requests(self) -> tuple[Request, ...]:
        draw = random.Random(SEED)
        inputs = drawn(draw, self.count, self.input_range, self.input_sum)
        outputs = drawn(draw, self.count, self.output_range, self.output_sum)
        return plain_requests(list(zip(inputs, outputs, strict=True)))


LOADS = {
    "short": Load(
        count=16,
        input_range=(8, 160),
        input_sum=1_216,
        output_range=(8, 64),
        output_sum=504,
        tokens_ratio=1.2,
        at_once=16,
    ),
    "long": Load(
        count=32,
        input_range=(400, 600),
        input_sum=15_872,
        output_range=(16, 32),
        output_sum=768,
        tokens_ratio=2.5,
        at_once=12,
    ),
}
MEMORY_RATIO = 0.5


def drawn(draw: random.Random, count: int, limits: tuple[int, int], total: int) -> tuple[int, ...]:
    """``count`` numbers within limits whose sum is ``total``."""
    numbers = [draw.randint(*limits) for _ in range(count)]
    while (missing := total - sum(numbers)) != 0:
        step = 1 if missing > 0 else -1
        index = draw.randrange(count)
        if limits[0] <= numbers[index] + step <= limits[1]:
            numbers[index] += step
    return tuple(numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One engine's way through one load."""

    engine: str
    cpu_s: float
    """Of the process that computes, from the first request to the last answer; loading excluded."""
    wall_s: float
    idle_bytes: int
    """Resident with the weights loaded and touched, and nothing in flight."""
    peak_bytes: int
    """The kernel's high-water mark, reset at idle (memplan's engine: at every step)."""
    digests: tuple[str, ...]
    """Of each request's output token ids, in the order of the requests."""

    @property
    def over_idle_bytes(self) -> int:
        return self.peak_bytes - self.idle_bytes


def settings_of(dtype: str, at_once: int) -> dict[str, Any]:
    return {
        "device": "cpu",
        "weights": dtype,
        "threads": THREADS,
        "max_requests": at_once,
        "max_batch_tokens": BATCH_TOKENS,
    }


def run_memplan(dtype: str, load: Load) -> Outcome:
    requests = load.requests()
    served = serve(settings_of(dtype, load.at_once), requests)
    return Outcome(
        engine="memplan",
        cpu_s=served.cpu_s,
        wall_s=served.wall_s,
        idle_bytes=served.facts.idle["host.rss"],
        peak_bytes=served.peak_bytes,
        digests=tuple(record.output_digest or "" for record in served.records),
    )


def run_transformers(dtype: str, load: Load, *, is_sized: bool) -> Outcome:
    """Its manager is made after idle is read: its cache and its masks are what it needs to serve."""
    import gc

    import torch
    from transformers import AutoModelForCausalLM

    from memplan.engines.torch.prepare import prepared_folder

    torch.set_num_threads(THREADS)
    requests = load.requests()
    model: Any = AutoModelForCausalLM.from_pretrained(
        prepared_folder(deployment(settings_of(dtype, load.at_once))),
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype],
        attn_implementation="sdpa",
    )
    model.eval()
    model.requires_grad_(False)
    prompts = [prompt_token_ids(r, vocab_tokens=model.config.vocab_size) for r in requests]
    warm = plain_requests(WARM_UP)
    answers_of(model, warm, [list(range(1, r.input_tokens + 1)) for r in warm], is_sized=True)
    gc.collect()
    with ProcessMemory("self") as memory:
        memory.reset_peak()
        idle_bytes = memory.read()["host.rss"]
        answers, cpu_s, wall_s = answers_of(model, requests, prompts, is_sized=is_sized)
        peak_bytes = memory.read()["host.hwm"]
    return Outcome(
        engine="transformers_sized" if is_sized else "transformers",
        cpu_s=cpu_s,
        wall_s=wall_s,
        idle_bytes=idle_bytes,
        peak_bytes=peak_bytes,
        digests=tuple(
            hashlib.sha256(array("q", tokens).tobytes()).hexdigest()[:16] for tokens in answers
        ),
    )


def answers_of(
    model: Any, requests: Sequence[Request], prompts: list[list[int]], *, is_sized: bool
) -> tuple[list[list[int]], float, float]:
    """Answers, CPU seconds and seconds; greedy, of exact length. Sized: room for all of them at once and
    for nothing else, and as many tokens a step as memplan's."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    pages = [-(-(r.input_tokens + r.output_tokens) // PAGE_TOKENS) for r in requests]
    sized = {
        "page_size": PAGE_TOKENS,
        "num_blocks": sum(pages),
        "max_batch_tokens": BATCH_TOKENS,
        "max_requests_per_batch": len(requests),
        "allow_block_sharing": False,  # no two of the prompts begin alike
    }
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(**(sized if is_sized else {})),
    )
    manager.warmup()
    manager.start()
    began_cpu_s, began_s = time.process_time(), time.monotonic()
    answers: dict[str, list[int]] = {}
    try:
        for request, prompt in zip(requests, prompts, strict=True):
            manager.add_request(
                prompt,
                request_id=request.request_id,
                max_new_tokens=request.output_tokens,
                eos_token_id=-1,
            )
        while len(answers) < len(requests):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise SystemExit("transformers' continuous batching ended before its requests")
            if result is not None and result.error is not None:
                raise SystemExit(f"{result.request_id}: {result.error}")
            if result is not None and result.is_finished():
                answers[result.request_id] = list(result.generated_tokens)
        cpu_s, wall_s = time.process_time() - began_cpu_s, time.monotonic() - began_s
    finally:
        manager.stop(block=True, timeout=10)
        manager.destroy()
    for request in requests:
        if len(answers[request.request_id]) != request.output_tokens:
            raise SystemExit(f"{request.request_id}: other lengths than asked for")
    return [answers[r.request_id] for r in requests], cpu_s, wall_s


# --- the comparison -----------------------------------------------------------------------------


def in_fresh_process(engine: str, dtype: str, load: str) -> Outcome:
    settings = deployment({"device": "cpu", "weights": dtype}).settings
    environment = {
        **os.environ,
        **settings.malloc_env,  # memplan's default for its own engine: one arena of malloc
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, __file__, "--run", engine, "--dtype", dtype, "--load", load]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{engine} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    fields = json.loads(done.stdout.splitlines()[-1])
    return Outcome(**{**fields, "digests": tuple(fields["digests"])})


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"least": min(values), "median": median(values), "most": max(values)}


def result_of(load: str, dtype: str, rounds: Sequence[dict[str, Outcome]]) -> dict[str, Any]:
    tokens = LOADS[load].output_sum
    return {
        "load": load,
        "dtype": dtype,
        "rounds": len(rounds),
        "tokens_per_cpu_s": {
            name: spread([tokens / one[name].cpu_s for one in rounds]) for name in ENGINES
        },
        "peak_over_idle_mib": {
            name: spread([one[name].over_idle_bytes / 2**20 for one in rounds]) for name in ENGINES
        },
        "memplan_over": {peer: comparison(load, peer, rounds) for peer in PEERS},
        "outcomes": [{name: asdict(one[name]) for name in ENGINES} for one in rounds],
    }


def comparison(load: str, peer: str, rounds: Sequence[dict[str, Outcome]]) -> dict[str, Any]:
    """Ratios within each round; what is claimed of them is judged by their medians."""
    pairs = [(one["memplan"], one[peer]) for one in rounds]
    speed = spread([their.cpu_s / our.cpu_s for our, their in pairs])
    memory = spread([our.over_idle_bytes / their.over_idle_bytes for our, their in pairs])
    equal = [
        sum(a == b for a, b in zip(our.digests, their.digests, strict=True)) for our, their in pairs
    ]
    return {
        "tokens_per_cpu_s_ratio": speed,
        "tokens_claimed_ratio": LOADS[load].tokens_ratio,
        "tokens_hold": speed["median"] >= LOADS[load].tokens_ratio,
        "memory_over_idle_ratio": memory,
        "memory_claimed_ratio": MEMORY_RATIO,
        "memory_holds": memory["median"] <= MEMORY_RATIO,
        "equal_outputs_least": min(equal),
        "outputs": LOADS[load].count,
    }


def print_row(row: dict[str, Any]) -> None:
    for engine in ENGINES:
        per_s, peak = row["tokens_per_cpu_s"][engine], row["peak_over_idle_mib"][engine]
        told = f"{row['load']:6}{row['dtype']:5}{engine:19}"
        told += f"{per_s['median']:7.1f} tokens/CPU s {peak['median']:8.1f} MiB"
        if engine in PEERS:
            over = row["memplan_over"][engine]
            speed, memory = over["tokens_per_cpu_s_ratio"], over["memory_over_idle_ratio"]
            told += f"   memplan {speed['median']:.2f} × "
            told += (
                f"({speed['least']:.2f} to {speed['most']:.2f}), memory {memory['median']:.2f} × "
            )
            told += f"({memory['least']:.2f} to {memory['most']:.2f}), "
            told += f"{over['equal_outputs_least']}/{over['outputs']} equal"
        print(told, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write, anew after each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", choices=LOADS, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--trial", action="store_true", help="one round of the short load in fp32")
    parser.add_argument("--run", choices=ENGINES, help="only this one, in this process")
    arguments = parser.parse_args()
    loads, dtypes = arguments.load or list(LOADS), arguments.dtype or list(DTYPES)
    if arguments.run:
        load = LOADS[loads[0]]
        outcome = (
            run_memplan(dtypes[0], load)
            if arguments.run == "memplan"
            else run_transformers(dtypes[0], load, is_sized=arguments.run == "transformers_sized")
        )
        print(json.dumps(asdict(outcome)))
        return
    if arguments.trial:
        loads, dtypes, arguments.rounds = ["short"], ["fp32"], 1
    began_s = time.monotonic()
    rows = []
    for load_name in loads:
        for dtype in dtypes:
            rounds = []
            for number in range(arguments.rounds):
                order = ENGINES if number % 2 == 0 else ENGINES[::-1]
                rounds.append({one: in_fresh_process(one, dtype, load_name) for one in order})
            rows.append(result_of(load_name, dtype, rounds))
            print_row(rows[-1])
            if arguments.out:
                write(arguments.out, rows, began_s)


def write(path: Path, rows: list[Any], began_s: float) -> None:
    """What is done: a run of hours that is cut off keeps it."""
    document = {
        "schema": "memplan.benchmark.continuous_batching/1",
        "model": "SmolLM2-135M-Instruct",
        "threads": THREADS,
        "seed": SEED,
        "rows": rows,
        "machine": machine_fields(),
        "took_s": time.monotonic() - began_s,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
