"""Are the fitted laws of a replica's memory right about steps and requests that they never saw?

Of each recording the laws are fitted on the first half. On the second half the law of the process gets
what explains memory (KV, requests, largest step) and says what was resident: the error of the process's
peak, of the typical step, and how many steps lie below its 95 % bound. The law of a request gets lengths
and says what each owned: the error of each class's p99, and whether it lies within the bound.

Beside them stand the largest of the first half, and with `--peers` what hf-mem, accelerate, hf-vram-calc
and vramscout say of the same model with as many requests of that length as there were at the peak.
accelerate knows weights alone.

    memplan replay azure_code.csv --model smollm2 --limit 200 --length-scale 0.25 --out run
    python -m venv peers && peers/bin/pip install torch accelerate hf-mem hf-vram-calc vramscout
    python benchmarks/predicted_peaks.py run … --peers peers/bin/python --out predicted_peaks.json
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from memplan.plan.memory_model import MemoryModel, Observation, fit_memory, observations_of
from memplan.plan.request_memory import features_of, fit_requests, owned_by_request
from memplan.recording import read_run
from memplan.records import Recording

CLAIM = 0.05
"""Of every class's p99 and of the process's peak."""
FEWEST = 10
"""Requests of a class in the second half; fewer have no p99 worth the name."""
DTYPE = {"base": "bf16", "int8": "int8", "fp32": "fp32"}


def predicted(model: MemoryModel, one: Observation) -> tuple[float, float]:
    found = model.predict(
        kv_bytes=one.kv_bytes,
        sequences=one.sequences,
        largest_step_tokens=one.largest_step_tokens,
        chunk_lengths=one.chunk_lengths,
    )
    return found.resident_bytes, found.upper_bytes


def process_of(recording: Recording) -> dict[str, Any]:
    steps = list(observations_of(recording))
    first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    model = fit_memory(first)
    if model is None:
        raise SystemExit(f"{recording.path}: {len(first)} steps in its first half are too few")
    pairs = [(*predicted(model, one), one.resident_bytes) for one in second]
    peak_step = max(second, key=lambda one: one.resident_bytes)
    peak = peak_step.resident_bytes
    said = max(resident for resident, _, _ in pairs)
    upper = max(upper for _, upper, _ in pairs)
    before = max(one.resident_bytes for one in first)
    tokens = peak_step.kv_bytes / recording.engines[-1].kv_bytes_per_token
    return {
        "steps": len(steps),
        "second_half_peak_bytes": peak,
        "predicted_peak_bytes": said,
        "upper_peak_bytes": upper,
        "peak_error_ratio": said / peak - 1,
        "first_half_peak_error_ratio": before / peak - 1,
        "median_step_error_ratio": median(abs(r / a - 1) for r, _, a in pairs),
        "below_the_bound_ratio": sum(a <= u for _, u, a in pairs) / len(pairs),
        "beyond_measured_ratio": max(
            (max(model.predict(
                kv_bytes=one.kv_bytes, sequences=one.sequences,
                largest_step_tokens=one.largest_step_tokens,
                chunk_lengths=one.chunk_lengths,
            ).beyond.values(), default=1.0) for one in second),
            default=1.0,
        ),
        "at_the_peak": {
            "batch": int(peak_step.sequences),
            "context_tokens": math.ceil(tokens / max(1, peak_step.sequences)),
        },
    }  # fmt: skip


def classes_of(recording: Recording) -> dict[str, Any]:
    batch_tokens = int(recording.header.deployment["settings"]["max_batch_tokens"])  # type: ignore[index]
    requests = sorted(recording.requests, key=lambda one: one.arrival_s)
    first, second = requests[: len(requests) // 2], requests[len(requests) // 2 :]
    law = fit_requests(recording, first, batch_tokens)
    if law is None:
        raise SystemExit(f"{recording.path}: too few requests were completed in its first half")
    owned = owned_by_request(recording)
    found = {}
    for name in dict.fromkeys(one.class_name for one in second):
        mine = [one for one in second if one.class_name == name and one.request_id in owned]
        if len(mine) < FEWEST:
            continue
        kv_bytes, step_tokens = features_of(mine, recording.engines[-1], batch_tokens)
        measured = [owned[one.request_id] for one in mine]
        p99 = float(np.quantile(measured, 0.99, method="inverted_cdf"))
        predicted_p99 = law.quantile_bytes(name, kv_bytes, step_tokens, 0.99)
        found[name] = {
            "n": len(mine),
            "p99_bytes": p99,
            "predicted_p99_bytes": predicted_p99,
            "open_bytes": law.open_of(name),
            "error_ratio": predicted_p99 / p99 - 1,
            "is_covered": abs(predicted_p99 - p99) <= law.open_of(name),
        }
    return found


def judged(folder: Path) -> dict[str, Any]:
    recording = read_run(folder)
    process, classes = process_of(recording), classes_of(recording)
    return {
        "run": recording.header.run_id,
        "variant": recording.header.variant,
        **process,
        "classes": classes,
        "holds": abs(process["peak_error_ratio"]) <= CLAIM
        and process["upper_peak_bytes"] >= process["second_half_peak_bytes"]
        and all(abs(one["error_ratio"]) <= CLAIM and one["is_covered"] for one in classes.values()),
    }


def asked_of_peers(python: str, found: list[dict[str, Any]]) -> None:
    """Writes into each what they say."""
    asked = [{"dtype": DTYPE[one["variant"]], **one["at_the_peak"]} for one in found]
    done = subprocess.run(
        [python, str(Path(__file__).with_name("peers_run.py"))],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    for one, said in zip(found, json.loads(done.stdout.splitlines()[-1]), strict=True):
        one["peers"] = {
            name: {"bytes": size, "error_ratio": size / one["second_half_peak_bytes"] - 1}
            if isinstance(size, int | float)
            else {"said": size}
            for name, size in said.items()
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of replays")
    parser.add_argument("--peers", help="a Python that has them; without it they are left out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    found = [judged(folder) for folder in asked.runs]
    if asked.peers:
        asked_of_peers(asked.peers, found)
    for one in found:
        print(
            f"{one['variant']:8} {one['steps']:5} steps: peak {one['peak_error_ratio']:+.2%} "
            f"(largest of the first half {one['first_half_peak_error_ratio']:+.2%}), median step "
            f"{one['median_step_error_ratio']:.2%}, below the bound {one['below_the_bound_ratio']:.1%}"
        )
        for name, each in one["classes"].items():
            print(
                f"         {name}: p99 of {each['n']}: {each['error_ratio']:+.2%}, bound "
                f"{each['open_bytes'] / each['p99_bytes']:.1%}, covered {each['is_covered']}"
            )
        for name, said in one.get("peers", {}).items():
            print(f"         {name}: {said.get('error_ratio', said.get('said'))}")
    if asked.out:
        asked.out.write_text(json.dumps({"runs": found}, indent=1) + "\n")
    return 0 if all(one["holds"] for one in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
