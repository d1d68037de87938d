"""Rows of a trace a second: read, classified and summarised, beside Arrow and polars that only read.

A CSV of Azure's form is written with `--rows` random rows (10 million: 400 MB). In one run, each in a
process of its own on one core, in turn, `--rounds` times: memplan's `trace inspect` without its page,
`pyarrow.csv.read_csv` and `polars.read_csv` of the same file, with their times parsed. CPU seconds,
medians; peak resident memory of each process.

    pip install polars
    python benchmarks/read_rows.py --out reports/benchmark_read_rows.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from memplan.machine import read_machine

SEED = 20261127
CLAIMS = {"rows_per_s": 1e6, "peak_mib": 1024}
_TOGETHER = 500_000


def write_rows(path: Path, rows: int) -> None:
    """Poisson arrivals and log-normal lengths: their values do not matter, their form does."""
    chance, at_us = np.random.default_rng(SEED), 1_715_299_200_000_000
    with path.open("w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for start in range(0, rows, _TOGETHER):
            count = min(_TOGETHER, rows - start)
            times = at_us + np.cumsum(chance.exponential(50_000, count).astype(np.int64))
            at_us = int(times[-1])
            texts = np.datetime_as_string(times.astype("datetime64[us]"), unit="us").tolist()
            inputs = np.clip(chance.lognormal(7, 1, count), 1, 100_000).astype(int).tolist()
            outputs = np.clip(chance.lognormal(4, 1, count), 1, 4_000).astype(int).tolist()
            file.writelines(
                f"{text[:10]} {text[11:]}+00:00,{one},{other}\n"
                for text, one, other in zip(texts, inputs, outputs, strict=True)
            )


def memplan_rows(path: Path) -> int:
    from memplan.specs import BUILTIN_CLASSES  # the imports are part of what a user waits for
    from memplan.workload.summary import summarise_trace

    return summarise_trace(path, BUILTIN_CLASSES).head.rows_kept


def arrow_rows(path: Path) -> int:
    import pyarrow as pa
    from pyarrow import csv

    kinds = {"TIMESTAMP": pa.timestamp("ns", "UTC")}
    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(use_threads=False),
        convert_options=csv.ConvertOptions(column_types=kinds),
    ).num_rows


def polars_rows(path: Path) -> int:
    import polars

    return polars.read_csv(path, try_parse_dates=True).height


READERS = {"memplan": memplan_rows, "pyarrow": arrow_rows, "polars": polars_rows}


def once(reader: str, path: Path) -> dict[str, Any]:
    environment = {**os.environ, "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = ["taskset", "-c", "0", sys.executable, __file__, "--read", reader, str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return dict(json.loads(done.stdout))


def read_once(reader: str, path: Path) -> None:
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    rows = READERS[reader](path)
    cpu_s, wall_s = time.process_time() - began_cpu_s, time.monotonic() - began_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "cpu_s": cpu_s, "wall_s": wall_s, "peak_mib": peak_mib}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Rows of a trace a second, beside Arrow and polars."
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "azure.csv"
        write_rows(path, options.rows)
        rounds = [{reader: once(reader, path) for reader in READERS} for _ in range(options.rounds)]
        size_bytes = path.stat().st_size
    assert all(one["rows"] == options.rows for found in rounds for one in found.values())
    cpu_s = {reader: median(found[reader]["cpu_s"] for found in rounds) for reader in READERS}
    report = {
        "machine": read_machine().cpu_model,
        "rows": options.rows,
        "file_bytes": size_bytes,
        "rounds": rounds,
        "cpu_s": cpu_s,
        "rows_per_cpu_s": {reader: options.rows / one for reader, one in cpu_s.items()},
        "rows_per_wall_s": options.rows / median(found["memplan"]["wall_s"] for found in rounds),
        "peak_mib": {
            reader: max(found[reader]["peak_mib"] for found in rounds) for reader in READERS
        },
        "cpu_over_peer": {one: cpu_s["memplan"] / cpu_s[one] for one in ("pyarrow", "polars")},
        "claims": CLAIMS,
    }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_once(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
