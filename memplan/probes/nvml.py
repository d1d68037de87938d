"""Device memory in use as the driver counts it, every process and the driver's own share included.

Only the device query is made. NVML's per-process query holds a driver lock for milliseconds and
would slow the engine that is being measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pynvml

from memplan.records import EngineFacts


class NvmlProbe:
    """Reads nothing where there is no NVIDIA driver, or the engine runs on the CPU."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._gauge = ""

    def attach(self, facts: EngineFacts) -> None:
        self._handle = None
        if not facts.device.startswith("cuda"):
            return
        index = int(facts.device.partition(":")[2] or 0)
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError:
            return
        self._gauge = f"nvml.{index}.used"

    def read(self, *, is_quiet: bool = False) -> Mapping[str, int]:
        if self._handle is None:
            return {}
        try:
            # Version 2 keeps what the driver reserves for itself out of ``used``.
            info = pynvml.nvmlDeviceGetMemoryInfo(self._handle, version=pynvml.nvmlMemory_v2)
        except pynvml.NVMLError:
            return {}
        return {self._gauge: int(info.used)}
