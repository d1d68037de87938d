"""Is the fitted law of a replica's memory right about steps that it never saw?

Of each recording the law is fitted on the first half of its steps. On the second half it gets what
explains memory (KV, requests, largest step) and says what was resident: the error of the process's
peak, the error of the typical step, and how many steps lie below its 95 % bound. Beside it stands what
is left without a law: the largest of the first half.

    memplan replay azure_code.csv --model smollm2 --limit 200 --length-scale 0.25 --out run
    python benchmarks/predicted_peaks.py run … --out reports/benchmark_predicted_peaks.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from memplan.plan.memory_model import MemoryModel, Observation, fit_memory, observations_of
from memplan.recording import read_run


def predicted(model: MemoryModel, one: Observation) -> tuple[float, float]:
    found = model.predict(
        kv_bytes=one.kv_bytes,
        sequences=one.sequences,
        largest_step_tokens=one.largest_step_tokens,
    )
    return found.resident_bytes, found.upper_bytes


def judged(folder: Path) -> dict[str, Any]:
    recording = read_run(folder)
    steps = list(observations_of(recording))
    first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    model = fit_memory(first)
    if model is None:
        raise SystemExit(f"{folder}: {len(first)} steps in its first half are too few")
    pairs = [(*predicted(model, one), one.resident_bytes) for one in second]
    peak = max(actual for _, _, actual in pairs)
    said = max(resident for resident, _, _ in pairs)
    before = max(one.resident_bytes for one in first)
    return {
        "run": recording.header.run_id,
        "variant": recording.header.variant,
        "steps": len(steps),
        "second_half_peak_bytes": peak,
        "predicted_peak_bytes": said,
        "peak_error_ratio": said / peak - 1,
        "first_half_peak_error_ratio": before / peak - 1,
        "median_step_error_ratio": median(abs(r / a - 1) for r, _, a in pairs),
        "below_the_bound_ratio": sum(a <= u for _, u, a in pairs) / len(pairs),
        "beyond_measured_ratio": max(
            (max(model.predict(
                kv_bytes=one.kv_bytes, sequences=one.sequences,
                largest_step_tokens=one.largest_step_tokens,
            ).beyond.values(), default=1.0) for one in second),
            default=1.0,
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of replays")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    found = [judged(folder) for folder in asked.runs]
    for one in found:
        print(
            f"{one['variant']:8} {one['steps']:5} steps: peak {one['peak_error_ratio']:+.2%} "
            f"(largest of the first half {one['first_half_peak_error_ratio']:+.2%}), median step "
            f"{one['median_step_error_ratio']:.2%}, below the bound {one['below_the_bound_ratio']:.1%}"
        )
    if asked.out:
        asked.out.write_text(json.dumps({"runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
