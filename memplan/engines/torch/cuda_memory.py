"""What torch holds on a CUDA device, exact per segment, and a snapshot of it for explaining a peak."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

# A dump takes long, and only the last one stays: the next has to be worth it.
_NEWS_RATIO = 1.02
_HISTORY_ENTRIES = 100_000


class CudaMemory:
    """Reads torch's own counters, which need no synchronisation: they are the host's.

    With a ``snapshot`` path every allocation is recorded with its Python stack, and what lives is
    written there at each new peak (https://docs.pytorch.org/memory_viz opens it). That slows the
    engine: latencies of such a run do not count.
    """

    def __init__(self, device: torch.device, snapshot: Path | None) -> None:
        self._device = device
        self._snapshot = snapshot
        self._dumped_bytes = 0
        if snapshot is not None:
            torch.cuda.memory._record_memory_history(
                enabled="all", context="alloc", stacks="python", max_entries=_HISTORY_ENTRIES
            )

    def take(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """(peaks since the last call, gauges now), in bytes, by gauge name."""
        stats = torch.cuda.memory_stats(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        name = f"cuda.{self._device.index or 0}"
        peak = {
            f"{name}.allocated": stats["allocated_bytes.all.peak"],
            f"{name}.reserved": stats["reserved_bytes.all.peak"],
        }
        gauges = {
            f"{name}.allocated": stats["allocated_bytes.all.current"],
            f"{name}.reserved": stats["reserved_bytes.all.current"],
            f"{name}.device_used": total - free,
            f"{name}.alloc_retries": stats["num_alloc_retries"],
        }
        self._dump_if_news(peak[f"{name}.allocated"])
        return peak, gauges

    def _dump_if_news(self, peak_bytes: int) -> None:
        if self._snapshot is None or peak_bytes <= self._dumped_bytes * _NEWS_RATIO:
            return
        self._dumped_bytes = peak_bytes
        torch.cuda.memory._dump_snapshot(str(self._snapshot))  # type: ignore[no-untyped-call]
