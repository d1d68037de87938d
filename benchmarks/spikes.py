"""How many short memory spikes are seen: by segments, by the run's own timeline, and at 10 Hz.

Runs the ballast engine through `memplan replay`, which plants spikes of known size and hold time
while it serves, and judges each one from the recording by a rule of this file's own.

    python benchmarks/spikes.py --out reports/benchmark_spikes.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median

from memplan.recording import read_run
from memplan.records import PlantedSpike, Recording, Sample, Segment

MB = 10**6
SPIKES_MB = (20, 150)
HOLDS_MS = (1, 3, 10)
PAUSES_MS = (170, 173, 177)
"""Before a spike; one run each, because a single pace could keep step with the sampler's."""
GIVING_BACK_S = 0.05
"""Unmapping begins at ``gone_s`` and takes some milliseconds, more on a busy machine."""
SAMPLE_PERIOD_S = 0.01
DECIMATION = 10
"""Every tenth sample of a 100 Hz timeline is a 10 Hz one."""
SEEN_RATIO = 0.95
"""A reading sees a spike when it holds this much of it on top of the idle engine."""
SEED = 20261123

# Some seven requests overlap all the time, so segments are engine steps of about 10 ms. They hold less
# than 0.2 MB of KV and activations, so that whatever stands 19 MB above idle is a spike.
MODEL = """\
memplan: 1
name: spikes
engine: ballast
settings: {{device: cpu, max_requests: 8, max_kv_tokens: 8192, block_tokens: 256}}
script: {{weights: 200MiB, runtime: 100MiB, kv_bytes_per_token: 16, prefill_tokens_per_s: 20000,
         decode_s_per_step: 10ms, activation_bytes_per_token: 64, vocab_tokens: 1000,
         context_tokens: 4096}}
self_test: {{spike: {spike_mb}MB, hold: {hold_ms}ms, count: {count}, every: {pause_ms}ms}}
"""
REQUEST_EVERY_S = 0.15
REQUEST = {"input_length": 100, "output_length": 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """``seen`` of ``n``, with Wilson's 95 % interval (Wilson 1927; no normal approximation)."""

    seen: int
    n: int
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one run saw of its spikes."""

    planted: int
    by_segments: int
    by_timeline: int
    by_decimated: int
    false_alarms: int
    """Segments that no spike touches and that stand as high as if one did; must be 0."""
    rates_hz: tuple[float, float]
    resident_s: tuple[float, ...]
    height_errors_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All runs of one size and hold."""

    spike_bytes: int
    hold_s: float
    in_memory_median_s: float
    """From a spike's first page to the beginning of its end, on the engine's own clock."""
    segments: Share
    timeline: Share
    decimated: Share
    timeline_hz: float
    decimated_hz: float
    """Rates as they were achieved, in the slowest run."""
    false_alarms: int
    height_error_median_bytes: float | None
    """Segment's peak minus idle minus spike, over the spikes that segments saw."""


def share(seen: int, n: int) -> Share:
    z = 1.959964
    ratio = seen / n
    middle = (ratio + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(ratio * (1 - ratio) / n + z * z / (4 * n * n))
    # At 0 and n of n the exact bounds are 0 and 1; rounding must not leave the ratio outside.
    low = 0.0 if seen == 0 else middle - half
    high = 1.0 if seen == n else middle + half
    return Share(seen=seen, n=n, ratio=ratio, low=low, high=high)


def measure(spike_mb: int, hold_ms: int, pause_ms: int, count: int, folder: Path) -> Recording:
    # A spike takes the pause before it, its hold, and up to 100 ms to become resident.
    needed_s = 2.0 + count * (pause_ms + hold_ms + 100) / 1000
    trace = "".join(
        json.dumps({"timestamp": round(i * REQUEST_EVERY_S * 1000), **REQUEST}) + "\n"
        for i in range(math.ceil(needed_s / REQUEST_EVERY_S))
    )
    folder.mkdir()
    (folder / "trace.jsonl").write_text(trace)
    (folder / "model.yaml").write_text(
        MODEL.format(spike_mb=spike_mb, hold_ms=hold_ms, count=count, pause_ms=pause_ms)
    )
    command = [sys.executable, "-m", "memplan", "replay", str(folder / "trace.jsonl")]
    options = ["--model", str(folder / "model.yaml"), "--out", str(folder / "run"), "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"memplan replay ended with {done.returncode}:\n{done.stderr}")
    return read_run(folder / "run")


def judge(recording: Recording, draw: random.Random) -> Verdict:
    spikes = recording.planted
    if not spikes:
        raise SystemExit("no spike was planted")
    idle_bytes = recording.engines[0].idle["host.rss"]
    line = idle_bytes + SEEN_RATIO * spikes[0].spike_bytes
    heights: dict[int, int] = {}
    false_alarms = 0
    for segment in recording.segments:
        peak = segment.peak["host.hwm"]
        if segment.kind not in ("idle", "step", "release") or peak < line:
            continue
        touched = _touching(segment, spikes)
        # A peak that two spikes share could be of either, so it counts for neither.
        if len(touched) == 1:
            heights[touched[0]] = max(heights.get(touched[0], 0), peak)
        false_alarms += not touched
    slow = [recording.samples[phase::DECIMATION] for phase in range(DECIMATION)]
    numbers = range(len(spikes))
    return Verdict(
        planted=len(spikes),
        by_segments=len(heights),
        by_timeline=sum(_is_sampled(recording.samples, spikes, i, line) for i in numbers),
        by_decimated=sum(_is_sampled(draw.choice(slow), spikes, i, line) for i in numbers),
        false_alarms=false_alarms,
        rates_hz=(_rate_hz(recording.samples), _rate_hz(slow[0])),
        resident_s=tuple(s.gone_s - s.began_s for s in spikes),
        height_errors_bytes=tuple(
            peak - idle_bytes - spikes[i].spike_bytes for i, peak in heights.items()
        ),
    )


def row_of(spike_mb: int, hold_ms: int, verdicts: Sequence[Verdict]) -> Row:
    planted = sum(v.planted for v in verdicts)
    errors = [error for v in verdicts for error in v.height_errors_bytes]
    return Row(
        spike_bytes=spike_mb * MB,
        hold_s=hold_ms / 1000,
        in_memory_median_s=median(s for v in verdicts for s in v.resident_s),
        segments=share(sum(v.by_segments for v in verdicts), planted),
        timeline=share(sum(v.by_timeline for v in verdicts), planted),
        decimated=share(sum(v.by_decimated for v in verdicts), planted),
        timeline_hz=min(v.rates_hz[0] for v in verdicts),
        decimated_hz=min(v.rates_hz[1] for v in verdicts),
        false_alarms=sum(v.false_alarms for v in verdicts),
        height_error_median_bytes=median(errors) if errors else None,
    )


def _touching(segment: Segment, spikes: Sequence[PlantedSpike]) -> list[int]:
    """Numbers of the spikes of which something may still be resident in the segment."""
    return [
        i
        for i, spike in enumerate(spikes)
        if segment.start_s <= spike.gone_s + GIVING_BACK_S and segment.end_s >= spike.began_s
    ]


def _is_sampled(
    samples: Sequence[Sample], spikes: Sequence[PlantedSpike], i: int, line: float
) -> bool:
    """Any sample from the spike's first page until the next spike may begin: to the sampler's good."""
    began_s, end_s = spikes[i].began_s, spikes[i].gone_s + min(PAUSES_MS) / 1000
    return any(began_s <= s.t_s < end_s and s.values.get("host.rss", 0) >= line for s in samples)


def _rate_hz(samples: Sequence[Sample]) -> float:
    return (len(samples) - 1) / (samples[-1].t_s - samples[0].t_s)


def _pooled(shares: Sequence[Share]) -> Share:
    return share(sum(s.seen for s in shares), sum(s.n for s in shares))


def result_of(rows: Sequence[Row], recording: Recording, took_s: float) -> dict[str, object]:
    segments = _pooled([row.segments for row in rows])
    timeline = _pooled([row.timeline for row in rows])
    decimated = _pooled([row.decimated for row in rows])
    return {
        "schema": "memplan.benchmark.spikes/1",
        "rule": f"seen: a reading of at least idle + {SEEN_RATIO:g} × spike; a segment counts for a "
        "spike only if it touches no other; a sample counts until the next spike may begin; the "
        "10 Hz sampler's phase is drawn for each spike",
        "seed": SEED,
        "sample_period_s": SAMPLE_PERIOD_S,
        "rows": [asdict(row) for row in rows],
        "all": {
            "segments": asdict(segments),
            "timeline_100_hz": asdict(timeline),
            "decimated_10_hz": asdict(decimated),
            "segments_over_timeline": segments.seen / timeline.seen if timeline.seen else None,
            "segments_over_decimated": segments.seen / decimated.seen if decimated.seen else None,
        },
        "false_alarms": sum(row.false_alarms for row in rows),
        "drift_bound_bytes": recording.header.drift_bound_bytes,
        "machine": {
            "cpu": recording.header.machine.cpu_model,
            "cpus": recording.header.machine.cpu_count,
            "kernel": recording.header.machine.kernel,
            "python": platform.python_version(),
            "load_1min_at_end": os.getloadavg()[0],
        },
        "took_s": took_s,
    }


def _cell(one: Share) -> str:
    return f"{one.seen:4d}/{one.n} {one.ratio:5.0%} [{one.low:4.0%}, {one.high:4.0%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--count", type=int, default=27, help="spikes a run; three runs of each size and hold"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    rows = []
    draw = random.Random(SEED)
    print(f"{'spike':>7} {'hold':>6}  {'segments':>25}  {'timeline':>25}  {'10 Hz':>25}")
    with tempfile.TemporaryDirectory() as scratch:
        for spike_mb, hold_ms in product(SPIKES_MB, HOLDS_MS):
            verdicts = []
            for pause_ms in PAUSES_MS:
                folder = Path(scratch) / f"{spike_mb}-{hold_ms}-{pause_ms}"
                recording = measure(spike_mb, hold_ms, pause_ms, arguments.count, folder)
                verdicts.append(judge(recording, draw))
            row = row_of(spike_mb, hold_ms, verdicts)
            rows.append(row)
            cells = "  ".join(_cell(s) for s in (row.segments, row.timeline, row.decimated))
            print(f"{spike_mb:4d} MB {hold_ms:3d} ms  {cells}", flush=True)
    result = result_of(rows, recording, time.monotonic() - began_s)
    print(json.dumps(result["all"], indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
