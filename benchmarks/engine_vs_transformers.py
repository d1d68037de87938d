"""memplan's torch engine against transformers' own `generate`: the same requests, weights and threads.

Each way runs in a fresh process with its own heap: continuous batching over the paged KV pool, then
`generate` one by one, then `generate` over one left-padded batch. It compares useful output tokens
per CPU second, and the peak of resident memory over what the loaded, warmed-up process held.

    python benchmarks/engine_vs_transformers.py --out reports/benchmark_engine_vs_transformers.json
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memplan.builtin import builtin_path
from memplan.clock import MonotonicClock
from memplan.engines import Died, Ended, EngineEvent, SegmentClosed, open_engine
from memplan.machine import read_machine
from memplan.procfs import ProcessMemory
from memplan.records import Request
from memplan.specs import Deployment, load_deployment
from memplan.workload.prompts import prompt_token_ids

SEED = 20261123
REQUESTS = 16
INPUT_TOKENS = (64, 400)
OUTPUT_TOKENS = (16, 32)
THREADS = 1
"""With more, OpenMP threads that wait for a core taken by other work burn CPU time of their own, and
the figure would measure the neighbours."""
WARMUP_TOKENS = 16
WAYS = ("memplan", "one_by_one", "padded_batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one way of running the requests took, in a process of its own."""

    way: str
    cpu_s: float
    """Of the process that computes, from the first request to the last answer; loading excluded."""
    wall_s: float
    idle_bytes: int
    peak_bytes: int
    """The kernel's high-water mark, reset at idle (memplan's engine: at every step)."""
    digests: tuple[str, ...]
    """Of each request's output token ids, in the order of the requests."""


def requests() -> tuple[Request, ...]:
    draw = random.Random(SEED)
    return tuple(
        Request(
            request_id=f"r{i}",
            wave="all",
            arrival_s=0.0,
            class_name="all",
            input_tokens=draw.randint(*INPUT_TOKENS),
            output_tokens=draw.randint(*OUTPUT_TOKENS),
        )
        for i in range(REQUESTS)
    )


def deployment() -> Deployment:
    base = load_deployment(builtin_path("smollm2.yaml")).variants_resolved()[0]
    settings = base.settings.model_copy(
        update={"device": "cpu", "weights": "bf16", "threads": THREADS, "max_requests": REQUESTS}
    )
    return replace(base, settings=settings)


def digest(tokens: Sequence[int]) -> str:
    return hashlib.sha256(array("q", tokens).tobytes()).hexdigest()[:16]


# --- memplan's engine ---------------------------------------------------------------------------


def run_memplan() -> Outcome:
    clock = MonotonicClock()
    with tempfile.TemporaryDirectory() as scratch:
        engine = open_engine(
            deployment(),
            clock=clock,
            epoch_s=clock.now_s(),
            engine_start=0,
            log=Path(scratch) / "engine.log",
        )
        facts = engine.start()
        todo = requests()
        prompts = [prompt_token_ids(r, vocab_tokens=facts.vocab_tokens) for r in todo]
        engine.poll(0.0)  # what loading said
        began_cpu_s, began_s = _cpu_s(facts.pids[0]), time.monotonic()
        for request, prompt in zip(todo, prompts, strict=True):
            engine.submit(request, prompt)
        events: list[EngineEvent] = []
        while sum(isinstance(event, Ended) for event in events) < len(todo):
            events += engine.poll(1.0)
            if any(isinstance(event, Died) for event in events):
                raise SystemExit(f"the engine died: {events[-1]}")
        wall_s, cpu_s = time.monotonic() - began_s, _cpu_s(facts.pids[0]) - began_cpu_s
        events += engine.stop()
    ended = {e.record.request_id: e.record for e in events if isinstance(e, Ended)}
    for request in todo:
        record = ended[request.request_id]
        if record.output_tokens_run != request.output_tokens:
            raise SystemExit(
                f"{request.request_id}: {record.outcome}, other lengths than asked for"
            )
    peaks = [e.segment.peak["host.hwm"] for e in events if isinstance(e, SegmentClosed)]
    return Outcome(
        way="memplan",
        cpu_s=cpu_s,
        wall_s=wall_s,
        idle_bytes=facts.idle["host.rss"],
        peak_bytes=max(peaks),
        digests=tuple(ended[r.request_id].output_digest or "" for r in todo),
    )


def _cpu_s(pid: int) -> float:
    """User and system time of all threads of a process (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- transformers' generate ---------------------------------------------------------------------


def run_transformers(way: str) -> Outcome:
    import torch
    from transformers import AutoModelForCausalLM

    from memplan.engines.torch.prepare import prepared_folder

    torch.set_num_threads(THREADS)
    model: Any = AutoModelForCausalLM.from_pretrained(
        prepared_folder(deployment()), dtype=torch.bfloat16
    )
    model.eval()
    model.requires_grad_(False)
    todo = requests()
    prompts = [prompt_token_ids(r, vocab_tokens=model.config.vocab_size) for r in todo]
    generate: Callable[[Any, list[list[int]], list[int]], list[list[int]]] = (
        _one_by_one if way == "one_by_one" else _padded_batch
    )
    # The same warm-up as memplan's engine does: two small requests.
    generate(model, [list(range(1, WARMUP_TOKENS + 1))] * 2, [2, 2])
    gc.collect()
    with ProcessMemory("self") as memory:
        memory.reset_peak()
        idle_bytes = memory.read()["host.rss"]
        began_cpu_s, began_s = time.process_time(), time.monotonic()
        outputs = generate(model, prompts, [r.output_tokens for r in todo])
        wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
        peak_bytes = memory.read()["host.hwm"]
    return Outcome(
        way=way,
        cpu_s=cpu_s,
        wall_s=wall_s,
        idle_bytes=idle_bytes,
        peak_bytes=peak_bytes,
        digests=tuple(digest(output) for output in outputs),
    )


def _one_by_one(model: Any, prompts: list[list[int]], output_tokens: list[int]) -> list[list[int]]:
    return [
        _padded_batch(model, [prompt], [count])[0]
        for prompt, count in zip(prompts, output_tokens, strict=True)
    ]


def _padded_batch(
    model: Any, prompts: list[list[int]], output_tokens: list[int]
) -> list[list[int]]:
    """Greedy, of exact length. A batch runs until its longest answer; the rest is cut off after."""
    import torch

    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    most = max(output_tokens)
    with torch.no_grad():
        answer = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=most,
            max_new_tokens=most,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [
        row[:count] for row, count in zip(answer[:, width:].tolist(), output_tokens, strict=True)
    ]


# --- the comparison -----------------------------------------------------------------------------


def in_fresh_process(way: str) -> dict[str, Any]:
    environment = {
        **os.environ,
        **deployment().settings.env,
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, __file__, "--way", way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{way} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def result_of(outcomes: Sequence[dict[str, Any]], took_s: float) -> dict[str, Any]:
    todo = requests()
    output_tokens = sum(r.output_tokens for r in todo)
    ways = {
        one["way"]: {
            **one,
            "over_idle_bytes": one["peak_bytes"] - one["idle_bytes"],
            "output_tokens_per_cpu_s": output_tokens / one["cpu_s"],
            "output_tokens_per_s": output_tokens / one["wall_s"],
        }
        for one in outcomes
    }
    ours = ways["memplan"]
    machine = read_machine()
    return {
        "schema": "memplan.benchmark.engine/1",
        "requests": {
            "count": len(todo),
            "seed": SEED,
            "input_tokens": [r.input_tokens for r in todo],
            "output_tokens": [r.output_tokens for r in todo],
        },
        "model": "SmolLM2-135M-Instruct, bf16",
        "threads": THREADS,
        "ways": ways,
        "memplan_over": {
            way: {
                "tokens_per_cpu_s_ratio": ours["output_tokens_per_cpu_s"]
                / ways[way]["output_tokens_per_cpu_s"],
                "memory_over_idle_ratio": ours["over_idle_bytes"] / ways[way]["over_idle_bytes"],
                "equal_outputs": sum(
                    a == b for a, b in zip(ours["digests"], ways[way]["digests"], strict=True)
                ),
            }
            for way in WAYS[1:]
        },
        "padded_equal_to_one_by_one_outputs": sum(
            a == b
            for a, b in zip(
                ways["padded_batch"]["digests"], ways["one_by_one"]["digests"], strict=True
            )
        ),
        "machine": {
            "cpu": machine.cpu_model,
            "cpus": machine.cpu_count,
            "kernel": machine.kernel,
            "packages": dict(machine.packages),
            "load_1min_at_end": os.getloadavg()[0],
        },
        "took_s": took_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--way", choices=WAYS, help="run only this one, in this process")
    arguments = parser.parse_args()
    if arguments.way:
        outcome = run_memplan() if arguments.way == "memplan" else run_transformers(arguments.way)
        print(json.dumps(asdict(outcome)))
        return
    began_s = time.monotonic()
    outcomes = []
    for way in WAYS:
        outcomes.append(in_fresh_process(way))
        print(f"{way}: done after {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    result = result_of(outcomes, time.monotonic() - began_s)
    print(f"{'':14} {'tokens/CPU s':>13} {'tokens/s':>9} {'peak over idle':>15}")
    for way in WAYS:
        one = result["ways"][way]
        print(
            f"{way:14} {one['output_tokens_per_cpu_s']:13.2f} {one['output_tokens_per_s']:9.2f} "
            f"{one['over_idle_bytes'] / 2**20:11.1f} MiB"
        )
    print(json.dumps(result["memplan_over"], indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
