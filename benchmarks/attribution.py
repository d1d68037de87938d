"""How much of the peak no source names: five replays of a real trace slice for each weight format.

Each replay is a fresh process of the torch engine through `memplan replay`. The figure is the
unexplained part of the largest peak while serving, over that peak; the parts beside it are medians.

    python benchmarks/attribution.py --out reports/benchmark_attribution.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import memplan
from memplan.builtin import builtin_path
from memplan.machine import read_machine
from memplan.recording import read_run
from memplan.stats.summarise import summarise
from memplan.stats.summary import Attribution

VARIANTS = ("fp32", "base", "int8")
RUNS = 5
REQUESTS = 30
LENGTH_SCALE = 0.25
TARGET_RATIO = 0.02
PARTS = (
    "weights_bytes",
    "kv_bytes",
    "activations_bytes",
    "runtime_bytes",
    "allocator_slack_bytes",
    "page_cache_bytes",
    "unexplained_bytes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """One replay's largest peak."""

    variant: str
    total_bytes: int
    unexplained_ratio: float
    parts: dict[str, int]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="writes the result as JSON")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args(arguments)
    peaks = []
    for run in range(options.runs):
        for variant in VARIANTS:  # in turn, so that a drift of the machine meets all of them
            peaks.append(measured(variant, options.requests))
            ratio = peaks[-1].unexplained_ratio
            print(f"run {run + 1}, {variant}: {ratio:+.2%}", file=sys.stderr, flush=True)
    result = {variant: summary(variant, peaks) for variant in VARIANTS}
    for variant, row in result.items():
        print(f"{variant}: {json.dumps(row)}")
    if options.out is not None:
        document = {
            "benchmark": "attribution",
            "memplan": memplan.__version__,
            "requests": options.requests,
            "length_scale": LENGTH_SCALE,
            "machine": asdict(read_machine()),
            "variants": result,
            "peaks": [asdict(peak) for peak in peaks],
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def measured(variant: str, requests: int) -> Peak:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        trace = builtin_path("azure_code_2023.slice.csv")
        command = [sys.executable, "-m", "memplan", "replay", str(trace), "--model", "smollm2"]
        command += ["--variant", variant, "--limit", str(requests)]
        command += ["--length-scale", str(LENGTH_SCALE), "--out", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        attribution = summarise(read_run(folder)).attribution
    assert attribution is not None
    return Peak(
        variant=variant,
        total_bytes=attribution.total_bytes,
        unexplained_ratio=attribution.unexplained_bytes / attribution.total_bytes,
        parts=parts_of(attribution),
    )


def parts_of(attribution: Attribution) -> dict[str, int]:
    return {name: getattr(attribution, name) for name in PARTS}


def summary(variant: str, peaks: Sequence[Peak]) -> dict[str, object]:
    mine = [peak for peak in peaks if peak.variant == variant]
    ratios = [peak.unexplained_ratio for peak in mine]
    return {
        "runs": len(mine),
        "within_2_percent": sum(abs(ratio) <= TARGET_RATIO for ratio in ratios),
        "unexplained_ratio_least": round(min(ratios), 5),
        "unexplained_ratio_median": round(median(ratios), 5),
        "unexplained_ratio_most": round(max(ratios), 5),
        "peak_median_mib": round(median(peak.total_bytes for peak in mine) / 2**20, 1),
        "parts_median_mib": {
            name.removesuffix("_bytes"): round(median(p.parts[name] for p in mine) / 2**20, 1)
            for name in PARTS
        },
    }


if __name__ == "__main__":
    main()
