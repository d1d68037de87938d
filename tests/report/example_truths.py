"""The truths of a plausible run, made by hand: 870 MiB idle, of them 256 weights and 100 libraries."""

from __future__ import annotations

from typing import Any

from memplan.stats.truths import RunTruths, Truths
from memplan.units import MIB


def truths(resident_mib: int, **changes: Any) -> Truths:
    found: dict[str, Any] = {
        "resident_bytes": resident_mib * MIB,
        "proportional_bytes": (resident_mib - 90) * MIB,
        "charged_bytes": (resident_mib - 60) * MIB,
        "working_set_bytes": (resident_mib - 300) * MIB,
        "demand_alone_bytes": (resident_mib + 2) * MIB,
        "demand_shared_bytes": 256 * MIB,
        "demand_libraries_bytes": 100 * MIB,
        "other_kernel_bytes": MIB,
        "file_balance_bytes": -63 * MIB,
    }
    return Truths(**{**found, **changes})


def run_truths(**changes: Any) -> RunTruths:
    found: dict[str, Any] = {
        "idle": truths(870),
        "peak": truths(
            1239, proportional_bytes=None, other_kernel_bytes=None, file_balance_bytes=None
        ),
        "after": truths(880),
        "charged_peak_bytes": 1179 * MIB,
        "charged_load_peak_bytes": 1100 * MIB,
        "charged_since": "of serving: set back when the engine was ready",
        "no_group": None,
        "weight_files_bytes": 257 * MIB,
        "weight_files_cached_bytes": 8 * MIB,
    }
    return RunTruths(**{**found, **changes})
