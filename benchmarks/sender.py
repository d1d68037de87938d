"""The sender against a loopback server that streams: how fast, how late, how many at once, how large.

Against `mock_stream.py`, whose own count is the truth; the mock has one core and memplan the other:

- **driver**: the driver alone, which sends, reads streams and makes records, 64 requests at once.
- **rate**: the whole `memplan replay`, answered at once in four tokens: replies a second, and a CPU
  second of memplan, recording and all.
- **pace**: `memplan replay` of 200 requests a second, evenly random, each 16 tokens 5 ms apart: how
  late each was sent, the most in flight as memplan saw it against the mock's own count, and the peak
  of memplan's process.

    python benchmarks/sender.py --out reports/benchmark_sender.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memplan.clock import MonotonicClock
from memplan.engines import Ended, open_engine
from memplan.machine import read_machine
from memplan.recording import read_run
from memplan.records import Request
from memplan.specs import load_deployment
from memplan.stats.percentiles import rank_of

SEED = 20261126
MOCK = Path(__file__).with_name("mock_stream.py")
MODEL = """\
memplan: 1
name: loopback
engine: endpoint
settings: {{max_requests: {at_once}}}
server: {{url: "http://127.0.0.1:{port}/v1"}}
"""
RATE_PER_S, RATE_S, RATE_TOKENS, RATE_AT_ONCE = 4_000, 8, 4, 256
DRIVER_REQUESTS, DRIVER_AT_ONCE = 60_000, 64
PACE_PER_S, PACE_S, PACE_TOKENS, PACE_GAP_MS = 200, 60, 16, 5.0
CLAIMS = {"replies_per_s": 8000, "lag_p99_s": 0.003, "client_peak_mib": 60}


@contextmanager
def mock(gap_ms: float) -> Iterator[int]:
    command = ["taskset", "-c", "0", sys.executable, str(MOCK), str(gap_ms)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def replayed(folder: Path, port: int, rows: list[dict[str, Any]], at_once: int) -> Any:
    (folder / "model.yaml").write_text(MODEL.format(port=port, at_once=at_once))
    (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        ["taskset", "-c", "1", sys.executable, "-m", "memplan", "replay", str(folder / "trace.jsonl"),
         "--model", str(folder / "model.yaml"), "--out", str(folder / "run"), "--force"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/truth") as answer:
        truth = json.load(answer)
    return read_run(folder / "run"), truth


def driver(folder: Path) -> dict[str, Any]:
    os.sched_setaffinity(0, {1})
    sent = done = 0
    prompt = list(range(1, 17))
    with mock(0) as port:
        (folder / "model.yaml").write_text(MODEL.format(port=port, at_once=DRIVER_AT_ONCE))
        clock = MonotonicClock()
        engine = open_engine(
            load_deployment(folder / "model.yaml"),
            clock=clock,
            epoch_s=clock.now_s(),
            engine_start=0,
            log=folder / "log",
        )
        engine.start()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        while done < DRIVER_REQUESTS:
            while sent - done < DRIVER_AT_ONCE and sent < DRIVER_REQUESTS:
                request = Request(
                    request_id=f"r{sent}", wave="w", arrival_s=0.0, class_name="c",
                    input_tokens=16, output_tokens=RATE_TOKENS,
                )  # fmt: skip
                engine.submit(request, prompt)
                sent += 1
            for event in engine.poll(0.05):
                if isinstance(event, Ended):
                    if event.record.outcome != "completed":
                        raise SystemExit(f"{event.record}")
                    done += 1
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        engine.stop()
    return {
        "requests": done,
        "replies_per_s": done / took_s,
        "replies_per_cpu_s": done / cpu_s,
    }


def rate(folder: Path) -> dict[str, Any]:
    rows = [
        {"timestamp": n * 1e3 / RATE_PER_S, "input_length": 16, "output_length": RATE_TOKENS}
        for n in range(RATE_PER_S * RATE_S)
    ]
    with mock(0) as port:
        recording, truth = replayed(folder, port, rows, RATE_AT_ONCE)
    done = [o for o in recording.outcomes.values() if o.outcome == "completed"]
    first = min(o.sent_s for o in done)
    took_s = max(o.end_s for o in done) - first
    return {
        "requests": len(rows),
        "offered_per_s": RATE_PER_S,
        "completed": len(done),
        "answered_by_the_mock": truth["answered"] - 2,
        "replies_per_s": len(done) / took_s,
        "replies_per_cpu_s": len(done) / recording.end.client_cpu_s,
        "client_peak_mib": recording.end.client_peak_bytes / 2**20,
    }


def pace(folder: Path) -> dict[str, Any]:
    draw = random.Random(SEED)
    times = sorted(draw.uniform(0, PACE_S * 1000) for _ in range(PACE_PER_S * PACE_S))
    rows = [{"timestamp": at, "input_length": 16, "output_length": PACE_TOKENS} for at in times]
    with mock(PACE_GAP_MS) as port:
        recording, truth = replayed(folder, port, rows, 1024)
    done = [o for o in recording.outcomes.values() if o.outcome == "completed"]
    lags = sorted(o.sent_s - o.intended_s for o in done)
    arrived = truth["arrived_s"][2:]
    offset = arrived[0] - min(o.intended_s for o in done)
    seen = sorted(
        at - offset - due
        for at, due in zip(arrived, sorted(o.intended_s for o in done), strict=True)
    )
    edges = sorted([(o.sent_s, 1) for o in done] + [(o.end_s, -1) for o in done])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return {
        "requests": len(rows),
        "completed": len(done),
        "lag_p50_s": lags[rank_of(len(lags), 0.5)],
        "lag_p99_s": lags[rank_of(len(lags), 0.99)],
        "lag_most_s": lags[-1],
        "arrival_spread_p99_s": seen[rank_of(len(seen), 0.99)] - seen[0],
        "most_in_flight": most,
        "most_in_flight_by_the_mock": truth["most_in_flight"],
        "client_peak_mib": recording.end.client_peak_bytes / 2**20,
        "client_cpu_of_one_core": recording.end.client_cpu_s / PACE_S,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=("driver", "rate", "pace"))
    arguments = parser.parse_args()
    began_s = time.monotonic()
    result: dict[str, Any] = {
        "schema": "memplan.benchmark.sender/1",
        "claims": CLAIMS,
        "seed": SEED,
    }
    for name, measured in (("driver", driver), ("rate", rate), ("pace", pace)):
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as scratch:
                result[name] = measured(Path(scratch))
            print(name, json.dumps(result[name], indent=1), flush=True)
    machine = read_machine()
    result["machine"] = {
        "cpu": machine.cpu_model,
        "cpus": machine.cpu_count,
        "python": machine.python,
        "load_1min_at_end": os.getloadavg()[0],
    }
    result["took_s"] = time.monotonic() - began_s
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
