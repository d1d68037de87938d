"""The five truths of a run as JSON; a truth that was not measured is null."""

from __future__ import annotations

from typing import Any

from memplan.stats.truths import RunTruths, Truths

Json = dict[str, Any]


def truths_json(truths: RunTruths) -> Json:
    return {
        "idle": _moment(truths.idle),
        "peak": _moment(truths.peak),
        "after": _moment(truths.after),
        "charged_since": truths.charged_since,
        "no_group": truths.no_group,
        "weight_files_bytes": truths.weight_files_bytes,
        "weight_files_cached_bytes": truths.weight_files_cached_bytes,
    }


def _moment(truths: Truths | None) -> Json | None:
    if truths is None:
        return None
    return {
        "resident_bytes": truths.resident_bytes,
        "proportional_bytes": truths.proportional_bytes,
        "charged_bytes": truths.charged_bytes,
        "working_set_bytes": truths.working_set_bytes,
        "demand_alone_bytes": truths.demand_alone_bytes,
        "demand_shared_bytes": truths.demand_shared_bytes,
        "demand_libraries_bytes": truths.demand_libraries_bytes,
        "demand_private_bytes": truths.demand_private_bytes,
        "charged_less_demand_bytes": truths.charged_less_demand_bytes,
        "other_kernel_bytes": truths.other_kernel_bytes,
        "file_balance_bytes": truths.file_balance_bytes,
    }
