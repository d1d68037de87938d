"""What was loaded on demand and what collecting garbage took, as JSON; null where there is none."""

from __future__ import annotations

from typing import Any

from memplan.stats.summary import Garbage, OnDemand

Json = dict[str, Any]


def on_demand_json(found: OnDemand | None) -> Json | None:
    if found is None:
        return None
    return {
        "adapters": [
            {
                "name": one.name,
                "requests": one.requests,
                "waited": one.waited,
                "longest_load_s": one.longest_load_s,
            }
            for one in found.adapters
        ],
        "adapters_peak_bytes": found.adapters_peak_bytes,
        "tokenizer_bytes": found.tokenizer_bytes,
        "tokenizer_load_s": found.tokenizer_load_s,
    }


def garbage_json(found: Garbage | None) -> Json | None:
    if found is None:
        return None
    return {
        "collections": found.collections,
        "total_s": found.total_s,
        "longest_s": found.longest_s,
    }
